#include "checkpoint.h"

#include <tvm/ffi/extra/json.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "../../cpp/parse_object.h"

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

constexpr const char* kMark = "relax_inplace.converted";  // relax_inplace/runtime/mark.py
constexpr uint64_t kLargestHeader = 100'000'000;          // Hugging Face's own limit

[[noreturn]] static void Refuse(const std::string& where, const std::string& what) {
  throw std::runtime_error(where + ": " + what);
}

// -- JSON of which nothing is known ---------------------------------------------------------------

static json::Object ParseJson(const std::string& text, const std::string& where) {
  std::string error;
  const auto object = relax_inplace::ParseObject(text, &error);
  if (!object.has_value()) Refuse(where, "expected a JSON object (" + error + ")");
  return *object;
}

/*! \brief A member; None if it is not there. */
static ffi::Any Find(const json::Object& object, const char* key) {
  const auto found = object.find(ffi::String(key));
  return found == object.end() ? ffi::Any(nullptr) : (*found).second;
}

template <typename T>
static T As(const ffi::Any& value, const std::string& where, const std::string& what) {
  const auto found = value.try_cast<T>();
  if (value == nullptr || !found.has_value()) {
    Refuse(where, what + " is `" + value.GetTypeKey() + "`, expected another type");
  }
  return *found;
}

template <typename T>
static T Member(const json::Object& object, const char* key, const std::string& where) {
  return As<T>(Find(object, key), where, std::string("`") + key + "`");
}

static uint64_t Size(const ffi::Any& value, const std::string& where, const std::string& what) {
  const auto size = As<int64_t>(value, where, what);
  if (size < 0) Refuse(where, what + " is " + std::to_string(size));
  return static_cast<uint64_t>(size);
}

static std::vector<int64_t> ShapeOf(const json::Object& entry, const std::string& where) {
  std::vector<int64_t> shape;
  for (const ffi::Any& size : Member<json::Array>(entry, "shape", where)) {
    shape.push_back(static_cast<int64_t>(Size(size, where, "a size of its shape")));
  }
  return shape;
}

// -- Files ----------------------------------------------------------------------------------------

/*! \brief A regular file that is open, and its size. A FIFO would be waited for. */
static std::ifstream OpenRegular(const std::string& path, uint64_t* size) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) Refuse(path, "no such file");
  std::ifstream file(path, std::ios::binary);
  *size = std::filesystem::file_size(path, error);
  if (!file || error) Refuse(path, "it cannot be read");
  return file;
}

static std::string ReadText(std::ifstream* file, uint64_t bytes, const std::string& where) {
  std::string text(bytes, '\0');
  if (!file->read(text.data(), static_cast<std::streamsize>(bytes)))
    Refuse(where, "it is cut short");
  return text;
}

static json::Object ReadManifest(const std::string& path) {
  uint64_t size = 0;
  std::ifstream file = OpenRegular(path, &size);
  if (size > kLargestHeader) Refuse(path, "it has " + std::to_string(size) + " bytes");
  return ParseJson(ReadText(&file, size, path), path);
}

/*! \brief A file beside a manifest, which names it: nothing outside of that folder. */
static std::string Beside(const std::string& manifest, const std::string& name) {
  const std::filesystem::path relative(name);
  const bool leaves = std::find(relative.begin(), relative.end(), "..") != relative.end();
  if (name.empty() || relative.is_absolute() || leaves || name.find('\0') != std::string::npos) {
    Refuse(manifest, "expected the names of files in its folder, but one is `" + name + "`");
  }
  return (std::filesystem::path(manifest).parent_path() / relative).string();
}

/*! \brief Refuses a range that a file of that size does not have. */
static void RequireWithin(uint64_t offset, uint64_t nbytes, uint64_t size,
                          const std::string& where) {
  if (offset > size || nbytes > size - offset) {
    Refuse(where, "its " + std::to_string(nbytes) + " bytes from " + std::to_string(offset) +
                      " on are not in the file, which has " + std::to_string(size));
  }
}

// -- The formats ----------------------------------------------------------------------------------

/*! \brief Hugging Face's names of TVM's types, as in
 * relax_inplace/runtime/checkpoint/safetensors.py. */
static std::string DtypeOfSafetensors(const std::string& name) {
  static const std::unordered_map<std::string, std::string> names = {
      {"BOOL", "bool"},
      {"I8", "int8"},
      {"I16", "int16"},
      {"I32", "int32"},
      {"I64", "int64"},
      {"U8", "uint8"},
      {"U16", "uint16"},
      {"U32", "uint32"},
      {"U64", "uint64"},
      {"F16", "float16"},
      {"F32", "float32"},
      {"F64", "float64"},
      {"BF16", "bfloat16"},
      {"F8_E4M3", "float8_e4m3fn"},
      {"F8_E4M3FNUZ", "float8_e4m3fnuz"},
      {"F8_E5M2", "float8_e5m2"},
      {"F8_E5M2FNUZ", "float8_e5m2fnuz"},
      {"F8_E8M0", "float8_e8m0fnu"}};
  const auto found = names.find(name);
  return found == names.end() ? name : found->second;
}

