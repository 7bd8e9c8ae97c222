// How this library puts its functions into tvm-ffi's global registry.
//
// A process may hold several copies of this library: a wheel's and a build folder's, and one in
// each module that was exported with it. They share no state, so one of them serves the whole
// process: the first that is loaded registers all its functions, and any other none.
#ifndef RELAX_INPLACE_REGISTRY_H_
#define RELAX_INPLACE_REGISTRY_H_

#include <tvm/ffi/tvm_ffi.h>

#include <string>
#include <type_traits>
#include <utility>

namespace relax_inplace {

/*!
 * \brief The name of the function that a module calls first, checks.cc: a process without this
 *        library says that there is no function of this name (relax_inplace/libinfo.py, BUILTINS).
 *
 * The version is that of the release that changed a function of this library last, in name,
 * arguments or meaning: a module, or a Python package, that was made for others finds none of them.
 */
extern const char* const kBuiltins;

/*! \brief Whether this copy is the one that serves the process. */
bool ServesProcess();

/*! \brief A global function of TVM's. \throws RuntimeError if TVM is not loaded. */
tvm::ffi::Function FunctionOfTVM(const char* name);

/*! \brief Refuses None, which tvm-ffi takes for a reference to an object of any type. */
template <typename T>
void RequireGiven(const char* name, int index, const T& value) {
  if constexpr (std::is_base_of_v<tvm::ffi::ObjectRef, T> && !tvm::ffi::is_optional_type_v<T>) {
    TVM_FFI_CHECK(value.defined(), TypeError)
        << "Mismatched type on argument #" << index << " when calling: `" << name << "`. Expected `"
        << tvm::ffi::details::Type2Str<T>::v() << "` but got `None`";
  }
}

/*! \brief A function whose arguments have been given, whatever it is called with. */
template <typename R, typename... Args>
auto WithGivenArguments(const char* name, R (*function)(Args...)) {
  return [name, function](Args... args) -> R {
    [[maybe_unused]] int index = 0;
    (RequireGiven(name, index++, args), ...);
    return function(args...);
  };
}

/*!
 * \brief Registers a global function, if this copy serves the process.
 *
 * Its parameters say what is checked before it is called: how many there are, and of what type.
 * An object is borrowed by a pointer (const ffi::TensorObj*); None is an ffi::Optional.
 */
template <typename R, typename... Args>
void Register(const char* name, R (*function)(Args...)) {
  if (ServesProcess()) {
    tvm::ffi::reflection::GlobalDef().def(name, WithGivenArguments(name, function));
  }
}

/*! \brief The same for a function that takes any number of arguments more, which come first. */
template <typename... Args>
void Register(const char* name, tvm::ffi::Any (*function)(tvm::ffi::PackedArgs more, Args...)) {
  namespace ffi = tvm::ffi;
  if (!ServesProcess()) return;
  ffi::reflection::GlobalDef().def_packed(
      name, [name = std::string(name), function](ffi::PackedArgs args, ffi::Any* result) {
        constexpr int kFirst = sizeof...(Args);
        TVM_FFI_CHECK(args.size() >= kFirst, TypeError)
            << "Mismatched number of arguments when calling: `" << name << "`. Expected " << kFirst
            << " or more but got " << args.size();
        const auto call = [&](Args... first) -> ffi::Any {
          [[maybe_unused]] int index = 0;
          (RequireGiven(name.c_str(), index++, first), ...);
          return function(args.Slice(kFirst, args.size()), first...);
        };
        ffi::details::unpack_call<ffi::Any>(std::make_index_sequence<kFirst>{}, &name, call,
                                            args.data(), kFirst, result);
      });
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_REGISTRY_H_
