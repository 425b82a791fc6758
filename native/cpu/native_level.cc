#include "cpu/level.h"

namespace droid {

const char * cpu_level() {
    return "native";
}

}  // namespace droid
