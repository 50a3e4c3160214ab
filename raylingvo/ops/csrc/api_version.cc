// Which version of XLA's FFI these handlers were built on, and which version of Python's side they are for.

#include "xla/ffi/api/c_api.h"

extern "C" __attribute__((visibility("default"))) int RaylingvoFfiVersion() {
  return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR;
}

// Another number when the arguments of a handler change: that of _native.py, which uses no other library.
extern "C" __attribute__((visibility("default"))) int RaylingvoInterface() { return 4; }
