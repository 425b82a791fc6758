// What bionic's <sys/cdefs.h> says to everyone; libc++ and others choose by it.
#pragma once

#define __BIONIC__ 1
#include_next <features.h>
