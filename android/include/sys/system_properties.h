#pragma once

#include <sys/cdefs.h>

#define PROP_NAME_MAX 32
#define PROP_VALUE_MAX 92

__BEGIN_DECLS

int __system_property_get(const char * name, char * value);

__END_DECLS
