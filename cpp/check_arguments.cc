// The check of all arguments of a function that updates a tuple, before anything changes. A module
// calls it first, so its name is the message for a process that lacks this library (registry.h).
//
// The types come as JSON, made when the function was compiled:
//
//   {"known": k, "own": m, "params": [{"name": "params", "type": T}, ...], "overwrites": [leaf,
//   ...]}
//
//   T  [T, ...]                                         a tuple of these fields
//      {"kind": "tensor", "dtype": "float16" or null, "ndim": n or -1, "shape": [D, ...] or null,
//       "device": [type, id] or null}
//      {"kind": "shape", "values": [D, ...] or null, "ndim": n or -1}
//      {"kind": "prim", "dtype": "int64"}
//      {"kind": "callable"}
//      {"kind": "slots", "size": n}                     a tuple to fill, with anything in it
//      {"kind": "any"}
//   D  an integer; [i], the size i of a symbolic shape, 0 <= i < k + m; null, of which nothing is
//      known here
//
// Sizes below k are given; the others are defined by the first dimension that has them. A leaf is a
// type that is no tuple: leaves are counted through nested tuples, over all parameters.
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

/*! \brief Brackets in brackets: the parser, and what is made of its result, are recursive. */
static constexpr int kMaxDepth = 1000;
/*! \brief Of what is wrong, this much is said. */
static constexpr size_t kMaxListed = 8;

[[noreturn]] static void Malformed(const std::string& what) {
  TVM_FFI_THROW(InternalError) << "relax_inplace: malformed types of arguments: " << what
                               << "; compile the module again";
}

template <typename T>
static T As(const ffi::Any& value, const char* what) {
  if (const std::optional<T> found = value.as<T>()) return *found;
  Malformed(std::string(what) + " is `" + value.GetTypeKey() + "`");
}

template <typename T>
static T Member(const json::Object& object, const char* key) {
  const auto found = object.find(ffi::String(key));
  if (found == object.end()) Malformed("there is no \"" + std::string(key) + "\"");
  return As<T>((*found).second, key);
}

/*! \brief A member that may be null. */
template <typename T>
static std::optional<T> OptionalMember(const json::Object& object, const char* key) {
  const auto value = Member<ffi::Any>(object, key);
  if (value.type_index() == ffi::TypeIndex::kTVMFFINone) return std::nullopt;
  return As<T>(value, key);
}

static json::Object ParseTypes(const ffi::String& text) {
  int depth = 0;
  bool is_quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text.data()[i];
    if (is_quoted && c == '\\') {
      ++i;
    } else if (c == '"') {
      is_quoted = !is_quoted;
    } else if (!is_quoted) {
      depth += (c == '[' || c == '{') - (c == ']' || c == '}');
      if (depth > kMaxDepth)
        Malformed("they are nested more than " + std::to_string(kMaxDepth) + " deep");
    }
  }
  ffi::String error;
  const json::Value parsed = json::Parse(text, &error);
  if (!error.empty()) Malformed("no JSON, " + std::string(error));
  return As<json::Object>(parsed, "all of them");
}

/*! \brief A size that dimensions share; `where` says which was the first. */
struct Size {
  std::optional<int64_t> value;
  std::string where;
};

/*! \brief The bytes that a leaf's tensor lies in, [begin, end). */
struct Bytes {
  uintptr_t begin;
  uintptr_t end;
  int64_t leaf;
  std::string path;
};

/*! \brief Whether a tensor's data is an address, rather than the handle of a buffer. */
static bool HasAddress(DLDevice device) {
  switch (device.device_type) {
    case kDLCPU:
    case kDLCUDA:
    case kDLCUDAHost:
    case kDLCUDAManaged:
    case kDLROCM:
    case kDLROCMHost:
      return true;
    default:
      return false;
  }
}

