// Whose memory a tensor lies in, and who else refers to it.
#ifndef RELAX_INPLACE_STORAGE_OWNER_H_
#define RELAX_INPLACE_STORAGE_OWNER_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>

namespace relax_inplace {

/*!
 * \brief The tensor that frees the memory that a tensor lies in, where that is known.
 *
 * It is the tensor itself if AllocateTensor made it, or TVM's runtime has allocated it by itself
 * (tvm.runtime.empty and its like), and another for one that TensorInStorage has made. A view,
 * memory that was imported by DLPack, and a tensor in a storage of the virtual machine's allocator,
 * which may hold others, have no owner here: who else refers to that memory cannot be told.
 *
 * \param tensor Any tensor.
 * \return The owner; null if it is not known.
 */
const tvm::ffi::TensorObj* StorageOwner(const tvm::ffi::TensorObj& tensor);

/*!
 * \brief Whether nothing but one reference keeps an object, not even a weak one.
 *
 * What other threads have read by references that they have dropped, they have read before this.
 */
bool HasOneReference(const tvm::ffi::Object& object);

/*!
 * \brief A tensor in the storage of another, from its first byte.
 * \param owner What StorageOwner returned. The new tensor keeps it alive.
 * \param shape Of the new tensor, which is compact.
 * \param dtype Of the new tensor; its bytes are not more than the owner's.
 */
tvm::ffi::Tensor TensorInStorage(const tvm::ffi::TensorObj& owner, tvm::ffi::ShapeView shape,
                                 DLDataType dtype);

/*!
 * \brief A tensor with memory of its own: OwnedPages if it can have them, else from TVM's runtime,
 *        and not from a pool.
 */
tvm::ffi::Tensor AllocateTensor(const tvm::ffi::Shape& shape, DLDataType dtype, DLDevice device);

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_STORAGE_OWNER_H_
