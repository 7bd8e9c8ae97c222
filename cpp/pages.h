// Pages of host memory: when the system has them back, and how they go from a tensor to another.
#ifndef RELAX_INPLACE_PAGES_H_
#define RELAX_INPLACE_PAGES_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <memory>
#include <string>

#include "file_range.h"

namespace relax_inplace {

/*! \brief Bytes of a page. */
int64_t PageSize();

/*! \brief Whether GiveBackPages does something for memory of a device. */
bool CanGiveBackPages(DLDevice device);

/*!
 * \brief Gives the whole pages in [begin, end) back: they read as zeros, and take memory again when
 *        they are written. Nothing if there are none.
 */
void GiveBackPages(char* begin, char* end);

/*! \brief Where the bytes of a tensor are, if it has not been read. */
struct Unread {
  std::unique_ptr<FileRange> file;
  std::string name;  // of the file and the tensor, for errors

  /*! \throws RuntimeError if they could not be read. \param error What the file has returned. */
  void RequireRead(int error) const;
};

/*!
 * \brief Memory for a short while, of whole pages, which the system has back at once: of a heap
 * what is freed may stay.
 */
class ScratchPages {
 public:
  /*! \brief `data` is null if there is no memory; its bytes are of any value. */
  explicit ScratchPages(int64_t bytes);
  ~ScratchPages();
  ScratchPages(const ScratchPages&) = delete;
  ScratchPages& operator=(const ScratchPages&) = delete;

  char* data() const { return data_; }

 private:
  int64_t bytes_;
  char* data_;
};

/*!
 * \brief Pages from the system, which has them back when this is destroyed: of a heap what is freed
 *        may stay.
 *
 * Large ones begin at an address of huge pages, and are made of those where the system has them.
 */
class OwnedPages {
 public:
  /*! \return Null for few bytes, where there are too many of these, or if there is no memory. */
  static std::unique_ptr<OwnedPages> Allocate(int64_t bytes);
  ~OwnedPages();
  OwnedPages(const OwnedPages&) = delete;
  OwnedPages& operator=(const OwnedPages&) = delete;

  char* data() const { return data_; }

 private:
  friend void SetSpent(const void* memory, bool is_spent);
  friend bool MovePages(char* from, char* to, int64_t bytes);
  friend Unread* UnreadAt(const void* memory);
  OwnedPages(char* data, int64_t bytes);
  static OwnedPages* At(const void* memory);
  bool MayGetAreas(int64_t more);

  char* data_;
  int64_t bytes_;
  bool is_spent_ = false;
  bool is_one_area_ = true;  // to the system: what has been moved into it is another
  int64_t areas_ = 0;        // at most
  Unread unread_;
};

/*!
 * \brief Of a tensor with pages of its own, the file that has its bytes still; there is none if it
 *        has been read, or was never in one. Whoever reads it takes the file away.
 * \param memory The first byte of the tensor.
 * \return Null if it has no such pages.
 */
Unread* UnreadAt(const void* memory);

/*!
 * \brief Says whether nobody will read memory again once what is moved from it has been moved: the
 *        next kernel is the last that reads it. Nothing if it lies in no OwnedPages.
 */
void SetSpent(const void* memory, bool is_spent);

/*!
 * \brief Moves bytes by exchanging pages, where both memories lie in OwnedPages, the source is
 *        spent, and their places in a page agree; the ends that are no whole pages are copied.
 *
 * The pages of the source read as zeros afterwards. The tensors of both memories must be kept
 * meanwhile, and used by this thread alone.
 *
 * \return Whether it has been done; if not, nothing has changed.
 * \throws RuntimeError if the system has failed on the way: the bytes may be lost.
 */
bool MovePages(char* from, char* to, int64_t bytes);

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_PAGES_H_
