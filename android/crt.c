// What the linker puts into every library for Android besides its code; the NDK's are crtbegin_so.o and crtend_so.o.

extern int __cxa_atexit(void (*function)(void *), void * argument, void * library);
extern void __cxa_finalize(void * library);
extern int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void * library);

// Names this library to the functions above.
__attribute__((visibility("hidden"))) void * __dso_handle = &__dso_handle;

__attribute__((destructor)) static void finalize(void) {
    __cxa_finalize(&__dso_handle);
}

__attribute__((visibility("hidden"))) int atexit(void (*function)(void)) {
    return __cxa_atexit((void (*)(void *))function, 0, &__dso_handle);
}

__attribute__((visibility("hidden"))) int pthread_atfork(void (*prepare)(void), void (*parent)(void),
                                                         void (*child)(void)) {
    return __register_atfork(prepare, parent, child, &__dso_handle);
}

// What readelf -n and Android's tools look for: the API level.
__attribute__((section(".note.android.ident"), used, aligned(4))) static const struct {
    int name_size, description_size, type;
    char name[8];
    int api_level;
} note = {8, 4, 1, "Android", __ANDROID_API__};
