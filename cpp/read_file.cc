// relax_inplace.ReadFile: bytes of a file into a tensor, by several threads.
// relax_inplace.ReadLater: a tensor whose bytes stay in their file until a kernel moves them;
// relax_inplace.ReadNow: or until they are read into it; relax_inplace.Prefetch: soon.
#include <tvm/ffi/tvm_ffi.h>

#include <climits>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "device.h"
#include "file_range.h"
#include "pages.h"
#include "processors.h"
#include "registry.h"
#include "storage.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief The memory of a tensor that is to be read. */
static char* MemoryToFill(const char* where, const ffi::TensorObj& tensor) {
  TVM_FFI_CHECK(IsHost(tensor.device) && BytesOf(tensor).has_value() && ffi::IsContiguous(tensor),
                ValueError)
      << where << ": expected a contiguous tensor on the host; read into one, and copy it";
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

/*! \brief Where the bytes of a tensor are, checked. */
static std::unique_ptr<FileRange> RangeOf(const char* where, const ffi::TensorObj& tensor,
                                          int64_t descriptor, int64_t offset) {
  constexpr int64_t kMostOffset = int64_t{1} << 62;  // a few numbers below it have a sum
  TVM_FFI_CHECK(descriptor >= 0 && descriptor <= INT_MAX && offset >= 0 && offset < kMostOffset,
                ValueError)
      << where << ": expected the descriptor of an open file and an offset in it, but got "
      << descriptor << " and " << offset << "; open the file";
  return std::make_unique<FileRange>(static_cast<int>(descriptor), offset, *BytesOf(tensor));
}

/*!
 * \brief Fills a tensor with bytes of a file.
 * \param descriptor Of the open file.
 * \param offset Of the first byte in it.
 * \return 0; -1 if the file ends before; else the system's error number.
 */
static int64_t ReadFile(const ffi::TensorObj* tensor, int64_t descriptor, int64_t offset) {
  char* memory = MemoryToFill("relax_inplace.ReadFile", *tensor);
  const int64_t bytes = *BytesOf(*tensor);
  if (bytes == 0) return 0;
  const auto file = RangeOf("relax_inplace.ReadFile", *tensor, descriptor, offset);
  return file->ReadAll(memory, ThreadsToMove(bytes));
}

/*!
 * \brief Says that the bytes of a tensor are in a file still: the kernel that moves it reads them.
 *
 * Nothing else may read or write the tensor before ReadNow: only weights that a module names are
 * for this (relax_inplace/lower/tensor_trace.py, moved_weights).
 *
 * \param tensor What AllocateTensor has made, not filled.
 * \param descriptor Of the open file. It may be closed then.
 * \param offset Of the first byte in it.
 * \param name Of the file and the tensor, for errors.
 * \return Whether it is so; if not, the tensor has no pages of its own, or the file cannot be kept
 *         open: read it now.
 */
static bool ReadLater(const ffi::TensorObj* tensor, int64_t descriptor, int64_t offset,
                      const ffi::String& name) {
  const char* memory = MemoryToFill("relax_inplace.ReadLater", *tensor);
  auto file = RangeOf("relax_inplace.ReadLater", *tensor, descriptor, offset);
  Unread* const unread = UnreadAt(memory);
  if (unread == nullptr || !file->is_open()) return false;
  *unread = {std::move(file), name};
  return true;
}

/*! \brief What ReadLater has said of a tensor; null if nothing, or if it has been read. */
static Unread* UnreadOf(const char* where, const ffi::TensorObj& tensor) {
  Unread* const unread = UnreadAt(MemoryToFill(where, tensor));
  return unread != nullptr && unread->file != nullptr ? unread : nullptr;
}

/*!
 * \brief Reads a tensor that ReadLater has left in its file: from now on it is any tensor.
 * \throws RuntimeError The file cannot be read, or has changed. The tensor is still to be read.
 */
static void ReadNow(const ffi::TensorObj* tensor) {
  Unread* const unread = UnreadOf("relax_inplace.ReadNow", *tensor);
  if (unread == nullptr) return;
  char* memory = MemoryToFill("relax_inplace.ReadNow", *tensor);
  unread->RequireRead(unread->file->ReadAll(memory, ThreadsToMove(unread->file->bytes())));
  *unread = {};
}

/*! \brief Asks the system for the first bytes of such a tensor, which will be needed soon. */
static void Prefetch(const ffi::TensorObj* tensor) {
  const Unread* unread = UnreadOf("relax_inplace.Prefetch", *tensor);
  if (unread != nullptr) unread->file->Prefetch();
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register("relax_inplace.ReadFile", ReadFile);
  Register("relax_inplace.ReadLater", ReadLater);
  Register("relax_inplace.ReadNow", ReadNow);
  Register("relax_inplace.Prefetch", Prefetch);
}

}  // namespace relax_inplace
