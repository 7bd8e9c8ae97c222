// Pages of host memory, and when the system has them back.
#ifndef RELAX_INPLACE_HOST_PAGES_H_
#define RELAX_INPLACE_HOST_PAGES_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>

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

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_HOST_PAGES_H_
