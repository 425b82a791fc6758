#pragma once

#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

// Upstream's tests/test-llama-archs.cpp, and what it is given in place of what it would find.
namespace droid::archs {

// What upstream's main() takes for the only device there is, and how many layers it puts there (-1: all).
void set_device(ggml_backend_dev_t device, int layers);

// The architectures that llama.cpp knows, those upstream leaves out included.
std::vector<std::string> names();

// Upstream's main(): prints a table, returns 0 when every row of it is fine.
int run(const std::string & arch, unsigned seed);

}  // namespace droid::archs
