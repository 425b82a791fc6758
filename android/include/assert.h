// No guard: <assert.h> means something else each time NDEBUG changes.
#include <sys/cdefs.h>

#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) ((condition) ? (void)0 : __assert2(__FILE__, __LINE__, __func__, #condition))
#endif

#if !defined(__cplusplus) && __STDC_VERSION__ >= 201112L
#undef static_assert
#define static_assert _Static_assert
#endif

__BEGIN_DECLS

void __assert2(const char * file, int line, const char * function, const char * condition)
    __attribute__((__noreturn__));

__END_DECLS
