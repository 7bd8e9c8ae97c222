// How this library puts its functions into tvm-ffi's global registry.
//
// A process may hold several copies of this library: a wheel's and a build folder's, and one in
// each module that was exported with it. They share no state, so one of them serves the whole
// process: the first that is loaded registers all its functions, and any other none.
#ifndef RELAX_INPLACE_REGISTRY_H_
#define RELAX_INPLACE_REGISTRY_H_

#include <tvm/ffi/tvm_ffi.h>

namespace relax_inplace {

/*!
 * \brief The name of the function that a module calls first, check_arguments.cc: a process without
 *        this library says that there is no function of this name (relax_inplace/libinfo.py,
 *        BUILTINS).
 *
 * The version is that of the release that changed a function of this library last, in name,
 * arguments or meaning: a module, or a Python package, that was made for others finds none of them.
 */
extern const char* const kBuiltins;

/*! \brief Whether this copy is the one that serves the process. */
bool ServesProcess();

/*! \brief Registers a global function, if this copy serves the process. */
template <typename F>
inline void Register(const char* name, F function) {
  if (ServesProcess()) tvm::ffi::reflection::GlobalDef().def(name, function);
}

/*! \brief The same for a function of any number of arguments: (ffi::PackedArgs, ffi::Any*). */
template <typename F>
inline void RegisterPacked(const char* name, F function) {
  if (ServesProcess()) tvm::ffi::reflection::GlobalDef().def_packed(name, function);
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_REGISTRY_H_