Checkpoint::Checkpoint(const std::string& path) : path_(path) {
  const std::filesystem::path folder(path);
  const std::string cache = (folder / "tensor-cache.json").string();
  const std::string single = (folder / "model.safetensors").string();
  const std::string index = (folder / "model.safetensors.index.json").string();
  std::error_code error;
  if (std::filesystem::exists(cache, error)) {
    OpenTensorCache(cache);
  } else if (std::filesystem::exists(single, error)) {
    OpenSafetensors(single);
  } else if (std::filesystem::exists(index, error)) {
    OpenIndex(index);
  } else if (folder.extension() == ".safetensors") {
    OpenSafetensors(path);
  } else {
    Refuse("no weights at " + path,
           "expected a folder with tensor-cache.json or model.safetensors, or a .safetensors file");
  }
}

/*
 * {"metadata": {...}, "records": [{"dataPath": "params_shard_0.bin", "nbytes": 96, "records": [
 *     {"name": "w0", "shape": [4, 8], "dtype": "float16", "format": "raw", "nbytes": 64,
 *      "byteOffset": 0}, ...]}]}
 */
void Checkpoint::OpenTensorCache(const std::string& manifest) {
  const json::Object document = ReadManifest(manifest);
  AddMark(Find(document, "metadata"), manifest);
  for (const ffi::Any& one : Member<json::Array>(document, "records", manifest)) {
    const auto shard = As<json::Object>(one, manifest, "a shard");
    const std::string file = Beside(manifest, Member<ffi::String>(shard, "dataPath", manifest));
    uint64_t size = 0;
    OpenRegular(file, &size);
    for (const ffi::Any& record : Member<json::Array>(shard, "records", manifest)) {
      const auto entry = As<json::Object>(record, manifest, "a record");
      StoredTensor tensor;
      tensor.info.name = Member<ffi::String>(entry, "name", manifest);
      const std::string where = manifest + ", `" + tensor.info.name + "`";
      tensor.info.dtype = Member<ffi::String>(entry, "dtype", where);
      tensor.info.shape = ShapeOf(entry, where);
      tensor.file = file;
      tensor.offset = Size(Find(entry, "byteOffset"), where, "`byteOffset`");
      tensor.nbytes = Size(Find(entry, "nbytes"), where, "`nbytes`");
      const std::string format = Member<ffi::String>(entry, "format", where);
      if (format != "raw" && format != "f32-to-bf16") Refuse(where, "its format is " + format);
      tensor.is_upper_half = format == "f32-to-bf16" && tensor.info.dtype == "float32";
      RequireWithin(tensor.offset, tensor.nbytes, size, where);
      Add(std::move(tensor));
    }
  }
}

/*
 * Eight bytes with the length of the header, the header, the weights:
 * {"__metadata__": {...}, "w0": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}, ...}
 */
void Checkpoint::OpenSafetensors(const std::string& path, const std::vector<std::string>* wanted) {
  uint64_t size = 0;
  std::ifstream file = OpenRegular(path, &size);
  if (size < 8) Refuse(path, "it has " + std::to_string(size) + " bytes, expected 8 at least");
  unsigned char prefix[8] = {};
  file.read(reinterpret_cast<char*>(prefix), sizeof(prefix));
  uint64_t length = 0;
  for (int i = 8; i-- > 0;) length = length << 8 | prefix[i];
  if (length > std::min(size - 8, kLargestHeader)) {
    Refuse(path, "its header is to have " + std::to_string(length) + " bytes of the file's " +
                     std::to_string(size));
  }
  const json::Object header = ParseJson(ReadText(&file, length, path), path);
  AddMark(Find(header, "__metadata__"), path);
  std::unordered_map<std::string, StoredTensor> found;
  for (const auto& [key, value] : header) {
    StoredTensor tensor;
    tensor.info.name = As<ffi::String>(key, path, "a name");
    if (tensor.info.name == "__metadata__") continue;
    const std::string where = path + ", `" + tensor.info.name + "`";
    const auto entry = As<json::Object>(value, where, "it");
    tensor.info.dtype = DtypeOfSafetensors(Member<ffi::String>(entry, "dtype", where));
    tensor.info.shape = ShapeOf(entry, where);
    tensor.file = path;
    const auto offsets = Member<json::Array>(entry, "data_offsets", where);
    if (offsets.size() != 2) Refuse(where, "expected two data_offsets");
    const uint64_t begin = Size(offsets[0], where, "a data offset");
    const uint64_t end = Size(offsets[1], where, "a data offset");
    if (end < begin) Refuse(where, "its end is before its beginning");
    tensor.offset = 8 + length + begin;  // each is below 2 ** 63
    tensor.nbytes = end - begin;
    RequireWithin(tensor.offset, tensor.nbytes, size, where);
    found.emplace(tensor.info.name, std::move(tensor));
  }
  if (wanted == nullptr) {
    for (auto& one : found) Add(std::move(one.second));
    return;
  }
  for (const std::string& name : *wanted) {
    const auto one = found.find(name);
    if (one == found.end()) Refuse(path, "it has no `" + name + "`, which the index says it has");
    Add(one->second);
  }
}