/*! \brief "cuda:0" */
static std::string DeviceText(int64_t type, int64_t id) {
  static const std::unordered_map<int64_t, const char*> names = {
      {kDLCPU, "cpu"},       {kDLCUDA, "cuda"},       {kDLCUDAHost, "cuda_host"},
      {kDLOpenCL, "opencl"}, {kDLVulkan, "vulkan"},   {kDLMetal, "metal"},
      {kDLROCM, "rocm"},     {kDLHexagon, "hexagon"}, {kDLWebGPU, "webgpu"}};
  const auto name = names.find(type);
  return (name != names.end() ? name->second : "device type " + std::to_string(type)) + ":" +
         std::to_string(id);
}

/*! \brief Goes through the arguments, and collects what is wrong with them. */
class ArgumentCheck {
 public:
  ArgumentCheck(ffi::Shape known, int64_t own) : first_own_(known.size()) {
    for (int64_t size : known) sizes_.push_back({size, ""});
    sizes_.resize(known.size() + own);
  }

  /*! \brief Checks a value, and counts the leaves of its type. */
  void Check(const ffi::Any& type, ffi::AnyView value, const std::string& path) {
    if (const auto fields = type.as<json::Array>()) {
      CheckTuple(*fields, value, path);
      return;
    }
    const int64_t leaf = leaves_++;
    const auto members = As<json::Object>(type, "a type");
    const auto kind = Member<ffi::String>(members, "kind");
    if (kind == "tensor") {
      CheckTensor(members, value, path, leaf);
    } else if (kind == "shape") {
      CheckShape(members, value, path);
    } else if (kind == "prim") {
      CheckNumber(Member<ffi::String>(members, "dtype"), value, path);
    } else if (kind == "callable") {
      if (value.as<ffi::FunctionObj>() == nullptr && value.GetTypeKey() != "relax.vm.Closure") {
        WrongKind(path, "callable", value);
      }
    } else if (kind == "slots") {
      CheckSlots(Member<int64_t>(members, "size"), value, path);
    } else if (kind == "any") {
      if (const auto* tuple = value.as<ffi::ArrayObj>()) IsNewTuple(*tuple, path, false);
    } else {
      Malformed("there is no kind \"" + std::string(kind) + "\"");
    }
  }

  /*! \brief Checks that no other leaf can see what is written to these. */
  void CheckOverwrites(const json::Array& leaves) {
    std::vector<bool> is_overwritten(leaves_, false);
    for (const ffi::Any& one : leaves) {
      const auto leaf = As<int64_t>(one, "overwrites");
      if (leaf < 0 || leaf >= leaves_) Malformed("there is no leaf " + std::to_string(leaf));
      is_overwritten[leaf] = true;
    }
    if (leaves.empty()) return;
    std::sort(bytes_.begin(), bytes_.end(), [](const Bytes& one, const Bytes& other) {
      return std::make_pair(one.begin, one.leaf) < std::make_pair(other.begin, other.leaf);
    });
    std::set<std::pair<int64_t, int64_t>> said;
    const Bytes* furthest = nullptr;  // of those that begin before
    for (size_t i = 0; i < bytes_.size(); ++i) {
      const Bytes& one = bytes_[i];
      const Bytes* other = nullptr;
      if (furthest != nullptr && furthest->end > one.begin) {
        other = furthest;
      } else if (i + 1 < bytes_.size() && bytes_[i + 1].begin < one.end) {
        other = &bytes_[i + 1];
      }
      if (furthest == nullptr || one.end > furthest->end) furthest = &one;
      if (!is_overwritten[one.leaf] || other == nullptr) continue;
      if (!said.insert(std::minmax(one.leaf, other->leaf)).second) continue;
      Wrong() << "overwrites the data of " << one.path << ", which " << other->path
              << " holds too; pass a copy of one of them";
    }
  }

  /*! \brief Throws what was found to be wrong. */
  void ThrowIfWrong(const ffi::String& function) const {
    if (wrong_.empty()) return;
    std::ostringstream text;
    text << "function `" << function << "`";
    if (wrong_.size() == 1) {
      text << " " << wrong_.front().str() << ". No field has changed";
    } else {
      text << " cannot use its arguments: " << wrong_.size()
           << " things are wrong. No field has changed";
      for (size_t i = 0; i < std::min(wrong_.size(), kMaxListed); ++i) {
        text << "\n  it " << wrong_[i].str();
      }
      if (wrong_.size() > kMaxListed) text << "\n  and " << wrong_.size() - kMaxListed << " more";
    }
    if (has_wrong_kind_) TVM_FFI_THROW(TypeError) << text.str();
    TVM_FFI_THROW(ValueError) << text.str();
  }

