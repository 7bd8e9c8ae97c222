// Whose memory a tensor lies in, and who else refers to it.
#ifndef RELAX_INPLACE_STORAGE_H_
#define RELAX_INPLACE_STORAGE_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <optional>
#include <string>

namespace relax_inplace {

/*! \brief The bytes of a tensor; none if there can be no such tensor, whatever the memory. */
std::optional<int64_t> BytesOf(tvm::ffi::ShapeView shape, DLDataType dtype);
std::optional<int64_t> BytesOf(const DLTensor& tensor);

/*! \brief "float32"; or, of what tvm-ffi cannot say and throws, its numbers. For messages. */
std::string Text(DLDataType dtype);

/*!
 * \brief The tensor that frees the memory that a tensor lies in, where that is known.
 *
 * It is the tensor itself if AllocateTensor made it, or TVM's runtime has allocated it by itself
 * (tvm.runtime.empty and its like), and another for one that donate_storage has made in its
 * storage. A view, memory that was imported by DLPack, and a tensor in a storage of the virtual
 * machine's allocator, which may hold others, have no owner here: who else refers to that memory
 * cannot be told.
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
 * \brief A tensor with memory of its own: OwnedPages if it can have them, else from TVM's runtime,
 *        and not from a pool.
 */
tvm::ffi::Tensor AllocateTensor(const tvm::ffi::Shape& shape, DLDataType dtype, DLDevice device);

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_STORAGE_H_
