// vm.builtin.donate_storage: a new tensor in the storage of a spent one.
// vm.builtin.offer_pages: what it is made of may go into it.
// vm.builtin.shrink_storage, release_storage: what is not needed of it goes back to the system.
// relax_inplace.AllocateTensor: a new tensor in memory of its own.
//
// A tensor does not say whose memory it lies in. But the function that deletes it is one of its
// C++ class: each way to make a tensor has a class of its own, and so a deleter of its own.
#include "storage.h"

#include <tvm/ffi/extra/stl.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "pages.h"
#include "registry.h"
#include "update.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

std::optional<int64_t> BytesOf(ffi::ShapeView shape, DLDataType dtype) {
  int64_t total = int64_t{dtype.bits} * static_cast<int16_t>(dtype.lanes);
  bool is_wrong = total <= 0;
  bool is_empty = false;
  bool overflows = false;
  for (const int64_t size : shape) {
    is_wrong = is_wrong || size < 0;
    is_empty = is_empty || size == 0;
    overflows = overflows || __builtin_mul_overflow(total, size, &total);
  }
  if (is_wrong) return std::nullopt;
  if (is_empty) return 0;
  if (overflows || __builtin_add_overflow(total, 7, &total)) return std::nullopt;
  return total / 8;
}

std::optional<int64_t> BytesOf(const DLTensor& tensor) {
  return BytesOf(ffi::ShapeView(tensor.shape, static_cast<size_t>(tensor.ndim)), tensor.dtype);
}

std::string Text(DLDataType dtype) {
  try {
    return ffi::DLDataTypeToString(dtype);
  } catch (const ffi::Error&) {  // it would end the process, thrown while a message is put together
    return "(code " + std::to_string(dtype.code) + ", bits " + std::to_string(dtype.bits) +
           ", lanes " + std::to_string(dtype.lanes) + ")";
  }
}

/*! \brief The bytes of a tensor that is to be made. */
static int64_t RequireSize(const ffi::Shape& shape, DLDataType dtype, const char* where) {
  const auto bytes = BytesOf(shape, dtype);
  TVM_FFI_CHECK(bytes.has_value(), ValueError)
      << where << ": no tensor can be of shape " << shape << " and dtype `" << Text(dtype)
      << "`: a size below 0, no bits, or larger than any memory";
  return *bytes;
}

using Deleter = void (*)(void*, int);

