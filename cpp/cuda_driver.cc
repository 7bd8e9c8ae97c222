// The driver is searched for among the libraries that are loaded, and never loaded.
#include "cuda_driver.h"

#if defined(__unix__)
#include <dlfcn.h>
#endif

namespace relax_inplace {

#if defined(__unix__)

const CudaDriver* CudaDriver::Loaded() {
  static CudaDriver driver;
  static const bool is_there = [] {
    void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return false;
    driver.synchronize = reinterpret_cast<int (*)()>(dlsym(library, "cuCtxSynchronize"));
    driver.copy_to_device = reinterpret_cast<int (*)(uint64_t, const void*, size_t, void*)>(
        dlsym(library, "cuMemcpyHtoDAsync_v2"));
    return driver.synchronize != nullptr && driver.copy_to_device != nullptr;
  }();
  return is_there ? &driver : nullptr;
}

#else

const CudaDriver* CudaDriver::Loaded() { return nullptr; }

#endif

}  // namespace relax_inplace
