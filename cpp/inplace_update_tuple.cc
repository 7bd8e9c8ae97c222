// vm.builtin.inplace_update_tuple: what R.inplace_update_tuple becomes in a compiled program.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <unordered_set>
#include <utility>
#include <vector>

#include "device_wait.h"
#include "registry.h"
#include "update_observer.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief Whether a tuple is a value, or stands in it at any depth. */
static bool Holds(ffi::AnyView value, const ffi::ArrayObj* tuple) {
  std::vector<const ffi::ArrayObj*> to_visit;
  std::unordered_set<const ffi::ArrayObj*> seen;
  auto visit = [&to_visit, &seen](ffi::AnyView one) {
    const auto* fields = one.as<ffi::ArrayObj>();
    if (fields != nullptr && seen.insert(fields).second) to_visit.push_back(fields);
  };
  visit(value);
  while (!to_visit.empty()) {
    const ffi::ArrayObj* fields = to_visit.back();
    to_visit.pop_back();
    if (fields == tuple) return true;
    for (const ffi::Any& field : *fields) visit(field);
  }
  return false;
}

/*!
 * \brief Replaces one field of a tuple and returns the tuple, the same object.
 *
 * The old field is freed if nothing else refers to it; on a device, when what this thread's stream
 * was given is done. Constant time, unless the new field is a tuple, which is walked. Every check
 * precedes the change, so a call that throws has changed nothing, unless it is an observer that
 * throws.
 *
 * \param tuple An ffi.Array, which is what the Relax VM makes of a tuple.
 * \param index The field, 0 <= index < size.
 * \param value The new field.
 * \throws TypeError if tuple is no ffi.Array, index no integer, or value an unowned DLTensor.
 * \throws IndexError if index is out of range.
 * \throws ValueError if the tuple would hold itself, directly or in a nested tuple.
 * \throws What the device reports of the kernels before, if the old field would be freed.
 */
static ffi::Any InplaceUpdateTuple(ffi::AnyView tuple, ffi::AnyView index, ffi::AnyView value) {
  // Not a typed parameter ffi::Array<Any>: that conversion accepts an ffi.List too, and copies it.
  const ffi::ArrayObj* array = tuple.as<ffi::ArrayObj>();
  TVM_FFI_CHECK(array != nullptr, TypeError)
      << "vm.builtin.inplace_update_tuple: expected a tuple (ffi.Array) as argument 0, but got `"
      << tuple.GetTypeKey() << "`";
  TVM_FFI_CHECK(index.type_index() == ffi::TypeIndex::kTVMFFIInt, TypeError)
      << "vm.builtin.inplace_update_tuple: expected an integer as argument 1, but got `"
      << index.GetTypeKey() << "`";
  // A DLTensor* is borrowed for the length of the call; a field outlives it.
  TVM_FFI_CHECK(value.type_index() != ffi::TypeIndex::kTVMFFIDLTensorPtr, TypeError)
      << "vm.builtin.inplace_update_tuple: argument 2 is an unowned DLTensor*, which the tuple "
      << "cannot keep; pass a Tensor";
  const int64_t i = index.cast<int64_t>();
  const int64_t size = static_cast<int64_t>(array->size());
  TVM_FFI_CHECK(0 <= i && i < size, IndexError)
      << "vm.builtin.inplace_update_tuple: index " << i << " is out of range for a tuple of "
      << size << " fields";
  // It would never be freed, and what goes through tuples would not end.
  if (Holds(value, array)) {
    TVM_FFI_THROW(ValueError) << "vm.builtin.inplace_update_tuple: the new field " << i
                              << " is the tuple itself, or a tuple that holds it; a tuple cannot "
                              << "hold itself. No field has changed";
  }
  // An ffi.Array is immutable by convention: the ownership analysis of the compiler is what
  // entitles us to write to it.
  ffi::ArrayObj* fields = const_cast<ffi::ArrayObj*>(array);
  ffi::Any old = (*array)[i];
  WaitBeforeFreeing(old);
  if (UpdateObserver* observer = UpdateObserver::Current()) {
    fields->SetItem(i, ffi::Any(value));
    observer->Updated(*array, i, value, std::move(old));
  } else {
    fields->SetItem(i, ffi::Any(value));
  }
  return ffi::Any(tuple);
}

TVM_FFI_STATIC_INIT_BLOCK() { Register("vm.builtin.inplace_update_tuple", InplaceUpdateTuple); }

}  // namespace relax_inplace
