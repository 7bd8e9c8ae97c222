// Who is told about updates, and where new tensors lie: at most one observer in a thread, for the
// length of a call of relax_inplace.ObserveUpdates.
#ifndef RELAX_INPLACE_UPDATE_H_
#define RELAX_INPLACE_UPDATE_H_

#include <cstdint>

namespace relax_inplace {

/*!
 * \brief Tells the observer of this thread, if there is one, of a new tensor.
 * \param bytes Of it.
 * \param why_not_reused Why it does not lie in a spent one's storage; "" if it does.
 */
void TellAllocated(int64_t bytes, const char* why_not_reused);

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_UPDATE_H_
