// Where libc++ looks for the functions that take a locale, which are not with the others in musl.
#pragma once

#include <locale.h>
#include <stdlib.h>
#include <wchar.h>

#ifdef __cplusplus
extern "C" {

long long strtoll_l(const char * text, char ** end, int base, locale_t);
unsigned long long strtoull_l(const char * text, char ** end, int base, locale_t);
long long wcstoll_l(const wchar_t * text, wchar_t ** end, int base, locale_t);
unsigned long long wcstoull_l(const wchar_t * text, wchar_t ** end, int base, locale_t);
long double wcstold_l(const wchar_t * text, wchar_t ** end, locale_t);

#if __ANDROID_API__ < 26
// Bionic got these later, and knows no other numbers than those of the C locale.
static inline float strtof_l(const char * text, char ** end, locale_t) {
    return strtof(text, end);
}
static inline double strtod_l(const char * text, char ** end, locale_t) {
    return strtod(text, end);
}
static inline long strtol_l(const char * text, char ** end, int base, locale_t) {
    return strtol(text, end, base);
}
#endif
}
#endif
