#pragma once

#include "rpc/client/worker.h"

namespace droid::fuzz {

// A short life of a master: it offers and places weights, computes a graph twice, and uses every other request of the
// protocol at least once; those of level 1 at the end, where a worker that does not know them ends it. Deterministic,
// so that a recorded worker fits to it. Throws CodedError only.
void drive(droid::rpc::Worker & worker);

}  // namespace droid::fuzz
