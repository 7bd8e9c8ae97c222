// Who is told about updates, and where new tensors lie: at most one observer in a thread, for the
// length of a call.
#ifndef RELAX_INPLACE_UPDATE_OBSERVER_H_
#define RELAX_INPLACE_UPDATE_OBSERVER_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <string>
#include <unordered_map>

namespace relax_inplace {

/*! \brief Observes the updates that are made in this thread while it exists. */
class UpdateObserver {
 public:
  /*!
   * \param callback Of an update it is told (slot, bytes in, bytes out, freed): the place, such as
   * "0.3" in a nested tuple; the bytes of its new tensors, -1 if the slot was emptied, and of its
   * old ones; and whether these are about to be freed. If so it is called once more when they have
   *        been, with None. What it throws, the update throws, when it is done.
   *        Of a new tensor it is told (None, bytes, 0, why), with a text in the fourth place: why
   * it does not lie in a spent one's storage, "" if it does.
   * \param tuple Of it, and of those nested in it, updates are told.
   */
  UpdateObserver(tvm::ffi::Function callback, const tvm::ffi::ArrayObj& tuple);
  ~UpdateObserver();
  UpdateObserver(const UpdateObserver&) = delete;
  UpdateObserver& operator=(const UpdateObserver&) = delete;

  /*! \brief The observer of this thread; null if nobody listens. */
  static UpdateObserver* Current();

  /*! \brief Tells of an update; `old` is what the slot held. */
  void Updated(const tvm::ffi::ArrayObj& tuple, int64_t index, tvm::ffi::AnyView value,
               tvm::ffi::Any old) const;

  /*! \brief Tells of a new tensor. */
  void Allocated(int64_t bytes, const char* why_not_reused) const;

 private:
  void Name(const tvm::ffi::ArrayObj& tuple, const std::string& prefix);

  tvm::ffi::Function callback_;
  std::unordered_map<const tvm::ffi::ArrayObj*, std::string> prefixes_;
  UpdateObserver* outer_;
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_UPDATE_OBSERVER_H_
