// vm.builtin.wait_for_readers: before spent weights on a device are taken.
// relax_inplace.WaitForStream, WaitForDevice, CopyToDevice, AbandonTensors: what
// relax_inplace.runtime waits by.
#include "device.h"

#include <dlfcn.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "registry.h"
#include "storage.h"
#include "tuple_fields.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*!
 * \brief The functions of CUDA's driver that TVM's runtime has no function for.
 *
 * Each returns a CUresult, 0 for success, and acts on the context that is current in the calling
 * thread.
 */
struct CudaDriver {
  int (*synchronize)();  // cuCtxSynchronize
  int (*copy_to_device)(uint64_t to, const void* from, size_t bytes,
                        void* stream);  // cuMemcpyHtoDAsync

  /*!
   * \brief The driver, if this process has loaded it by now, as TVM's CUDA runtime does when it is
   *        used first; it is never loaded here. None if it lacks one of them.
   */
  static std::optional<CudaDriver> Loaded() {
    void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);  // stays: it is called
    if (library == nullptr) return std::nullopt;
    const CudaDriver driver{reinterpret_cast<int (*)()>(dlsym(library, "cuCtxSynchronize")),
                            reinterpret_cast<int (*)(uint64_t, const void*, size_t, void*)>(
                                dlsym(library, "cuMemcpyHtoDAsync_v2"))};
    if (driver.synchronize == nullptr || driver.copy_to_device == nullptr) return std::nullopt;
    return driver;
  }
};

void RequireDeviceType(DLDevice device) {
  constexpr int kEnd = 36;  // TVMDeviceExtType_End, tvm/runtime/device_api.h
  TVM_FFI_CHECK(0 < device.device_type && device.device_type < kEnd, ValueError)
      << "relax_inplace: there is no device type " << device.device_type
      << "; pass a device, or a tensor on one, that TVM knows";
}

static void WaitFor(DLDevice device, int64_t stream) {
  RequireDeviceType(device);
  FunctionOfTVM("runtime.Device_StreamSync")(device, stream);
}

void WaitForStream(DLDevice device) {
  if (IsHost(device)) return;
  WaitFor(device,
          reinterpret_cast<int64_t>(TVMFFIEnvGetStream(device.device_type, device.device_id)));
}

/*!
 * \brief Waits until a device has done what all of its streams were given.
 *
 * TVM's runtime has a function for one stream only, and its streams do not wait for the default one
 * (cudaStreamNonBlocking, src/backend/cuda/runtime/cuda_device_api.cc).
 *
 * \throws As WaitForStream.
 */
static void WaitForDevice(DLDevice device) {
  if (IsHost(device)) return;
  WaitForStream(device);  // first: it makes the device the current one
  const auto driver = device.device_type == kDLCUDA ? CudaDriver::Loaded() : std::nullopt;
  if (!driver) {
    AllocateTensor({1}, DLDataType{kDLUInt, 8, 1}, device);  // to free memory waits for all streams
    return;
  }
  const int result = driver->synchronize();
  if (result == 0) return;
  WaitForStream(device);  // TVM says what it is, as the device goes on reporting it
  TVM_FFI_THROW(RuntimeError) << "CUDA: cuCtxSynchronize failed with CUresult " << result;
}

void WaitBeforeFreeing(const ffi::Any& field) {
  const bool is_tensor = field.as<ffi::TensorObj>() != nullptr;
  ForEachIn(field, [&](ffi::AnyView value, const Path&) {
    const auto* tensor = value.as<ffi::TensorObj>();
    if (tensor == nullptr || IsHost(tensor->device)) return;
    // Its slot, and the copy that we are given.
    if (!is_tensor || tensor->use_count() <= 2) WaitForStream(tensor->device);
  });
}

/*!
 * \brief Waits until nothing reads or writes the tensors of the arguments that the caller alone
 *        refers to, and keeps the others from being taken.
 *
 * Their storage may be taken from now on (vm.builtin.donate_storage), in the order of this thread's
 * stream. What is read on another stream has to be finished by then: one wait for the device does
 * that for whatever was asked for before. A tensor that something else refers to may be read later,
 * too, until that reference is dropped. A weak reference to it, in what is returned, says so to
 * donate_storage; when it is freed, the device is waited for anyhow.
 *
 * \param args Tuples of tensors; what is none is left alone.
 * \return To be kept until the last storage has been taken. None if nothing is on a device.
 * \throws What the device reports. Nothing has changed.
 */
