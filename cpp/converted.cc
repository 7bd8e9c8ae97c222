// relax_inplace.MarkConverted, relax_inplace.ConvertedBy: which tensors a transform has made, so
// that none is converted twice, whatever holds it.
#include <tvm/ffi/tvm_ffi.h>

#include <mutex>
#include <string>
#include <unordered_map>

#include "registry.h"
#include "tuple_fields.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief A tensor that a transform has made, which it does not keep alive, and the transform. */
struct ConvertedTensor {
  ffi::WeakObjectPtr<ffi::TensorObj> tensor;
  std::string transform;
};

/*! \brief The registry of converted tensors. */
class ConvertedTensors {
 public:
  static ConvertedTensors* Global() {
    static auto* global = new ConvertedTensors();  // never destroyed: tensors may outlive it
    return global;
  }

  /*! \brief Marks a tensor; of an empty name takes the mark away. */
  void Mark(const ffi::TensorObj* tensor, const std::string& transform) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (transform.empty()) {
      converted_.erase(tensor);
    } else {
      const ffi::ObjectPtr<ffi::TensorObj> strong =
          ffi::details::ObjectUnsafe::ObjectPtrFromUnowned<ffi::TensorObj>(
              const_cast<ffi::TensorObj*>(tensor));
      converted_[tensor] = ConvertedTensor{ffi::WeakObjectPtr<ffi::TensorObj>(strong), transform};
    }
  }

  /*! \brief The transform that has made a tensor; empty if none has. */
  std::string Of(const ffi::TensorObj* tensor) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = converted_.find(tensor);
    // Of a freed one the address stays taken while it is here: no other tensor has it.
    return found == converted_.end() ? "" : found->second.transform;
  }

  /*! \brief Drops those that have been freed. */
  void Sweep() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto one = converted_.begin(); one != converted_.end();) {
      one = one->second.tensor.expired() ? converted_.erase(one) : std::next(one);
    }
  }

 private:
  std::mutex mutex_;
  std::unordered_map<const ffi::TensorObj*, ConvertedTensor> converted_;
};

/*!
 * \brief Marks the tensors of a tuple as made by a transform.
 * \param tuple An ffi.Array, which may hold others.
 * \param transform Its name; empty if they are originals again.
 */
static void MarkConverted(const ffi::Array<ffi::Any>& tuple, const ffi::String& transform) {
  ConvertedTensors::Global()->Sweep();
  const TensorsOfTuple found(*tuple.GetArrayObj());
  for (const TensorOfTuple& one : found.tensors()) {
    ConvertedTensors::Global()->Mark(one.tensor, transform);
  }
}

/*! \brief The transform that has made a tensor of a tuple; None if none has. */
static ffi::Optional<ffi::String> ConvertedBy(const ffi::Array<ffi::Any>& tuple) {
  const TensorsOfTuple found(*tuple.GetArrayObj());
  for (const TensorOfTuple& one : found.tensors()) {
    const std::string transform = ConvertedTensors::Global()->Of(one.tensor);
    if (!transform.empty()) return ffi::String(transform);
  }
  return std::nullopt;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register("relax_inplace.MarkConverted", MarkConverted);
  Register("relax_inplace.ConvertedBy", ConvertedBy);
}

}  // namespace relax_inplace
