// A CUDA device that does everything as late as it may, for tests on machines without one.
//
// Its memory is the host's. Work on a stream is only noted down, and done when something waits for
// it: StreamSync for one stream, cuCtxSynchronize and FreeDataSpace for all. So a wait that is
// missing shows as wrong numbers, each time. A kernel that fails leaves an error that every later
// call reports, as CUDA does; FreeDataSpace as TVM's does (src/backend/cuda/runtime).
//
// Its name is that of CUDA's driver (SONAME libcuda.so.1): relax_inplace finds it as such.
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/tvm_ffi.h>
#include <tvm/runtime/device_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAttrKind;

constexpr int64_t kTotal = int64_t{1} << 30;

struct Device {
  std::recursive_mutex mutex;
  std::map<void*, std::deque<std::function<void()>>> streams;
  std::unordered_map<void*, size_t> memory;
  std::vector<std::string> calls;
  int64_t used = 0;
  int64_t peak = 0;
  int error = 0;  // a sticky one

  static Device& Get() {
    static Device* one = new Device();
    return *one;
  }

  void Run(void* stream) {
    auto& queue = streams[stream];
    while (!queue.empty()) {
      const std::function<void()> work = std::move(queue.front());
      queue.pop_front();
      if (error == 0) work();
    }
  }

  void RunAll() {
    for (auto& one : streams) Run(one.first);
  }

  void Check(const char* call) {
    TVM_FFI_CHECK(error == 0, RuntimeError)
        << "CUDA Runtime Error: cudaErrorEmulated (" << error << "): " << call;
  }

  void Enqueue(void* stream, std::function<void()> work) {
    Check("launch");
    streams[stream].push_back(std::move(work));
  }
};

using Lock = std::lock_guard<std::recursive_mutex>;

class EmulatedAPI final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(tvm::Device) final {}

  void GetAttr(tvm::Device dev, DeviceAttrKind kind, ffi::Any* rv) final {
    Device& device = Device::Get();
    Lock lock(device.mutex);
    if (kind == tvm::runtime::kExist) {
      *rv = static_cast<int>(dev.device_id == 0);
    } else if (kind == tvm::runtime::kTotalGlobalMemory) {
      *rv = kTotal;
    } else if (kind == tvm::runtime::kAvailableGlobalMemory) {
      device.Check("cudaMemGetInfo");
      *rv = kTotal - device.used;
    } else {
      *rv = 1;
    }
  }

  void* AllocDataSpace(tvm::Device, size_t bytes, size_t, DLDataType) final {
    Device& device = Device::Get();
    Lock lock(device.mutex);
    device.Check("cudaMalloc");
    TVM_FFI_CHECK(device.used + static_cast<int64_t>(bytes) <= kTotal, RuntimeError)
        << "CUDA Runtime Error: cudaErrorMemoryAllocation (2): out of memory";
    void* data = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    std::memset(data, 0xA5, bytes);
    device.memory[data] = bytes;
    device.used += static_cast<int64_t>(bytes);
    device.peak = std::max(device.peak, device.used);
    return data;
  }

  void FreeDataSpace(tvm::Device, void* data) final {
    Device& device = Device::Get();
    Lock lock(device.mutex);
    device.calls.push_back("free");
    if (std::uncaught_exceptions() > 0 && device.error != 0) return;
    device.RunAll();
    device.Check("cudaFree");
    device.used -= static_cast<int64_t>(device.memory.at(data));
    std::memset(data, 0x5A, device.memory.at(data));  // what reads it now reads this
    device.memory.erase(data);
    std::free(data);
  }

  TVMStreamHandle CreateStream(tvm::Device) final {
    Device& device = Device::Get();
    Lock lock(device.mutex);
    void* stream = new char;
    device.streams[stream];
    return stream;
  }

  void FreeStream(tvm::Device, TVMStreamHandle stream) final {
    Device& device = Device::Get();
    Lock lock(device.mutex);
    device.Check("cudaStreamDestroy");
    device.Run(stream);
    device.streams.erase(stream);
    delete static_cast<char*>(stream);
  }

  void StreamSync(tvm::Device, TVMStreamHandle stream) final {
    Device& device = Device::Get();
    Lock lock(device.mutex);
    device.calls.push_back(stream == nullptr ? "wait for the default stream" : "wait for a stream");
    device.Run(stream);
    device.Check("cudaStreamSynchronize");
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t size,
                      tvm::Device, tvm::Device, DLDataType, TVMStreamHandle stream) final {
    Device& device = Device::Get();
    Lock lock(device.mutex);
    device.calls.push_back("copy on the default stream");
    device.Enqueue(stream, [=] {
      std::memcpy(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset,
                  size);
    });
  }
};

/*! \brief A kernel on the current stream: the bytes of one tensor, the other way round. */
void Reverse(const ffi::Tensor& from, const ffi::Tensor& to) {
  Device& device = Device::Get();
  Lock lock(device.mutex);
  const size_t bytes = ffi::GetDataSize(*to.GetDLTensorPtr());
  const char* source = static_cast<const char*>(from.data_ptr());
  char* target = static_cast<char*>(to.data_ptr());
  device.calls.push_back("launch");
  device.Enqueue(TVMFFIEnvGetStream(kDLCUDA, 0),
                 [=] { std::reverse_copy(source, source + bytes, target); });
}

/*! \brief A kernel that reads beyond the memory that there is. */
void Fail(const ffi::Tensor&, const ffi::Tensor&) {
  Device& device = Device::Get();
  Lock lock(device.mutex);
  device.Enqueue(TVMFFIEnvGetStream(kDLCUDA, 0), [&device] { device.error = 700; });
}

TVM_FFI_STATIC_INIT_BLOCK() {
  static EmulatedAPI* api = new EmulatedAPI();
  const auto set = [](const char* name, ffi::Function function) {
    ffi::Function::SetGlobal(name, function, true);
  };
  set("device_api.cuda", ffi::Function::FromTyped([] { return static_cast<void*>(api); }));
  set("emulated.reverse", ffi::Function::FromTyped(Reverse));
  set("emulated.fail", ffi::Function::FromTyped(Fail));
  set("emulated.repair", ffi::Function::FromTyped([] { Device::Get().error = 0; }));
  set("emulated.used", ffi::Function::FromTyped([] { return Device::Get().used; }));
  set("emulated.peak", ffi::Function::FromTyped([] {
        const int64_t peak = Device::Get().peak;
        Device::Get().peak = Device::Get().used;
        return peak;
      }));
  set("emulated.calls", ffi::Function::FromTyped([] {
        Device& device = Device::Get();
        Lock lock(device.mutex);
        ffi::Array<ffi::String> calls;
        for (const std::string& call : device.calls) calls.push_back(call);
        device.calls.clear();
        return calls;
      }));
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int cuCtxSynchronize() {
  Device& device = Device::Get();
  Lock lock(device.mutex);
  device.calls.push_back("wait for the device");
  device.RunAll();
  return device.error;
}

__attribute__((visibility("default"))) int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from,
                                                                size_t bytes, void* stream) {
  Device& device = Device::Get();
  Lock lock(device.mutex);
  device.calls.push_back("copy on a stream");
  if (device.error != 0) return device.error;
  device.streams[stream].push_back([=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
  return 0;
}
}
