// vm.builtin.wait_for_readers: before spent weights on a device are taken.
// relax_inplace.WaitForStream, CopyToDevice, AbandonTensors: what relax_inplace.runtime waits by.
#include "device_wait.h"

#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "cuda_driver.h"
#include "registry.h"
#include "storage_owner.h"
#include "tuple_leaves.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

static void WaitFor(DLDevice device, int64_t stream) {
  static const char* name = "runtime.Device_StreamSync";
  const ffi::Optional<ffi::Function> wait = ffi::Function::GetGlobal(name);
  TVM_FFI_CHECK(wait.has_value(), RuntimeError)
      << "relax_inplace: this process has no `" << name << "`: TVM's runtime is not loaded; import "
      << "tvm first";
  wait.value()(device, stream);
}

void WaitForStream(DLDevice device) {
  if (IsHost(device)) return;
  WaitFor(device,
          reinterpret_cast<int64_t>(TVMFFIEnvGetStream(device.device_type, device.device_id)));
}

void WaitForDevice(DLDevice device) {
  if (IsHost(device)) return;
  WaitForStream(device);  // first: it makes the device the current one
  const CudaDriver* driver = device.device_type == kDLCUDA ? CudaDriver::Loaded() : nullptr;
  if (driver == nullptr) {
    AllocateTensor({1}, DLDataType{kDLUInt, 8, 1}, device);  // to free memory waits for all streams
    return;
  }
  const int result = driver->synchronize();
  if (result == 0) return;
  WaitForStream(device);  // TVM says what it is, as the device goes on reporting it
  TVM_FFI_THROW(RuntimeError) << "CUDA: cuCtxSynchronize failed with CUresult " << result;
}

static bool IsLastButTheSlot(const ffi::TensorObj& tensor, int64_t references) {
  return ffi::GetRef<ffi::Tensor>(&tensor).use_count() - 1 <= references;
}

void WaitBeforeFreeing(const ffi::Any& field) {
  if (const auto* tensor = field.as<ffi::TensorObj>()) {
    // Its slot, and the copy that we are given.
    if (!IsHost(tensor->device) && IsLastButTheSlot(*tensor, 2)) WaitForStream(tensor->device);
  } else if (const auto* fields = field.as<ffi::ArrayObj>()) {
    const TensorsOfTuple found(*fields);
    for (const TensorOfTuple& one : found.tensors()) {
      WaitForStream(one.tensor->device);
    }
  }
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
 * \param args Tensors, and tuples of them.
 * \param result To be kept until the last storage has been taken. None if nothing is on a device.
 * \throws What the device reports. Nothing has changed.
 */
static void WaitForReaders(ffi::PackedArgs args, ffi::Any* result) {
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
  *result = shared.empty() ? ffi::Any(nullptr)
                           : ffi::Any(ffi::Function::FromTyped([shared = std::move(shared)]() {}));
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
static bool CopyToDevice(const ffi::Tensor& from, const ffi::Tensor& to, int64_t stream) {
  const CudaDriver* driver = CudaDriver::Loaded();
  if (to.device().device_type != kDLCUDA || driver == nullptr) return false;
  TVM_FFI_CHECK(
      IsHost(from.device()) && from.IsContiguous() && to.IsContiguous() &&
          ffi::GetDataSize(*from.GetDLTensorPtr()) == ffi::GetDataSize(*to.GetDLTensorPtr()),
      ValueError)
      << "relax_inplace.CopyToDevice: expected a tensor of the host and one of as many bytes, both "
      << "contiguous";
  WaitFor(to.device(), stream);  // makes its device the current one
  const auto address = [](const ffi::Tensor& one) {
    return static_cast<char*>(one.data_ptr()) + one.byte_offset();
  };
  const int result = driver->copy_to_device(reinterpret_cast<uint64_t>(address(to)), address(from),
                                            ffi::GetDataSize(*to.GetDLTensorPtr()),
                                            reinterpret_cast<void*>(stream));
  WaitFor(to.device(), stream);
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
static void AbandonTensors(ffi::AnyView tuple) {
  const auto* array = tuple.as<ffi::ArrayObj>();
  if (array == nullptr) return;
  auto* fields = const_cast<ffi::ArrayObj*>(array);
  for (int64_t i = 0; i < static_cast<int64_t>(fields->size()); ++i) {
    ffi::Any field = (*fields)[i];
    if (const auto* tensor = field.as<ffi::TensorObj>()) {
      if (IsHost(tensor->device)) continue;
      TVMFFIAny kept = ffi::details::AnyUnsafe::MoveAnyToTVMFFIAny(std::move(field));
      static_cast<void>(kept);
      fields->SetItem(i, ffi::Any(nullptr));
    } else {
      AbandonTensors(field);
    }
  }
}

TVM_FFI_STATIC_INIT_BLOCK() {
  RegisterPacked("vm.builtin.wait_for_readers", WaitForReaders);
  Register("relax_inplace.WaitForStream", WaitForStream);
  Register("relax_inplace.WaitForDevice", WaitForDevice);
  Register("relax_inplace.CopyToDevice", CopyToDevice);
  Register("relax_inplace.AbandonTensors", AbandonTensors);
}

}  // namespace relax_inplace
