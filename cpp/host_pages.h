// Pages of host memory that are given back to the system while their addresses stay allocated.
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

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_HOST_PAGES_H_
