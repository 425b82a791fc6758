#pragma once

#include_next <unistd.h>

// What is asked for with other numbers in bionic: the ones that are used here, the rest is not to be used.
#undef _SC_CLK_TCK
#undef _SC_OPEN_MAX
#undef _SC_IOV_MAX
#undef _SC_PAGESIZE
#undef _SC_PAGE_SIZE
#undef _SC_GETPW_R_SIZE_MAX
#undef _SC_THREAD_STACK_MIN
#undef _SC_NPROCESSORS_CONF
#undef _SC_NPROCESSORS_ONLN
#undef _SC_PHYS_PAGES
#undef _SC_AVPHYS_PAGES
#define _SC_CLK_TCK 0x06
#define _SC_OPEN_MAX 0x0b
#define _SC_IOV_MAX 0x26
#define _SC_PAGESIZE 0x27
#define _SC_PAGE_SIZE 0x28
#define _SC_GETPW_R_SIZE_MAX 0x48
#define _SC_THREAD_STACK_MIN 0x4c
#define _SC_NPROCESSORS_CONF 0x60
#define _SC_NPROCESSORS_ONLN 0x61
#define _SC_PHYS_PAGES 0x62
#define _SC_AVPHYS_PAGES 0x63

#undef _PC_LINK_MAX
#undef _PC_NAME_MAX
#undef _PC_PATH_MAX
#undef _PC_PIPE_BUF
#define _PC_LINK_MAX 1
#define _PC_NAME_MAX 4
#define _PC_PATH_MAX 5
#define _PC_PIPE_BUF 6
