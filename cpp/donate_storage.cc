// vm.builtin.donate_storage: a new tensor in the storage of a spent one.
// vm.builtin.offer_pages: what it is made of may go into it.
// vm.builtin.shrink_storage, release_storage: what is not needed of it goes back to the system.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>

#include "device_wait.h"
#include "host_pages.h"
#include "owned_pages.h"
#include "registry.h"
#include "storage_owner.h"
#include "update_observer.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

constexpr size_t kAlignment = 64;  // of what compiled kernels take (tvm/runtime/device_api.h)

static const ffi::TensorObj& RequireTensor(ffi::AnyView value, const char* builtin, int argument) {
  // A DLTensor* is borrowed: it has no references to count.
  const auto* tensor = value.as<ffi::TensorObj>();
  TVM_FFI_CHECK(tensor != nullptr, TypeError)
      << builtin << ": expected a Tensor as argument " << argument << ", but got `"
      << value.GetTypeKey() << "`";
  return *tensor;
}

/*! \brief The bytes of a tensor that is to be made. */
static int64_t RequireSize(const ffi::Shape& shape, DLDataType dtype) {
  const int64_t bits = int64_t{dtype.bits} * static_cast<int16_t>(dtype.lanes);
  TVM_FFI_CHECK(bits > 0, ValueError) << "vm.builtin.donate_storage: no tensor can be of dtype `"
                                      << ffi::DLDataTypeToString(dtype) << "`";
  int64_t total = bits;
  bool is_empty = false;
  bool overflows = false;
  for (const int64_t size : shape) {
    TVM_FFI_CHECK(size >= 0, ValueError)
        << "vm.builtin.donate_storage: no tensor can be of shape " << shape;
    is_empty = is_empty || size == 0;
    overflows = overflows || __builtin_mul_overflow(total, size, &total);
  }
  if (is_empty) return 0;
  overflows = overflows || __builtin_add_overflow(total, 7, &total);
  TVM_FFI_CHECK(!overflows, ValueError)
      << "vm.builtin.donate_storage: a tensor of shape " << shape << " and dtype `"
      << ffi::DLDataTypeToString(dtype) << "` is larger than any memory";
  return total / 8;
}

static int64_t BytesOf(const DLTensor& tensor) {
  return static_cast<int64_t>(ffi::GetDataSize(tensor));
}

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
  const int64_t capacity = BytesOf(*owner);
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
 * \throws TypeError or ValueError Says what was given. Nothing has been allocated.
 */
static ffi::Tensor DonateStorage(ffi::AnyView donor, ffi::AnyView beside, const ffi::Shape& shape,
                                 DLDataType dtype) {
  // Views, not ffi::Tensor: a reference of our own would be one too many.
  const bool is_on_host = beside.type_index() == ffi::TypeIndex::kTVMFFINone;
  const DLDevice device = is_on_host ? DLDevice{kDLCPU, 0}
                                     : RequireTensor(beside, "vm.builtin.donate_storage", 1).device;
  const int64_t bytes = RequireSize(shape, dtype);
  const char* why_not = "first of its size";
  ffi::Tensor made;
  if (donor.type_index() != ffi::TypeIndex::kTVMFFINone) {
    const ffi::TensorObj& spent = RequireTensor(donor, "vm.builtin.donate_storage", 0);
    const ffi::TensorObj* owner = StorageOwner(spent);
    why_not = WhyNot(spent, owner, device, bytes);
    if (why_not == nullptr) {
      made = TensorInStorage(*owner, shape, dtype);
    } else {
      WaitBeforeDropping(spent, owner);
    }
  }
  if (why_not != nullptr) made = AllocateTensor(shape, dtype, device);
  if (const UpdateObserver* observer = UpdateObserver::Current()) {
    observer->Allocated(bytes, why_not == nullptr ? "" : why_not);
  }
  return made;
}

/*!
 * \brief Lets the next kernel move the pages of a tensor instead of copying them (owned_pages.h);
 *        nothing if something else refers to it, or if they are not its own.
 *
 * For a kernel that reads each byte of it at most once.
 *
 * \param tensor One that is spent when the kernel is done; the caller's reference alone keeps it.
 * \throws TypeError if it is no tensor.
 */
static void OfferPages(ffi::AnyView tensor) {
  const ffi::TensorObj& spent = RequireTensor(tensor, "vm.builtin.offer_pages", 0);
  const ffi::TensorObj* owner = StorageOwner(spent);
  if (IsAlone(spent, owner)) SetSpent(owner->data, true);
}

/*!
 * \brief Gives back the pages of a larger storage that lie behind a tensor; nothing if something
 *        but the tensor refers to that storage.
 *
 * For when the tensor has been written and the one that it was made from is gone.
 *
 * \param tensor What donate_storage returned. References to it do not matter: none reaches further.
 * \throws TypeError if it is no tensor.
 */
static void ShrinkStorage(ffi::AnyView tensor) {
  const ffi::TensorObj& one = RequireTensor(tensor, "vm.builtin.shrink_storage", 0);
  const ffi::TensorObj* owner = StorageOwner(one);
  if (owner == nullptr || owner == &one || !CanGiveBackPages(one.device)) return;
  if (!HasOneReference(*owner)) return;
  char* begin = static_cast<char*>(owner->data);
  GiveBackPages(begin + BytesOf(one), begin + BytesOf(*owner));
}

/*!
 * \brief Gives back the pages of a spent tensor; nothing if something else refers to it.
 *
 * For when it is about to be dropped: the C library keeps what is freed below a threshold, which
 * rises up to 32 MB, in holes that stay resident. On a device it waits for this thread's stream
 * instead: an error of the kernel that reads it would come in the destructor of the tensor.
 *
 * \param tensor The spent tensor, which the caller's reference alone keeps. It is left undefined.
 * \throws TypeError if it is no tensor; and what the device reports.
 */
static void ReleaseStorage(ffi::AnyView tensor) {
  const ffi::TensorObj& spent = RequireTensor(tensor, "vm.builtin.release_storage", 0);
  const ffi::TensorObj* owner = StorageOwner(spent);
  WaitBeforeDropping(spent, owner);
  if (!IsAlone(spent, owner) || !CanGiveBackPages(spent.device)) return;
  char* begin = static_cast<char*>(owner->data);
  GiveBackPages(begin, begin + BytesOf(*owner));
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register("vm.builtin.donate_storage", DonateStorage);
  Register("vm.builtin.offer_pages", OfferPages);
  Register("vm.builtin.shrink_storage", ShrinkStorage);
  Register("vm.builtin.release_storage", ReleaseStorage);
}

}  // namespace relax_inplace
