// What stands in a tuple, at any depth.
#ifndef RELAX_INPLACE_TUPLE_FIELDS_H_
#define RELAX_INPLACE_TUPLE_FIELDS_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace relax_inplace {

/*! \brief Where something stands: a field, a field of that, and so on. */
using Path = std::vector<int64_t>;

/*! \brief "[0][3]" */
inline std::string Text(const Path& path) {
  std::string text;
  for (const int64_t index : path) text += "[" + std::to_string(index) + "]";
  return text;
}

/*!
 * \brief Calls visit(value, path) for a value, and, where one is a tuple, for all that stands in
 *        it, in order.
 *
 * A tuple is gone into where it stands first: there may be 2^n ways to it, or one from itself.
 */
template <typename F>
void ForEachIn(tvm::ffi::AnyView value, F&& visit) {
  std::vector<const tvm::ffi::ArrayObj*> open;  // no recursion: a tuple may be of any depth
  std::unordered_set<const tvm::ffi::ArrayObj*> seen;
  Path path;
  const auto enter = [&](tvm::ffi::AnyView one) {
    visit(one, path);
    const auto* fields = one.as<tvm::ffi::ArrayObj>();
    if (fields == nullptr || !seen.insert(fields).second) return false;
    open.push_back(fields);
    path.push_back(0);
    return true;
  };
  enter(value);
  while (!open.empty()) {
    const tvm::ffi::ArrayObj& fields = *open.back();
    if (path.back() == static_cast<int64_t>(fields.size())) {
      open.pop_back();
      path.pop_back();
    } else if (enter(fields.begin()[path.back()])) {
      continue;
    }
    if (!path.empty()) ++path.back();
  }
}

/*! \brief A tensor of a tuple: where it is, and how often. */
struct TensorOfTuple {
  const tvm::ffi::TensorObj* tensor;
  std::string path;             // of the first place, such as "[0][3]"
  std::vector<int64_t> leaves;  // all its places, counted through nested tuples

  /*! \brief References to it that are not in the tuple. */
  int64_t outside() const {
    return static_cast<int64_t>(tensor->use_count()) - static_cast<int64_t>(leaves.size());
  }
};

/*! \brief The tensors of a tuple, each once, in the order of their first places. */
class TensorsOfTuple {
 public:
  explicit TensorsOfTuple(const tvm::ffi::ArrayObj& tuple) {
    ForEachIn(&tuple, [this](tvm::ffi::AnyView value, const Path& path) {
      if (value.as<tvm::ffi::ArrayObj>() != nullptr) return;
      const int64_t leaf = leaves_++;
      const auto* tensor = value.as<tvm::ffi::TensorObj>();
      if (tensor == nullptr) return;
      const auto [entry, is_new] = position_.emplace(tensor, tensors_.size());
      if (is_new) tensors_.push_back({tensor, Text(path), {}});
      tensors_[entry->second].leaves.push_back(leaf);
    });
  }

  const std::vector<TensorOfTuple>& tensors() const { return tensors_; }
  /*! \brief How many fields there are that are no tuples, tensors or not. */
  int64_t leaves() const { return leaves_; }

 private:
  std::vector<TensorOfTuple> tensors_;
  std::unordered_map<const tvm::ffi::TensorObj*, size_t> position_;
  int64_t leaves_ = 0;
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_TUPLE_FIELDS_H_
