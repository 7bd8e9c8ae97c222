// Weights in files: TVM's tensor cache, or Hugging Face's safetensors.
#ifndef CPP_HOST_CHECKPOINT_H_
#define CPP_HOST_CHECKPOINT_H_

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

/*! \brief What a tensor is before it exists. `dtype` is text: a file may have types that TVM has
 * not. */
struct TensorInfo {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;

  /*! \brief Such as `float16 [4, 8]`. */
  std::string TypeText() const;
};

/*! \brief A tensor in a file. */
struct StoredTensor {
  TensorInfo info;
  std::string file;
  uint64_t offset = 0;
  uint64_t nbytes = 0;         // within the file: that is checked
  bool is_upper_half = false;  // of float32 numbers, as TVM's writer stores them by default
};

/*!
 * \brief Weights in a folder or a file, of which nothing is believed before it is checked.
 *
 * To open it reads no weight. What cannot be is a std::runtime_error of one line.
 */
class Checkpoint {
 public:
  /*!
   * \brief Opens weights.
   * \param path A folder, in which we look for tensor-cache.json, model.safetensors and
   *        model.safetensors.index.json, in this order; or a .safetensors file.
   */
  explicit Checkpoint(const std::string& path);

  /*!
   * \brief The layout that weights were converted to, by the mark that
   *        relax_inplace.runtime.save_params has written; none if they are as they were stored.
   */
  const std::optional<std::string>& layout() const { return layout_; }

  /*!
   * \brief Reads a weight into memory that TVM allocates, so that it may be converted there.
   * \param wanted What it has to be; nothing is allocated for another one.
   */
  tvm::ffi::Tensor Read(const TensorInfo& wanted) const;

 private:
  void OpenTensorCache(const std::string& manifest);
  void OpenSafetensors(const std::string& file, const std::vector<std::string>* wanted = nullptr);
  void OpenIndex(const std::string& index);
  void Add(StoredTensor tensor);
  void AddMark(const tvm::ffi::Any& metadata, const std::string& where);

  std::string path_;
  std::unordered_map<std::string, StoredTensor> tensors_;
  std::optional<std::string> layout_;
  bool is_first_ = true;  // no file has said yet whether it is converted
};

#endif  // CPP_HOST_CHECKPOINT_H_
