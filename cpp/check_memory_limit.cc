// vm.builtin.check_memory_limit: what a function promised to need, where it is called.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

namespace {

// A tensor of the tuple: where it is first, how often, and whether it stays in one of its places.
struct Occurrence {
  const ffi::TensorObj* tensor;
  std::string path;
  int64_t count;
  bool is_kept;
};

struct Occurrences {
  std::unordered_set<int64_t> kept;
  int64_t leaves = 0;
  std::vector<Occurrence> found;
  std::unordered_map<const ffi::TensorObj*, size_t> position;

  void Collect(const ffi::Any& value, const std::string& path) {
    if (const auto* fields = value.as<ffi::ArrayObj>()) {
      int64_t index = 0;
      for (const ffi::Any& field : *fields) {
        Collect(field, path + "[" + std::to_string(index++) + "]");
      }
      return;
    }
    const bool is_kept = kept.count(leaves++) > 0;
    if (const auto* tensor = value.as<ffi::TensorObj>()) {
      const auto [entry, is_new] = position.emplace(tensor, found.size());
      if (is_new) found.push_back({tensor, path, 0, false});
      Occurrence& occurrence = found[entry->second];
      ++occurrence.count;
      occurrence.is_kept |= is_kept;
    }
  }
};

}  // namespace

/*!
 * \brief Checks that the peak of a function that converts weights is within its limit.
 *
 * The peak was planned for weights that are freed once they are spent. One that something else
 * refers to is not: its bytes are added.
 *
 * \param function The function's name.
 * \param limit Bytes that live memory may take, the weights included.
 * \param peak Bytes that it takes at most, by the plan.
 * \param kept The weights that the function does not free, counted through nested tuples.
 * \param tuple The weights; None if they are loaded one by one.
 * \throws ValueError Names the figures, and the weights that are held elsewhere.
 */
static void CheckMemoryLimit(const ffi::String& function, int64_t limit, int64_t peak,
                             const ffi::Shape& kept, ffi::AnyView tuple) {
  const bool is_streamed = tuple.type_index() == ffi::TypeIndex::kTVMFFINone;
  TVM_FFI_CHECK(is_streamed || tuple.as<ffi::ArrayObj>() != nullptr, TypeError)
      << "vm.builtin.check_memory_limit: expected a tuple (ffi.Array), but got `"
      << tuple.GetTypeKey() << "`";
  Occurrences occurrences{{kept.begin(), kept.end()}};
  if (!is_streamed) occurrences.Collect(tuple, "");
  int64_t held = 0;
  int64_t held_count = 0;
  std::ostringstream held_names;
  for (const Occurrence& occurrence : occurrences.found) {
    const int64_t references = ffi::GetRef<ffi::Tensor>(occurrence.tensor).use_count() - 1;
    if (references <= occurrence.count || occurrence.is_kept) continue;
    held += static_cast<int64_t>(ffi::GetDataSize(*occurrence.tensor));
    if (++held_count <= 4) held_names << (held_count > 1 ? ", " : "") << occurrence.path;
  }
  if (peak + held <= limit) return;
  std::ostringstream why;
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
