// Which copy of this library serves the process, and by what name a module asks for it.
#include "registry.h"

#include <tvm/ffi/tvm_ffi.h>

namespace relax_inplace {

namespace ffi = tvm::ffi;

const char* const kBuiltins =  // initialised before any file registers its functions: a constant
    "relax_inplace.builtins of version 0.2 (load librelax_inplace.so before the module, "
    "in Python: import relax_inplace)";

bool ServesProcess() {
  static const bool is_first = []() {
    if (ffi::Function::GetGlobal("relax_inplace.Builtins").has_value()) return false;
    ffi::reflection::GlobalDef().def("relax_inplace.Builtins",
                                     []() { return ffi::String(kBuiltins); });
    return true;
  }();
  return is_first;
}

ffi::Function FunctionOfTVM(const char* name) {
  const ffi::Optional<ffi::Function> function = ffi::Function::GetGlobal(name);
  TVM_FFI_CHECK(function.has_value(), RuntimeError)
      << "relax_inplace: this process has no `" << name << "`: TVM is not loaded; import tvm first";
  return function.value();
}

}  // namespace relax_inplace
