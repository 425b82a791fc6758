#include "cpu/level.h"

namespace droid {

const char * cpu_level() {
#ifdef DROID_CPU_LEVEL
    return DROID_CPU_LEVEL;
#else
    return "native";
#endif
}

}  // namespace droid
