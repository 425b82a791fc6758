// Android's C library as far as a Node for Linux needs it to load an addon for Android, which is how one is run without
// a phone. What bionic and glibc do alike is handed on by name: test/support/android.ts writes the code for that. Here
// is what differs. None of this is in the package.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <locale.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A function of bionic; that it is defined here is read from these lines by android.ts.
#define BIONIC(type, name, ...)                     \
    type bionic_##name(__VA_ARGS__) __asm__(#name); \
    __attribute__((visibility("default"))) type bionic_##name(__VA_ARGS__)
// A function of glibc, whose name is taken here.
#define GLIBC(name) ((__typeof__(&name))dlsym(glibc(), #name))

static void * glibc(void) {
    static void * library;
    if (!library) library = dlopen("libc.so.6", RTLD_NOW);
    return library;
}

// For the functions that are handed on, of all libraries, at their first call. In this library dlsym() is glibc's; in
// libdl.so it would be the one that is handed on.
__attribute__((visibility("default"))) void * bionic_lookup(const char * name) {
    static void * math;
    if (!math) math = dlopen("libm.so.6", RTLD_NOW);
    void * function = dlsym(glibc(), name);
    if (!function) function = dlsym(math, name);
    if (function) return function;
    dprintf(2, "bionic on glibc: glibc has no %s\n", name);
    _exit(70);
}

__attribute__((noreturn)) static void refuse(const char * what, long value) {
    dprintf(2, "bionic on glibc: %s %ld is not known here\n", what, value);
    _exit(70);
}

#define DATA __attribute__((visibility("default")))
DATA FILE * bionic_stdin __asm__("stdin");
DATA FILE * bionic_stdout __asm__("stdout");
DATA FILE * bionic_stderr __asm__("stderr");
DATA char ** bionic_environ __asm__("environ");
DATA uintptr_t bionic_stack_chk_guard __asm__("__stack_chk_guard") = 0x2fb1d56a7c93e840;

__attribute__((constructor)) static void copy_data(void) {
    bionic_stdin = *(FILE **)dlsym(glibc(), "stdin");
    bionic_stdout = *(FILE **)dlsym(glibc(), "stdout");
    bionic_stderr = *(FILE **)dlsym(glibc(), "stderr");
    bionic_environ = *(char ***)dlsym(glibc(), "environ");
}

BIONIC(int *, __errno, void) {
    return __errno_location();
}

BIONIC(void, __assert2, const char * file, int line, const char * function, const char * condition) {
    dprintf(2, "%s:%d: %s: assertion \"%s\" failed\n", file, line, function, condition);
    abort();
}

BIONIC(void, android_set_abort_message, const char * message) {
    dprintf(2, "%s\n", message);
}

BIONIC(int, strerror_r, int error, char * buffer, size_t size) {
    return __xpg_strerror_r(error, buffer, size);
}

BIONIC(int, __system_property_get, const char * name, char * value) {
    (void)name;
    *value = 0;
    return 0;
}

