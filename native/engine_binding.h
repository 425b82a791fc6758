#pragma once

#include <napi.h>

namespace droid {

// Defines the class Engine on exports, see NativeEngine in lib/addon.ts.
void export_engine(Napi::Env env, Napi::Object exports);

}  // namespace droid