  /*! \brief The sizes that the arguments define. */
  ffi::Shape OwnSizes() const {
    std::vector<int64_t> own;
    for (size_t i = first_own_; i < sizes_.size(); ++i) {
      if (!sizes_[i].value) Malformed("no dimension defines the size " + std::to_string(i));
      own.push_back(*sizes_[i].value);
    }
    return ffi::Shape(own);
  }

 private:
  /*! \brief What begins with a verb, of which the function is the subject. */
  std::ostringstream& Wrong() { return wrong_.emplace_back(); }

  void WrongKind(const std::string& path, const std::string& expected, ffi::AnyView value,
                 const std::string& what_to_do = "") {
    has_wrong_kind_ = true;
    Wrong() << "expects " << path << " to be " << expected << ", but got `" << value.GetTypeKey()
            << "`" << what_to_do;
  }

  void CountLeaves(const ffi::Any& type) {
    if (const auto fields = type.as<json::Array>()) {
      for (const ffi::Any& field : *fields) CountLeaves(field);
    } else {
      ++leaves_;
    }
  }

  /*! \brief Whether a tuple has not been seen; it is one thing, wherever it stands. */
  bool IsNewTuple(const ffi::ArrayObj& tuple, const std::string& path, bool is_updated) {
    if (tuple.empty()) return true;  // nothing in it can change
    const auto [seen, is_new] = tuples_.emplace(&tuple, std::make_pair(path, is_updated));
    if (is_new || !(is_updated || seen->second.second)) return true;
    Wrong() << "is given one tuple twice, as " << seen->second.first << " and as " << path
            << ", where an update of one would change the other; pass a copy as one of them";
    return false;
  }

  void CheckTuple(const json::Array& fields, ffi::AnyView value, const std::string& path) {
    const auto* tuple = value.as<ffi::ArrayObj>();
    if (tuple == nullptr) {
      WrongKind(path, "a tuple of " + std::to_string(fields.size()) + " fields", value);
    } else if (tuple->size() != fields.size()) {
      Wrong() << "expects " << path << " to be a tuple of " << fields.size()
              << " fields, but got one of " << tuple->size();
    } else if (IsNewTuple(*tuple, path, true)) {
      for (size_t i = 0; i < fields.size(); ++i) {
        Check(fields[i], (*tuple)[i], path + "[" + std::to_string(i) + "]");
      }
      return;
    }
    for (const ffi::Any& field : fields) CountLeaves(field);
  }

  void CheckSlots(int64_t size, ffi::AnyView value, const std::string& path) {
    const auto* tuple = value.as<ffi::ArrayObj>();
    const std::string slots = std::to_string(size);
    if (tuple == nullptr) {
      WrongKind(path, "a tuple to fill, of " + slots + " slots", value,
                "; pass tvm_ffi.Array([None] * " + slots + ")");
    } else if (static_cast<int64_t>(tuple->size()) != size) {
      Wrong() << "expects " << path << " to be a tuple to fill, with a slot for each of its "
              << size << " outputs, but got one of " << tuple->size();
    } else {
      IsNewTuple(*tuple, path, true);
    }
  }

