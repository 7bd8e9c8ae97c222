// Waiting for a device: before its memory is taken, freed, or read by others.
#ifndef RELAX_INPLACE_DEVICE_H_
#define RELAX_INPLACE_DEVICE_H_

#include <tvm/ffi/tvm_ffi.h>

namespace relax_inplace {

/*! \brief Whether work on a device is done when the call that asks for it returns. */
inline bool IsHost(DLDevice device) { return device.device_type == kDLCPU; }

/*! \throws ValueError if there is no such type: TVM looks it up in an array, wherever that ends. */
void RequireDeviceType(DLDevice device);

/*!
 * \brief Waits until a device has done what this thread's current stream was given.
 * \throws The error of a kernel, or whatever the device reports. Nothing on the host.
 */
void WaitForStream(DLDevice device);

/*!
 * \brief Waits for the stream if a field of a tuple that is about to be replaced is the last
 *        reference to memory of a device.
 *
 * For an error of the kernel that reads it: in the destructor of a tensor it would end the process.
 * And for memory of other owners: they may use it again at once.
 *
 * \param field A copy of it.
 */
void WaitBeforeFreeing(const tvm::ffi::Any& field);

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_DEVICE_H_
