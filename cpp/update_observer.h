// Who is told about updates: at most one observer in a thread, for the length of a call.
#ifndef RELAX_INPLACE_UPDATE_OBSERVER_H_
#define RELAX_INPLACE_UPDATE_OBSERVER_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>

namespace relax_inplace {

/*! \brief Observes the updates that are made in this thread while it exists. */
class UpdateObserver {
 public:
  /*!
   * \param callback Is told (tuple, index, bytes in, bytes out, freed): the tuple's address, the
   *        field, the bytes of its new and of its old tensors, -1 bytes in if the slot was emptied,
   *        and whether the old ones are freed as soon as it returns. What it throws, the update
   *        throws, when it is done.
   */
  explicit UpdateObserver(tvm::ffi::Function callback);
  ~UpdateObserver();
  UpdateObserver(const UpdateObserver&) = delete;
  UpdateObserver& operator=(const UpdateObserver&) = delete;

  /*! \brief The observer of this thread; null if nobody listens. */
  static UpdateObserver* Current();

  /*! \brief Tells of an update; `old` is the last reference that the tuple's slot held. */
  void Updated(const tvm::ffi::ArrayObj& tuple, int64_t index, tvm::ffi::AnyView value,
               const tvm::ffi::Any& old) const;

 private:
  tvm::ffi::Function callback_;
  UpdateObserver* outer_;
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_UPDATE_OBSERVER_H_