  void CheckTensor(const json::Object& type, ffi::AnyView value, const std::string& path,
                   int64_t leaf) {
    const auto dtype = OptionalMember<ffi::String>(type, "dtype");
    const auto dims = OptionalMember<json::Array>(type, "shape");
    const auto ndim = Member<int64_t>(type, "ndim");
    const auto* object = value.as<ffi::TensorObj>();
    if (object == nullptr) {  // None too
      std::string expected = "a Tensor";
      if (dims) expected += " of shape " + Text(*dims);
      if (!dims && ndim >= 0) expected += " of " + std::to_string(ndim) + " dimensions";
      if (dtype)
        expected += (dims || ndim >= 0 ? " and dtype " : " of dtype ") + std::string(*dtype);
      WrongKind(path, expected, value);
      return;
    }
    const auto tensor = ffi::GetRef<ffi::Tensor>(object);
    if (dtype && tensor.dtype() != ffi::StringToDLDataType(*dtype)) {
      Wrong() << "expects " << path << " to have dtype " << *dtype << ", but got "
              << ffi::DLDataTypeToString(tensor.dtype());
    }
    CheckSizes(dims, ndim, tensor.shape(), path);
    if (const auto device = OptionalMember<json::Array>(type, "device")) {
      CheckDevice(*device, object->device, path);
    }
    if (!tensor.IsContiguous() || object->byte_offset != 0) {
      Wrong() << "updates its argument in place: " << path
              << " is not contiguous from the first byte of its data (shape "
              << Text(tensor.shape()) << ", strides " << Text(tensor.strides()) << ", byte_offset "
              << object->byte_offset << "); copy it before the call";
      return;
    }
    const size_t bytes = ffi::GetDataSize(*object);
    if (bytes == 0 || object->data == nullptr) return;
    const auto begin = reinterpret_cast<uintptr_t>(object->data);
    bytes_.push_back({begin, begin + (HasAddress(object->device) ? bytes : 1), leaf, path});
  }

  void CheckDevice(const json::Array& expected, DLDevice given, const std::string& path) {
    if (expected.size() != 2) Malformed("a device has a type and an id");
    const auto type = As<int64_t>(expected[0], "device");
    const auto id = As<int64_t>(expected[1], "device");
    if (type == given.device_type && id == given.device_id) return;
    Wrong() << "expects " << path << " to be on " << DeviceText(type, id) << ", but got one on "
            << DeviceText(given.device_type, given.device_id);
  }

  void CheckShape(const json::Object& type, ffi::AnyView value, const std::string& path) {
    const auto dims = OptionalMember<json::Array>(type, "values");
    const auto ndim = Member<int64_t>(type, "ndim");
    if (const auto* shape = value.as<ffi::ShapeObj>()) {
      CheckSizes(dims, ndim, ffi::ShapeView(shape->data, shape->size), path);
    } else {
      WrongKind(path, dims ? "the Shape " + Text(*dims) : "a Shape", value);
    }
  }

  /*! \brief As TVM's vm.builtin.check_prim_value_info: by what can be converted. */
  void CheckNumber(const ffi::String& dtype, ffi::AnyView value, const std::string& path) {
    const DLDataType expected = ffi::StringToDLDataType(dtype);
    bool is_number = true;
    if (expected.code == kDLInt || expected.code == kDLUInt) {
      is_number = value.try_cast<int64_t>().has_value();
    } else if (expected.code == kDLFloat || expected.code == kDLBfloat) {
      is_number = value.try_cast<double>().has_value();
    } else if (expected.code == kDLBool) {
      is_number = value.try_cast<bool>().has_value();
    }
    if (!is_number) WrongKind(path, "a number of dtype " + std::string(dtype), value);
  }

  /*! \brief The size that a dimension has to have; null if nothing is known of it. */
  Size* SizeOf(const ffi::Any& dim) {
    if (dim.type_index() == ffi::TypeIndex::kTVMFFINone) return nullptr;
    if (const auto index = dim.as<json::Array>()) {
      const int64_t i = index->size() == 1 ? As<int64_t>((*index)[0], "a size") : -1;
      if (i >= 0 && i < static_cast<int64_t>(sizes_.size())) return &sizes_[i];
      Malformed("a dimension has a size that there is not");
    }
    static_size_ = {As<int64_t>(dim, "a dimension"), ""};
    return &static_size_;
  }

  /*! \brief "(4, ?)", with the sizes that are defined by now. */
  std::string Text(const json::Array& dims) {
    std::string text = "(";
    for (size_t i = 0; i < dims.size(); ++i) {
      const Size* size = SizeOf(dims[i]);
      if (i > 0) text += ", ";
      text += size != nullptr && size->value ? std::to_string(*size->value) : "?";
    }
    return text + (dims.size() == 1 ? ",)" : ")");
  }

