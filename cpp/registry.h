// How this library puts its functions into tvm-ffi's global registry.
#ifndef RELAX_INPLACE_REGISTRY_H_
#define RELAX_INPLACE_REGISTRY_H_

#include <tvm/ffi/tvm_ffi.h>

namespace relax_inplace {

/*!
 * \brief Registers a global function, unless it is there already.
 *
 * A second copy of the library in one process (a wheel's and a build folder's, say) must be
 * harmless; tvm-ffi throws at a name that is taken, and a throw while a library is being loaded
 * ends the process.
 */
template <typename F>
inline void Register(const char* name, F function) {
  if (!tvm::ffi::Function::GetGlobal(name).has_value()) {
    tvm::ffi::reflection::GlobalDef().def(name, function);
  }
}

/*! \brief The same for a function of any number of arguments: (ffi::PackedArgs, ffi::Any*). */
template <typename F>
inline void RegisterPacked(const char* name, F function) {
  if (!tvm::ffi::Function::GetGlobal(name).has_value()) {
    tvm::ffi::reflection::GlobalDef().def_packed(name, function);
  }
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_REGISTRY_H_
