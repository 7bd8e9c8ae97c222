// vm.builtin.check_memory_limit: what a function promised to need, where it is called.
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <unordered_set>

#include "registry.h"
#include "storage_owner.h"
#include "tuple_leaves.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief Whether a new tensor may lie in a spent one's memory, if nothing else refers to it. */
static bool MayBeTakenOver(const ffi::TensorObj& tensor) {
  const ffi::TensorObj* owner = StorageOwner(tensor);
  return owner != nullptr && (owner == &tensor || HasOneReference(*owner));
}

/*!
 * \brief Checks that the peak of a function that converts weights is within its limit.
 *
 * The peak was planned for weights that are freed once they are spent. One that something else
 * refers to is not: its bytes are added. And it was planned for weights whose memory new ones can
 * lie in. If one is no tensor that TVM has allocated for itself, the other peak counts.
 *
 * \param function The function's name.
 * \param limit Bytes that live memory may take, the weights included.
 * \param peak Bytes that it takes at most, by the plan.
 * \param otherwise Bytes that it takes at most if no weight's memory can be taken over.
 * \param kept The weights that the function does not free, counted through nested tuples.
 * \param tuple The weights; None if they are loaded one by one.
 * \throws ValueError Names the figures, and the weights that are held elsewhere.
 */
static void CheckMemoryLimit(const ffi::String& function, int64_t limit, int64_t peak,
                             int64_t otherwise, const ffi::Shape& kept, ffi::AnyView tuple) {
  const bool is_streamed = tuple.type_index() == ffi::TypeIndex::kTVMFFINone;
  const auto* fields = tuple.as<ffi::ArrayObj>();
  TVM_FFI_CHECK(is_streamed || fields != nullptr, TypeError)
      << "vm.builtin.check_memory_limit: expected a tuple (ffi.Array), but got `"
      << tuple.GetTypeKey() << "`";
  const std::unordered_set<int64_t> stays(kept.begin(), kept.end());
  int64_t held = 0;
  int64_t held_count = 0;
  std::ostringstream held_names;
  std::string imported;
  if (!is_streamed) {
    const TensorsOfTuple found(*fields);
    for (const TensorOfTuple& one : found.tensors()) {
      if (imported.empty() && !MayBeTakenOver(*one.tensor)) imported = one.path;
      const bool is_kept = std::any_of(one.leaves.begin(), one.leaves.end(),
                                       [&stays](int64_t leaf) { return stays.count(leaf) > 0; });
      if (one.outside() == 0 || is_kept) continue;
      held += static_cast<int64_t>(ffi::GetDataSize(*one.tensor));
      if (++held_count <= 4) held_names << (held_count > 1 ? ", " : "") << one.path;
    }
  }
  std::ostringstream why;
  if (!imported.empty() && otherwise > peak) {
    peak = otherwise;
    why << ", as no new one can lie in a weight that was imported (field " << imported << ")";
  }
  if (peak + held <= limit) return;
  if (held_count > 0) {
    why << ", and " << held << " bytes for " << held_count
        << " weights that something else refers to, so that they cannot be freed (fields "
        << held_names.str() << (held_count > 4 ? ", ..." : "") << ")";
  }
  TVM_FFI_THROW(ValueError) << "function `" << function << "` would need " << peak + held
                            << " bytes: " << peak << " by its plan" << why.str()
                            << ". Its memory_limit is " << limit << ". No field has changed";
}

TVM_FFI_STATIC_INIT_BLOCK() { Register("vm.builtin.check_memory_limit", CheckMemoryLimit); }

}  // namespace relax_inplace