static ffi::Any WaitForReaders(ffi::PackedArgs args) {
  std::vector<ffi::WeakObjectPtr<ffi::TensorObj>> shared;
  std::vector<DLDevice> devices;
  for (int32_t i = 0; i < args.size(); ++i) {
    const auto* tuple = args[i].as<ffi::ArrayObj>();
    if (tuple == nullptr) continue;
    const TensorsOfTuple found(*tuple);
    for (const TensorOfTuple& one : found.tensors()) {
      const DLDevice device = one.tensor->device;
      if (IsHost(device) || !ffi::IsDirectAddressDevice(device)) continue;
      bool is_known = false;
      for (const DLDevice& other : devices) {
        is_known = is_known ||
                   (other.device_type == device.device_type && other.device_id == device.device_id);
      }
      if (!is_known) devices.push_back(device);
      const ffi::TensorObj* owner = StorageOwner(*one.tensor);
      const bool is_owned = owner == nullptr || owner == one.tensor || HasOneReference(*owner);
      if (one.outside() > 0 || !is_owned) {
        shared.emplace_back(
            ffi::GetObjectPtr<ffi::TensorObj>(const_cast<ffi::TensorObj*>(one.tensor)));
      }
    }
  }
  // After the references were counted: what is dropped in between has been asked for before.
  for (const DLDevice& device : devices) WaitForDevice(device);
  if (shared.empty()) return ffi::Any();
  return ffi::Function::FromTyped([shared = std::move(shared)]() {});
}

/*!
 * \brief Copies a tensor of the host to a CUDA device, on a stream, and waits for that stream
 * alone.
 *
 * TVM's own copies are on the default stream (Tensor::CopyFromTo of src/runtime/tensor.cc), so that
 * none runs beside a kernel there.
 *
 * \param from Of the host, contiguous.
 * \param to Of as many bytes, contiguous, which nothing uses yet.
 * \param stream Of its device.
 * \return Whether it was copied: not without CUDA's driver, nor to another kind of device.
 */
static bool CopyToDevice(const ffi::TensorObj* from, const ffi::TensorObj* to, int64_t stream) {
  const auto driver = to->device.device_type == kDLCUDA ? CudaDriver::Loaded() : std::nullopt;
  if (!driver) return false;
  const auto bytes = BytesOf(*to);
  TVM_FFI_CHECK(IsHost(from->device) && bytes.has_value() && BytesOf(*from) == bytes &&
                    ffi::IsContiguous(*from) && ffi::IsContiguous(*to) &&
                    (bytes == 0 || (from->data != nullptr && to->data != nullptr)),
                ValueError)
      << "relax_inplace.CopyToDevice: expected a tensor of the host and one of as many bytes, both "
      << "contiguous";
  WaitFor(to->device, stream);  // makes its device the current one
  const auto address = [](const DLTensor& one) {
    return static_cast<char*>(one.data) + one.byte_offset;
  };
  const int result =
      driver->copy_to_device(reinterpret_cast<uint64_t>(address(*to)), address(*from),
                             static_cast<size_t>(*bytes), reinterpret_cast<void*>(stream));
  WaitFor(to->device, stream);
  TVM_FFI_CHECK(result == 0, RuntimeError)
      << "CUDA: cuMemcpyHtoDAsync failed with CUresult " << result;
  return true;
}

/*!
 * \brief Empties the slots of a tuple, at any depth, whose tensors are on a device that has failed.
 *
 * These are never freed: to free memory of a device that reports an error throws, in a destructor,
 * which ends the process.
 */
static void AbandonTensors(const ffi::ArrayObj* tuple) {
  ForEachIn(tuple, [](ffi::AnyView value, const Path&) {
    const auto* array = value.as<ffi::ArrayObj>();
    if (array == nullptr) return;
    auto* fields = const_cast<ffi::ArrayObj*>(array);
    for (int64_t i = 0; i < static_cast<int64_t>(fields->size()); ++i) {
      ffi::Any field = fields->begin()[i];
      const auto* tensor = field.as<ffi::TensorObj>();
      if (tensor == nullptr || IsHost(tensor->device)) continue;
      static_cast<void>(ffi::details::AnyUnsafe::MoveAnyToTVMFFIAny(std::move(field)));
      fields->SetItem(i, ffi::Any(nullptr));
    }
  });
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register("vm.builtin.wait_for_readers", WaitForReaders);
  Register("relax_inplace.WaitForStream", WaitForStream);
  Register("relax_inplace.WaitForDevice", WaitForDevice);
  Register("relax_inplace.CopyToDevice", CopyToDevice);
  Register("relax_inplace.AbandonTensors", AbandonTensors);
}

}  // namespace relax_inplace
