// Which version of XLA's FFI these handlers were built on.

#include "xla/ffi/api/c_api.h"

extern "C" __attribute__((visibility("default"))) int RaylingvoFfiVersion() {
  return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR;
}
