// The addon's entry: hands out the functions of the other files. See binding.d.ts for the contract.
#include "napi.h"

namespace hawser {

void define(napi_env env, napi_value exports, const char *name, napi_callback callback) {
  napi_value function;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function);
  napi_set_named_property(env, exports, name, function);
}

}  // namespace hawser

NAPI_MODULE_INIT() {
  hawser::define_inflate(env, exports);
  hawser::define_fsat(env, exports);
  hawser::define_thread(env, exports);
  hawser::define_later(env, exports);
  hawser::define_notify(env, exports);
  return exports;
}
