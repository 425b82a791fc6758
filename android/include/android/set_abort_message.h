#pragma once

#include <sys/cdefs.h>

__BEGIN_DECLS

void android_set_abort_message(const char * message);

__END_DECLS
