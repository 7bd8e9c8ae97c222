// The functions of CUDA's driver that TVM's runtime has no function for.
#ifndef RELAX_INPLACE_CUDA_DRIVER_H_
#define RELAX_INPLACE_CUDA_DRIVER_H_

#include <cstddef>
#include <cstdint>

namespace relax_inplace {

/*!
 * \brief The driver, if this process has loaded it, as TVM's CUDA runtime does.
 *
 * Looked up by name: this library is built without CUDA, and runs without it. Each returns a
 * CUresult, 0 for success, and acts on the context that is current in the calling thread.
 */
struct CudaDriver {
  int (*synchronize)();  // cuCtxSynchronize
  int (*copy_to_device)(uint64_t to, const void* from, size_t bytes,
                        void* stream);  // cuMemcpyHtoDAsync

  /*! \brief The driver; null if it is not loaded, or lacks one of them. */
  static const CudaDriver* Loaded();
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_CUDA_DRIVER_H_
