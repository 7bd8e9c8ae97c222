// Which copy of this library serves the process, and by what name a module asks for it.
#include "registry.h"

#include <tvm/ffi/tvm_ffi.h>

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*!
 * \brief The function that a module calls first, and whose name is what a process without this
 *        library says: that there is no function of this name (relax_inplace/libinfo.py, BUILTINS).
 *
 * The version is that of the release that changed a function of this library last, in name,
 * arguments or meaning: a module, or a Python package, that was made for others finds none of them.
 */
static constexpr const char* kBuiltins =
    "relax_inplace.builtins of version 0.1 (load librelax_inplace.so before the module, "
    "in Python: import relax_inplace)";

bool ServesProcess() {
  static const bool is_first = []() {
    if (ffi::Function::GetGlobal("relax_inplace.Builtins").has_value()) return false;
    ffi::reflection::GlobalDef()
        .def("relax_inplace.Builtins", []() { return ffi::String(kBuiltins); })
        .def(kBuiltins, []() {});
    return true;
  }();
  return is_first;
}

}  // namespace relax_inplace
