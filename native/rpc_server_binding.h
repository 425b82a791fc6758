#pragma once

#include <napi.h>

namespace droid {

// Defines the class RpcServer on exports, see NativeRpcServer in lib/addon.ts.
void export_rpc_server(Napi::Env env, Napi::Object exports);

}  // namespace droid
