#pragma once

#include <sys/cdefs.h>

#define lconv lconv_of_musl
#define localeconv localeconv_of_musl
#include_next <locale.h>
#undef lconv
#undef localeconv

// newlocale() refuses a mask with other bits: 0 to 5, 7 to 12.
#undef LC_ALL_MASK
#define LC_ALL_MASK 0x1fbf

struct lconv {
    char *decimal_point, *thousands_sep, *grouping;
    char *int_curr_symbol, *currency_symbol, *mon_decimal_point, *mon_thousands_sep, *mon_grouping;
    char *positive_sign, *negative_sign;
    char int_frac_digits, frac_digits;
    char p_cs_precedes, p_sep_by_space, n_cs_precedes, n_sep_by_space, p_sign_posn, n_sign_posn;
    char int_p_cs_precedes, int_n_cs_precedes, int_p_sep_by_space, int_n_sep_by_space;
    char int_p_sign_posn, int_n_sign_posn;
};

__BEGIN_DECLS

struct lconv * localeconv(void);

__END_DECLS
