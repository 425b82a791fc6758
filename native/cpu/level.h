#pragma once

namespace droid {

// The level of instructions that the CPU backend was compiled with, as docs/prebuilds.md lists them; "native" when it
// was compiled on this machine for it. Throws std::runtime_error when this processor has none of the levels.
const char * cpu_level();

}  // namespace droid
