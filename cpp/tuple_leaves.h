// The tensors in a tuple, through nested ones, and who else refers to them.
#ifndef RELAX_INPLACE_TUPLE_LEAVES_H_
#define RELAX_INPLACE_TUPLE_LEAVES_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace relax_inplace {

/*! \brief A tensor of a tuple: where it is, and how often. */
struct TensorOfTuple {
  const tvm::ffi::TensorObj* tensor;
  std::string path;             // of the first place, such as "[0][3]"
  std::vector<int64_t> leaves;  // all its places, counted through nested tuples

  /*! \brief References to it that are not in the tuple. */
  int64_t outside() const {
    return tvm::ffi::GetRef<tvm::ffi::Tensor>(tensor).use_count() - 1 -
           static_cast<int64_t>(leaves.size());
  }
};

/*! \brief The tensors of a tuple, each once, in the order of their first places. */
class TensorsOfTuple {
 public:
  explicit TensorsOfTuple(const tvm::ffi::ArrayObj& tuple) { CollectFields(tuple, ""); }

  const std::vector<TensorOfTuple>& tensors() const { return tensors_; }
  /*! \brief How many fields there are that are no tuples, tensors or not. */
  int64_t leaves() const { return leaves_; }

 private:
  void CollectFields(const tvm::ffi::ArrayObj& tuple, const std::string& path) {
    int64_t index = 0;
    for (const tvm::ffi::Any& field : tuple) {
      Collect(field, path + "[" + std::to_string(index++) + "]");
    }
  }

  void Collect(const tvm::ffi::Any& value, const std::string& path) {
    if (const auto* fields = value.as<tvm::ffi::ArrayObj>()) {
      CollectFields(*fields, path);
      return;
    }
    const int64_t leaf = leaves_++;
    if (const auto* tensor = value.as<tvm::ffi::TensorObj>()) {
      const auto [entry, is_new] = position_.emplace(tensor, tensors_.size());
      if (is_new) tensors_.push_back({tensor, path, {}});
      tensors_[entry->second].leaves.push_back(leaf);
    }
  }

  std::vector<TensorOfTuple> tensors_;
  std::unordered_map<const tvm::ffi::TensorObj*, size_t> position_;
  int64_t leaves_ = 0;
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_TUPLE_LEAVES_H_
