#pragma once

// The order of its members is another one in bionic, and the addon leaves a process's signals alone: who uses it shall
// not compile.
#define sigaction sigaction_differs_in_bionic
#include_next <signal.h>
#undef sigaction
#pragma GCC poison sigaction