/* {"metadata": {...}, "weight_map": {"w0": "model-00001-of-00002.safetensors", ...}} */
void Checkpoint::OpenIndex(const std::string& index) {
  const json::Object document = ReadManifest(index);
  AddMark(Find(document, "metadata"), index);
  std::unordered_map<std::string, std::vector<std::string>> placed;
  for (const auto& [name, file] : Member<json::Object>(document, "weight_map", index)) {
    placed[Beside(index, As<ffi::String>(file, index, "a file"))].push_back(
        As<ffi::String>(name, index, "a name"));
  }
  for (const auto& [file, names] : placed) OpenSafetensors(file, &names);
}

void Checkpoint::Add(StoredTensor tensor) {
  const std::string name = tensor.info.name;
  if (!tensors_.emplace(name, std::move(tensor)).second) {
    Refuse(path_, "it has two weights `" + name + "`");
  }
}

/*! \brief Notes the mark of a file; all files have to have the same. */
void Checkpoint::AddMark(const ffi::Any& metadata, const std::string& where) {
  std::optional<std::string> layout;
  if (const auto object = metadata.as<json::Object>()) {
    const ffi::Any mark = Find(*object, kMark);
    if (mark != nullptr) {
      const std::string in_mark = where + ", the mark of converted weights";
      const json::Object fields = ParseJson(As<ffi::String>(mark, in_mark, "it"), in_mark);
      layout = Member<ffi::String>(fields, "layout", in_mark);
    }
  }
  if (!is_first_ && layout != layout_) {
    Refuse(where, "its weights were converted in another way than those of other files");
  }
  layout_ = layout;
  is_first_ = false;
}

// -- Reading --------------------------------------------------------------------------------------

std::string TensorInfo::TypeText() const {
  std::string text = dtype + " [";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

/*! \brief Makes float32 numbers of their upper halves, which are in the upper half of the memory.
 */
static void Widen(char* memory, size_t nbytes) {
  for (size_t i = 0; i < nbytes / 4; ++i) {
    char number[4] = {};
    std::memcpy(number + 2, memory + nbytes / 2 + 2 * i, 2);
    std::memcpy(memory + 4 * i, number, 4);
  }
}

ffi::Tensor Checkpoint::Read(const TensorInfo& wanted) const {
  const auto found = tensors_.find(wanted.name);
  if (found == tensors_.end()) Refuse(path_, "it has no weight `" + wanted.name + "`");
  const StoredTensor& stored = found->second;
  const std::string where = "weight `" + wanted.name + "` in " + path_;
  if (stored.info.TypeText() != wanted.TypeText()) {
    throw std::runtime_error(where + " is " + stored.info.TypeText() + ", but the module takes " +
                             wanted.TypeText());
  }
  const ffi::Function allocate =
      ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  const auto tensor = allocate(ffi::Shape(wanted.shape), ffi::StringToDLDataType(wanted.dtype),
                               DLDevice{kDLCPU, 0}, nullptr)
                          .cast<ffi::Tensor>();
  const size_t nbytes = ffi::GetDataSize(tensor);
  const size_t in_file = stored.is_upper_half ? nbytes / 2 : nbytes;
  if (stored.nbytes != in_file) {
    Refuse(where, "it has " + std::to_string(stored.nbytes) + " bytes in the file, expected " +
                      std::to_string(in_file));
  }
  auto* memory = static_cast<char*>(tensor.data_ptr());
  std::ifstream file(stored.file, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(stored.offset));
  file.read(memory + (nbytes - in_file), static_cast<std::streamsize>(in_file));
  if (!file) Refuse(where, "it is cut short");
  if (stored.is_upper_half) Widen(memory, nbytes);
  return tensor;
}
