#pragma once

// xlocale.h has others.
#define strtof_l strtof_l_of_musl
#define strtod_l strtod_l_of_musl
#include_next <stdlib.h>
#undef strtof_l
#undef strtod_l