  static std::string Text(ffi::ShapeView shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i) {
      text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    }
    return text + (shape.size() == 1 ? ",)" : ")");
  }

  void CheckSizes(const std::optional<json::Array>& dims, int64_t ndim, ffi::ShapeView given,
                  const std::string& path) {
    const int64_t rank = dims ? static_cast<int64_t>(dims->size()) : ndim;
    if (rank >= 0 && rank != static_cast<int64_t>(given.size())) {
      Wrong() << "expects " << path << " to have " << rank << " dimensions"
              << (dims ? ", " + Text(*dims) : "") << ", but got " << Text(given);
      return;
    }
    if (!dims) return;
    bool is_wrong = false;
    std::string why;
    for (size_t i = 0; i < given.size(); ++i) {
      Size* expected = SizeOf((*dims)[i]);
      if (expected == nullptr || expected->value == given[i]) continue;
      if (!expected->value) {
        *expected = {given[i], "dimension " + std::to_string(i) + " of " + path};
        continue;
      }
      is_wrong = true;
      if ((*dims)[i].type_index() == ffi::TypeIndex::kTVMFFIInt) continue;
      why += ", where " + std::to_string(*expected->value) + " is " +
             (expected->where.empty() ? "given by other arguments" : expected->where);
    }
    if (!is_wrong) return;
    Wrong() << "expects " << path << " to have shape " << Text(*dims) << why << ", but got "
            << Text(given);
  }

  size_t first_own_;
  std::vector<Size> sizes_;
  Size static_size_;
  int64_t leaves_ = 0;
  std::vector<Bytes> bytes_;
  // Where each tuple stands, and whether it may be updated there.
  std::unordered_map<const ffi::ArrayObj*, std::pair<std::string, bool>> tuples_;
  std::vector<std::ostringstream> wrong_;
  bool has_wrong_kind_ = false;
};

/*!
 * \brief Checks the arguments of a function that updates a tuple.
 *
 * TVM's own checks come one by one, of one field at a time, with no name for it; they read None as
 * an object; and strides and byte_offset are the kernels' to check, when fields have been replaced.
 *
 * \param args The function's name; the types, as above; the sizes that are known; the arguments
 *        that the types are of.
 * \param result The sizes that the arguments define, as a Shape.
 * \throws TypeError or ValueError Says all that is wrong. Nothing has changed.
 */
static void CheckArguments(ffi::PackedArgs args, ffi::Any* result) {
  TVM_FFI_CHECK(args.size() >= 3, TypeError)
      << "relax_inplace: the check of arguments takes a name, types, sizes and the arguments";
  const auto function = args[0].cast<ffi::String>();
  const auto text = args[1].cast<ffi::String>();
  const auto known = args[2].cast<ffi::Shape>();
  const json::Object types = ParseTypes(text);
  const auto params = Member<json::Array>(types, "params");
  const auto own = Member<int64_t>(types, "own");
  if (Member<int64_t>(types, "known") != static_cast<int64_t>(known.size())) {
    Malformed("there are " + std::to_string(known.size()) + " known sizes");
  }
  // No more sizes than there is text to name them: what follows allocates them.
  if (own < 0 || own > static_cast<int64_t>(text.size()))
    Malformed("there cannot be " + std::to_string(own) + " own sizes");
  if (static_cast<int64_t>(params.size()) != args.size() - 3) {
    Malformed("of " + std::to_string(params.size()) + " arguments, but there are " +
              std::to_string(args.size() - 3));
  }
  ArgumentCheck check(known, own);
  for (size_t i = 0; i < params.size(); ++i) {
    const auto param = As<json::Object>(params[i], "a parameter");
    const auto name = Member<ffi::String>(param, "name");
    check.Check(Member<ffi::Any>(param, "type"), args[3 + i], "`" + std::string(name) + "`");
  }
  check.CheckOverwrites(Member<json::Array>(types, "overwrites"));
  check.ThrowIfWrong(function);
  *result = check.OwnSizes();
}

TVM_FFI_STATIC_INIT_BLOCK() { RegisterPacked(kBuiltins, CheckArguments); }

}  // namespace relax_inplace