/*! \brief A tensor in the storage of another: the class of our own. */
class TensorInStorageObj : public ffi::TensorObj {
 public:
  TensorInStorageObj(ffi::ObjectPtr<ffi::TensorObj> owner, ffi::ShapeView shape, DLDataType dtype)
      : owner_(std::move(owner)), sizes_(shape.begin(), shape.end()) {
    sizes_.resize(2 * shape.size());
    uint64_t stride = 1;  // may overflow, where another size is 0
    for (size_t i = shape.size(); i-- > 0;) {
      sizes_[shape.size() + i] = static_cast<int64_t>(stride);
      stride *= static_cast<uint64_t>(shape[i]);
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
  RequireDeviceType(device);
  const int64_t bytes = RequireSize(shape, dtype, "relax_inplace.AllocateTensor");
  if (IsHost(device)) {
    if (auto pages = OwnedPages::Allocate(bytes)) {
      return ffi::Tensor::FromNDAlloc(PagesOfTensor{pages.release()}, shape, dtype, device);
    }
  }
  return FunctionOfTVM("runtime.TVMTensorAllocWithScope")(shape, dtype, device, nullptr)
      .cast<ffi::Tensor>();
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

/*!
 * \brief A tensor in the storage of another, from its first byte.
 * \param owner What StorageOwner returned. The new tensor keeps it alive.
 * \param shape Of the new tensor, which is compact.
 * \param dtype Of the new tensor; its bytes are not more than the owner's.
 */
static ffi::Tensor TensorInStorage(const ffi::TensorObj& owner, ffi::ShapeView shape,
                                   DLDataType dtype) {
  SetSpent(owner.data, false);
  return ffi::Tensor(ffi::make_object<TensorInStorageObj>(
      ffi::GetObjectPtr<ffi::TensorObj>(const_cast<ffi::TensorObj*>(&owner)), shape, dtype));
}

constexpr size_t kAlignment = 64;  // of what compiled kernels take (tvm/runtime/device_api.h)

/*! \brief Whether the caller's reference alone keeps a tensor, and that alone its storage. */
static bool IsAlone(const ffi::TensorObj& spent, const ffi::TensorObj* owner) {
  return owner != nullptr && HasOneReference(spent) && (owner == &spent || HasOneReference(*owner));
}

/*!
 * \brief Why a new tensor cannot lie in a donor's storage; null if it can.
 * \param donor A spent tensor, which nothing but the caller's reference should keep.
 * \param owner Of its storage, or null.
 * \param device Where the new tensor is wanted.
 * \param bytes Of the new tensor.
 */
static const char* WhyNot(const ffi::TensorObj& donor, const ffi::TensorObj* owner, DLDevice device,
                          int64_t bytes) {
  // Elsewhere `data` is a handle, of memory whose form may depend on the shape (OpenCL's textures).
  if (owner == nullptr || !ffi::IsDirectAddressDevice(donor.device)) {
    return "a view or memory that TVM does not own";
  }
  if (!IsAlone(donor, owner)) return "something else refers to it";
  if (owner->device.device_type != device.device_type ||
      owner->device.device_id != device.device_id) {
    return "on another device";
  }
  if (owner->byte_offset != 0 || !ffi::IsContiguous(*owner) ||
      !ffi::IsAligned(*owner, kAlignment)) {
    return "not aligned";
  }
  const int64_t capacity = BytesOf(*owner).value();
  if (bytes > capacity) return "too small";
  if (capacity - bytes >= PageSize() && !CanGiveBackPages(device)) return "too large";
  return nullptr;
}

/*! \brief Waits for a device if a spent tensor that the caller alone refers to is to be dropped. */
static void WaitBeforeDropping(const ffi::TensorObj& spent, const ffi::TensorObj* owner) {
  if (IsHost(spent.device) || !HasOneReference(spent)) return;
  if (owner == nullptr || owner == &spent || HasOneReference(*owner)) WaitForStream(spent.device);
}

/*!
 * \brief A new tensor: in the storage of a spent one if nothing else refers to that, else with
 *        memory of its own.
 *
 * Whether it is so is asked of the reference counts as they are now: what the compiler believes of
 * them does not matter. Nothing is written: the kernel that makes the new tensor may read the old.
 * On a device the two are in the order of this thread's stream; what other streams read was waited
 * for before (vm.builtin.wait_for_readers). A donor that is refused is dropped by the caller, and
 * what this stream does with it is waited for here.
 *
 * \param donor The spent tensor, which the caller's reference alone keeps; or None.
 * \param beside A tensor on the device where the new one is wanted; None for the host.
 * \param shape Of the new one.
 * \param dtype Of the new one.
 * \throws ValueError Says what was given. Nothing has been allocated.
 */
static ffi::Tensor DonateStorage(std::optional<const ffi::TensorObj*> donor,
                                 std::optional<const ffi::TensorObj*> beside, ffi::Shape shape,
                                 DLDataType dtype) {
  // Pointers, not ffi::Tensor: a reference of our own would be one too many.
  const DLDevice device = beside.has_value() ? (*beside)->device : DLDevice{kDLCPU, 0};
  const int64_t bytes = RequireSize(shape, dtype, "vm.builtin.donate_storage");
  const char* why_not = "first of its size";
  ffi::Tensor made;
  if (donor.has_value()) {
    const ffi::TensorObj& spent = **donor;
    const ffi::TensorObj* owner = StorageOwner(spent);
    why_not = WhyNot(spent, owner, device, bytes);
    if (why_not == nullptr) {
      made = TensorInStorage(*owner, shape, dtype);
    } else {
      WaitBeforeDropping(spent, owner);
    }
  }
  if (why_not != nullptr) made = AllocateTensor(shape, dtype, device);
  TellAllocated(bytes, why_not == nullptr ? "" : why_not);
  return made;
}

/*!
 * \brief Lets the next kernel move the pages of a tensor instead of copying them (pages.h);
 *        nothing if something else refers to it, or if they are not its own.
 *
 * For a kernel that reads each byte of it at most once.
 *
 * \param tensor One that is spent when the kernel is done; the caller's reference alone keeps it.
 */
static void OfferPages(const ffi::TensorObj* tensor) {
  const ffi::TensorObj* owner = StorageOwner(*tensor);
  if (IsAlone(*tensor, owner)) SetSpent(owner->data, true);
}

/*!
 * \brief Gives back the pages of a larger storage that lie behind a tensor; nothing if something
 *        but the tensor refers to that storage.
 *
 * For when the tensor has been written and the one that it was made from is gone.
 *
 * \param tensor What donate_storage returned. References to it do not matter: none reaches further.
 */
static void ShrinkStorage(const ffi::TensorObj* tensor) {
  const ffi::TensorObj* owner = StorageOwner(*tensor);
  if (owner == nullptr || owner == tensor || !CanGiveBackPages(tensor->device)) return;
  if (!HasOneReference(*owner)) return;
  char* begin = static_cast<char*>(owner->data);
  GiveBackPages(begin + BytesOf(*tensor).value(), begin + BytesOf(*owner).value());
}

/*!
 * \brief Gives back the pages of a spent tensor; nothing if something else refers to it.
 *
 * For when it is about to be dropped: the C library keeps what is freed below a threshold, which
 * rises up to 32 MB, in holes that stay resident. On a device it waits for this thread's stream
 * instead: an error of the kernel that reads it would come in the destructor of the tensor.
 *
 * \param tensor The spent tensor, which the caller's reference alone keeps. It is left undefined.
 * \throws What the device reports.
 */
static void ReleaseStorage(const ffi::TensorObj* tensor) {
  const ffi::TensorObj* owner = StorageOwner(*tensor);
  WaitBeforeDropping(*tensor, owner);
  if (!IsAlone(*tensor, owner) || !CanGiveBackPages(tensor->device)) return;
  char* begin = static_cast<char*>(owner->data);
  GiveBackPages(begin, begin + BytesOf(*owner).value());
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register("vm.builtin.donate_storage", DonateStorage);
  Register("vm.builtin.offer_pages", OfferPages);
  Register("vm.builtin.shrink_storage", ShrinkStorage);
  Register("vm.builtin.release_storage", ReleaseStorage);
  Register("relax_inplace.AllocateTensor", AllocateTensor);
}

}  // namespace relax_inplace
