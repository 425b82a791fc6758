#pragma once

#include <sys/cdefs.h>

#include_next <errno.h>

#undef errno
#define errno (*__errno())

__BEGIN_DECLS

int * __errno(void) __attribute__((__const__));

__END_DECLS