BIONIC(long, sysconf, int name) {
    static const struct {
        int bionic, glibc;
    } names[] = {
        {0x06, _SC_CLK_TCK},          {0x0b, _SC_OPEN_MAX},         {0x26, _SC_IOV_MAX},
        {0x27, _SC_PAGESIZE},         {0x28, _SC_PAGESIZE},         {0x48, _SC_GETPW_R_SIZE_MAX},
        {0x4c, _SC_THREAD_STACK_MIN}, {0x60, _SC_NPROCESSORS_CONF}, {0x61, _SC_NPROCESSORS_ONLN},
        {0x62, _SC_PHYS_PAGES},       {0x63, _SC_AVPHYS_PAGES},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (names[i].bionic == name) return GLIBC(sysconf)(names[i].glibc);
    refuse("sysconf", name);
}

BIONIC(long, pathconf, const char * path, int name) {
    if (name == 4) return GLIBC(pathconf)(path, _PC_NAME_MAX);
    if (name == 5) return GLIBC(pathconf)(path, _PC_PATH_MAX);
    refuse("pathconf", name);
}

// 40 bytes against 48. What bionic's static initializers say is the kind, in bits 14 and 15; after the first use, the
// whole of it is a pointer, whose lowest bit is set to tell.
static pthread_mutex_t * mutex(uint64_t * storage) {
    const uint64_t seen = __atomic_load_n(storage, __ATOMIC_ACQUIRE);
    if (seen & 1) return (pthread_mutex_t *)(seen & ~(uint64_t)1);
    pthread_mutexattr_t attributes;
    pthread_mutex_t * fresh = malloc(sizeof(*fresh));
    GLIBC(pthread_mutexattr_init)(&attributes);
    GLIBC(pthread_mutexattr_settype)(&attributes, (int)(seen >> 14 & 3));
    GLIBC(pthread_mutex_init)(fresh, &attributes);
    uint64_t expected = seen;
    if (__atomic_compare_exchange_n(storage, &expected, (uint64_t)fresh | 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return fresh;
    free(fresh);
    return (pthread_mutex_t *)(expected & ~(uint64_t)1);
}

// Looked up once: mutexes are taken often, and from several threads.
static struct {
    __typeof__(&pthread_mutex_lock) lock, unlock, trylock, destroy;
    __typeof__(&pthread_cond_wait) wait;
    __typeof__(&pthread_cond_timedwait) timedwait;
} threads;

__attribute__((constructor)) static void find_threads(void) {
    threads.lock = GLIBC(pthread_mutex_lock);
    threads.unlock = GLIBC(pthread_mutex_unlock);
    threads.trylock = GLIBC(pthread_mutex_trylock);
    threads.destroy = GLIBC(pthread_mutex_destroy);
    threads.wait = GLIBC(pthread_cond_wait);
    threads.timedwait = GLIBC(pthread_cond_timedwait);
}

BIONIC(int, pthread_mutex_init, uint64_t * storage, const pthread_mutexattr_t * attributes) {
    pthread_mutex_t * fresh = malloc(sizeof(*fresh));
    *storage = (uint64_t)fresh | 1;
    return GLIBC(pthread_mutex_init)(fresh, attributes);
}
BIONIC(int, pthread_mutex_lock, uint64_t * storage) {
    return threads.lock(mutex(storage));
}
BIONIC(int, pthread_mutex_trylock, uint64_t * storage) {
    return threads.trylock(mutex(storage));
}
BIONIC(int, pthread_mutex_unlock, uint64_t * storage) {
    return threads.unlock(mutex(storage));
}
BIONIC(int, pthread_mutex_destroy, uint64_t * storage) {
    if (!(*storage & 1)) return 0;
    const int status = threads.destroy(mutex(storage));
    if (status == 0) {
        free(mutex(storage));
        *storage = 0;
    }
    return status;
}
BIONIC(int, pthread_cond_wait, pthread_cond_t * condition, uint64_t * storage) {
    return threads.wait(condition, mutex(storage));
}
BIONIC(int, pthread_cond_timedwait, pthread_cond_t * condition, uint64_t * storage, const struct timespec * until) {
    return threads.timedwait(condition, mutex(storage), until);
}

// 56 bytes against 64.
BIONIC(int, pthread_attr_init, pthread_attr_t ** storage) {
    *storage = malloc(sizeof(**storage));
    return GLIBC(pthread_attr_init)(*storage);
}
BIONIC(int, pthread_attr_destroy, pthread_attr_t ** storage) {
    const int status = GLIBC(pthread_attr_destroy)(*storage);
    free(*storage);
    return status;
}
BIONIC(int, pthread_attr_setdetachstate, pthread_attr_t ** storage, int state) {
    return GLIBC(pthread_attr_setdetachstate)(*storage, state);
}
BIONIC(int, pthread_attr_setstacksize, pthread_attr_t ** storage, size_t size) {
    return GLIBC(pthread_attr_setstacksize)(*storage, size);
}
BIONIC(int, pthread_create, pthread_t * thread, pthread_attr_t ** storage, void * (*start)(void *), void * argument) {
    return GLIBC(pthread_create)(thread, storage ? *storage : NULL, start, argument);
}

// Eight bytes against 128.
static const sigset_t * wide(const uint64_t * narrow, sigset_t * set) {
    if (!narrow) return NULL;
    memset(set, 0, sizeof(*set));
    memcpy(set, narrow, sizeof(*narrow));
    return set;
}
BIONIC(int, sigemptyset, uint64_t * set) {
    *set = 0;
    return 0;
}
BIONIC(int, sigfillset, uint64_t * set) {
    *set = ~(uint64_t)0;
    return 0;
}
BIONIC(int, sigaddset, uint64_t * set, int signal) {
    *set |= (uint64_t)1 << (signal - 1);
    return 0;
}
BIONIC(int, sigdelset, uint64_t * set, int signal) {
    *set &= ~((uint64_t)1 << (signal - 1));
    return 0;
}
BIONIC(int, sigismember, const uint64_t * set, int signal) {
    return (int)(*set >> (signal - 1) & 1);
}
BIONIC(int, pthread_sigmask, int how, const uint64_t * set, uint64_t * before) {
    sigset_t wide_set, wide_before;
    const int status = GLIBC(pthread_sigmask)(how, wide(set, &wide_set), &wide_before);
    if (before) memcpy(before, &wide_before, sizeof(*before));
    return status;
}
BIONIC(int, sigpending, uint64_t * set) {
    sigset_t all;
    const int status = GLIBC(sigpending)(&all);
    memcpy(set, &all, sizeof(*set));
    return status;
}
BIONIC(int, sigtimedwait, const uint64_t * set, siginfo_t * info, const struct timespec * time) {
    sigset_t wide_set;
    return GLIBC(sigtimedwait)(wide(set, &wide_set), info, time);
}

// Another order of members, other flags and other results.
struct bionic_addrinfo {
    int flags, family, type, protocol;
    socklen_t length;
    char * name;
    struct sockaddr * address;
    struct bionic_addrinfo * next;
};

static int flags_to_glibc(int flags) {
    const int known = AI_PASSIVE | AI_CANONNAME | AI_NUMERICHOST;
    int result = flags & known;
    if (flags & 0x0008) result |= AI_NUMERICSERV;
    if (flags & 0x0400) result |= AI_ADDRCONFIG;
    if (flags & ~(known | 0x0008 | 0x0400)) refuse("getaddrinfo with flags", flags);
    return result;
}

static int status_from_glibc(int status) {
    static const struct {
        int glibc, bionic;
    } names[] = {{0, 0},           {EAI_AGAIN, 2},     {EAI_BADFLAGS, 3}, {EAI_FAIL, 4},
                 {EAI_FAMILY, 5},  {EAI_MEMORY, 6},    {EAI_NODATA, 7},   {EAI_NONAME, 8},
                 {EAI_SERVICE, 9}, {EAI_SOCKTYPE, 10}, {EAI_SYSTEM, 11}};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (names[i].glibc == status) return names[i].bionic;
    return 4;
}

BIONIC(void, freeaddrinfo, struct bionic_addrinfo * list) {
    while (list) {
        struct bionic_addrinfo * next = list->next;
        free(list->name);
        free(list->address);
        free(list);
        list = next;
    }
}

BIONIC(int, getaddrinfo, const char * host, const char * service, const struct bionic_addrinfo * hints,
       struct bionic_addrinfo ** list) {
    struct addrinfo wanted = {0}, *found;
    if (hints) {
        wanted.ai_flags = flags_to_glibc(hints->flags);
        wanted.ai_family = hints->family;
        wanted.ai_socktype = hints->type;
        wanted.ai_protocol = hints->protocol;
    }
    const int status = GLIBC(getaddrinfo)(host, service, hints ? &wanted : NULL, &found);
    if (status != 0) return status_from_glibc(status);
    struct bionic_addrinfo ** end = list;
    for (const struct addrinfo * one = found; one; one = one->ai_next) {
        struct bionic_addrinfo * copy = calloc(1, sizeof(*copy));
        copy->family = one->ai_family;
        copy->type = one->ai_socktype;
        copy->protocol = one->ai_protocol;
        copy->length = one->ai_addrlen;
        copy->address = malloc(one->ai_addrlen);
        memcpy(copy->address, one->ai_addr, one->ai_addrlen);
        if (one->ai_canonname) copy->name = strdup(one->ai_canonname);
        *end = copy;
        end = &copy->next;
    }
    *end = NULL;
    GLIBC(freeaddrinfo)(found);
    return 0;
}

BIONIC(const char *, gai_strerror, int status) {
    static const char * const texts[] = {"success",     "no such family of addresses",
                                         "try again",   "bad flags",
                                         "failed",      "no such family",
                                         "no memory",   "no address",
                                         "no such name"};
    return status >= 0 && status < (int)(sizeof(texts) / sizeof(*texts)) ? texts[status] : "failed";
}

BIONIC(int, getnameinfo, const struct sockaddr * address, socklen_t length, char * host, socklen_t host_size,
       char * service, socklen_t service_size, int flags) {
    const int numeric =
        (flags & 0x02 ? NI_NUMERICHOST : 0) | (flags & 0x08 ? NI_NUMERICSERV : 0) | (flags & 0x04 ? NI_NAMEREQD : 0);
    if (flags & ~0x0e) refuse("getnameinfo with flags", flags);
    return status_from_glibc(GLIBC(getnameinfo)(address, length, host, host_size, service, service_size, numeric));
}

BIONIC(size_t, strlcpy, char * to, const char * from, size_t size) {
    const size_t length = strlen(from);
    if (size) {
        const size_t copied = length < size ? length : size - 1;
        memcpy(to, from, copied);
        to[copied] = 0;
    }
    return length;
}
