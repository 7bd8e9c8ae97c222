// A tensor does not say whose memory it lies in. But the function that deletes it is one of its
// C++ class: each way to make a tensor has a class of its own, and so a deleter of its own.
#include "storage_owner.h"

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "device_wait.h"
#include "owned_pages.h"
#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

using Deleter = void (*)(void*, int);

/*! \brief A tensor in the storage of another: the class of our own. */
class TensorInStorageObj : public ffi::TensorObj {
 public:
  TensorInStorageObj(ffi::ObjectPtr<ffi::TensorObj> owner, ffi::ShapeView shape, DLDataType dtype)
      : owner_(std::move(owner)), sizes_(shape.begin(), shape.end()) {
    sizes_.resize(2 * shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      sizes_[shape.size() + i] = stride;
      stride *= shape[i];
    }
    static_cast<DLTensor&>(*this) = *owner_;
    this->ndim = static_cast<int32_t>(shape.size());
    this->dtype = dtype;
    this->shape = sizes_.data();
    this->strides = sizes_.data() + shape.size();
  }

  const ffi::TensorObj& owner() const { return *owner_; }

 private:
  ffi::ObjectPtr<ffi::TensorObj> owner_;
  std::vector<int64_t> sizes_;  // the shape, then the strides
};

static const TVMFFIObject& HeaderOf(const ffi::Object& object) {
  return *ffi::details::ObjectUnsafe::GetHeader(&object);
}

static Deleter DeleterOf(const ffi::Tensor& tensor) {
  return HeaderOf(*tensor.operator->()).deleter;
}

/*! \brief The memory of a tensor in pages of its own. */
struct PagesOfTensor {
  OwnedPages* pages;  // tvm-ffi copies this before it allocates

  void AllocData(DLTensor* tensor) { tensor->data = pages->data(); }
  void FreeData(DLTensor*) { delete pages; }
};

ffi::Tensor AllocateTensor(const ffi::Shape& shape, DLDataType dtype, DLDevice device) {
  if (IsHost(device)) {
    const size_t bytes = ffi::GetDataSize(shape.Product(), dtype);
    if (auto pages = OwnedPages::Allocate(static_cast<int64_t>(bytes))) {
      return ffi::Tensor::FromNDAlloc(PagesOfTensor{pages.release()}, shape, dtype, device);
    }
  }
  static const char* name = "runtime.TVMTensorAllocWithScope";
  const ffi::Optional<ffi::Function> allocate = ffi::Function::GetGlobal(name);
  TVM_FFI_CHECK(allocate.has_value(), RuntimeError)
      << "relax_inplace: this process has no `" << name << "`: TVM's runtime is not loaded; import "
      << "tvm first";
  return allocate.value()(shape, dtype, device, nullptr).cast<ffi::Tensor>();
}

/*!
 * \brief The deleter of the tensors that TVM's runtime allocates; null if it is not theirs alone.
 *
 * Learnt from samples, since TVM gives that class no name (src/runtime/tensor.cc, Tensor::Empty).
 * A view and an import have to have other deleters: a linker may fold functions that are equal.
 */
static Deleter LearnDeleterOfAllocated() {
  const DLDataType byte{kDLUInt, 8, 1};
  const DLDevice host{kDLCPU, 0};
  const ffi::Tensor one = AllocateTensor({4}, byte, host);
  const Deleter deleter = DeleterOf(one);
  const ffi::Optional<ffi::Function> view = ffi::Function::GetGlobal("runtime.TVMTensorCreateView");
  if (!view.has_value() || DeleterOf(AllocateTensor({}, byte, host)) != deleter) return nullptr;
  const ffi::Shape shape{2};
  const int64_t stride = 1;
  const ffi::Tensor others[] = {
      view.value()(one, shape, byte, int64_t{0}).cast<ffi::Tensor>(),
      one.as_strided(shape, ffi::ShapeView(&stride, 1)),
      ffi::Tensor::FromDLPack(one.ToDLPack()),
      ffi::Tensor::FromDLPackVersioned(one.ToDLPackVersioned()),
  };
  for (const ffi::Tensor& other : others) {
    if (DeleterOf(other) == deleter) return nullptr;
  }
  // Python's imports are made by the functions of tvm-ffi's own library.
  TVMFFIObjectHandle imported = nullptr;
  TVM_FFI_CHECK_SAFE_CALL(TVMFFITensorFromDLPack(one.ToDLPack(), 0, 0, &imported));
  const ffi::Tensor legacy(ffi::details::ObjectUnsafe::ObjectPtrFromOwned<ffi::TensorObj>(
      static_cast<TVMFFIObject*>(imported)));
  TVM_FFI_CHECK_SAFE_CALL(
      TVMFFITensorFromDLPackVersioned(one.ToDLPackVersioned(), 0, 0, &imported));
  const ffi::Tensor versioned(ffi::details::ObjectUnsafe::ObjectPtrFromOwned<ffi::TensorObj>(
      static_cast<TVMFFIObject*>(imported)));
  return DeleterOf(legacy) == deleter || DeleterOf(versioned) == deleter ? nullptr : deleter;
}

const ffi::TensorObj* StorageOwner(const ffi::TensorObj& tensor) {
  static const Deleter of_allocated = LearnDeleterOfAllocated();
  static const Deleter of_ours =
      ffi::details::SimpleObjAllocator::Handler<TensorInStorageObj>::Deleter();
  static const Deleter of_pages = ffi::details::SimpleObjAllocator::ArrayHandler<
      ffi::details::TensorObjFromNDAlloc<PagesOfTensor>, int64_t>::Deleter();
  const Deleter deleter = HeaderOf(tensor).deleter;
  if (deleter == of_pages) return &tensor;
  if (deleter == of_ours) return &static_cast<const TensorInStorageObj&>(tensor).owner();
  return deleter != nullptr && deleter == of_allocated ? &tensor : nullptr;
}

bool HasOneReference(const ffi::Object& object) {
  // Object::use_count does neither: it leaves weak references out, and orders nothing.
  return __atomic_load_n(&HeaderOf(object).combined_ref_count, __ATOMIC_ACQUIRE) ==
         ffi::details::kCombinedRefCountBothOne;
}

ffi::Tensor TensorInStorage(const ffi::TensorObj& owner, ffi::ShapeView shape, DLDataType dtype) {
  SetSpent(owner.data, false);
  return ffi::Tensor(ffi::make_object<TensorInStorageObj>(
      ffi::GetObjectPtr<ffi::TensorObj>(const_cast<ffi::TensorObj*>(&owner)), shape, dtype));
}

TVM_FFI_STATIC_INIT_BLOCK() { Register("relax_inplace.AllocateTensor", AllocateTensor); }

}  // namespace relax_inplace
