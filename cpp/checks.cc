// What a compiled function checks before anything changes: all its arguments, its memory limit
// (vm.builtin.check_memory_limit), and, of a streamed transform, what the callable has returned
// (vm.builtin.check_weight, number_weight).
//
// A module checks its arguments first, so the name of that check is the message for a process that
// lacks this library (registry.h). The types come as JSON, made when the function was compiled:
//
//   {"sizes": m, "updates": b, "params": [{"name": "params", "type": T}, ...],
//    "overwrites": [leaf, ...]}
//
//   T  [T, ...]                                         a tuple of these fields
//      {"kind": "tensor", "dtype": "float16" or null, "ndim": n or -1, "shape": [D, ...] or null,
//       "device": [type, id] or null}
//      {"kind": "shape", "values": [D, ...] or null, "ndim": n or -1}
//      {"kind": "prim", "dtype": "int64", "size": D}    which defines a size, if it is [i]
//      {"kind": "callable"}
//      {"kind": "slots", "size": n}                     a tuple to fill, with anything in it
//      {"kind": "any"}
//   D  an integer; [i], the size i of a symbolic shape, 0 <= i < m; null, of which nothing is
//      known here
//
// A size is defined by the first dimension, or number, that has it. A leaf is a type that is no
// tuple: leaves are counted through nested tuples, over all parameters. A function that updates
// nothing may be given one tuple twice.
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/stl.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "parse_object.h"
#include "registry.h"
#include "storage.h"
#include "tuple_fields.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

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
  std::string error;
  const auto parsed = ParseObject(std::string(text), &error);
  if (!parsed) Malformed(error);
  return *parsed;
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

/*! \brief "(4, ?)" \param size The i-th, which may be unknown. */
template <typename F>
static std::string ShapeText(size_t ndim, F&& size) {
  std::string text = "(";
  for (size_t i = 0; i < ndim; ++i) {
    const std::optional<int64_t> known = size(i);
    text += (i > 0 ? ", " : "") + (known ? std::to_string(*known) : "?");
  }
  return text + (ndim == 1 ? ",)" : ")");
}

static ffi::ShapeView ShapeOf(const DLTensor& tensor) {
  return ffi::ShapeView(tensor.shape, static_cast<size_t>(tensor.ndim));
}

static std::string Text(ffi::ShapeView shape) {
  return ShapeText(shape.size(), [&](size_t i) { return shape[i]; });
}

/*!
 * \brief Why kernels would not find a tensor's elements where they look for them; "" if they do.
 *
 * None but the kernels check it otherwise, when fields have been replaced.
 */
static std::string WhyNotCompact(const ffi::TensorObj& tensor) {
  if (!BytesOf(tensor)) return "larger than any memory (shape " + Text(ShapeOf(tensor)) + ")";
  if (ffi::IsContiguous(tensor) && tensor.byte_offset == 0) return "";
  return "not contiguous from the first byte of its data (shape " + Text(ShapeOf(tensor)) +
         ", strides " +
         (tensor.strides == nullptr
              ? "none"
              : Text(ffi::ShapeView(tensor.strides, static_cast<size_t>(tensor.ndim)))) +
         ", byte_offset " + std::to_string(tensor.byte_offset) + ")";
}

/*! \brief Goes through the arguments, and collects what is wrong with them. */
class ArgumentCheck {
 public:
  ArgumentCheck(int64_t sizes, bool updates) : sizes_(sizes), updates_(updates) {}

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
      DefineByNumber(Member<ffi::Any>(members, "size"), value, path);
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
  ffi::Shape Sizes() const {
    std::vector<int64_t> values;
    for (const Size& size : sizes_) {
      if (!size.value) Malformed("no dimension defines the size " + std::to_string(values.size()));
      values.push_back(*size.value);
    }
    return ffi::Shape(values);
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
    } else if (IsNewTuple(*tuple, path, updates_)) {
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
      IsNewTuple(*tuple, path, updates_);
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
    if (dtype && object->dtype != ffi::StringToDLDataType(*dtype)) {
      Wrong() << "expects " << path << " to have dtype " << *dtype << ", but got "
              << relax_inplace::Text(object->dtype);
    }
    CheckSizes(dims, ndim, ShapeOf(*object), path);
    if (const auto device = OptionalMember<json::Array>(type, "device")) {
      CheckDevice(*device, object->device, path);
    }
    const std::string why_not = WhyNotCompact(*object);
    if (!why_not.empty()) {
      Wrong() << "updates its argument in place: " << path << " is " << why_not
              << "; copy it before the call";
      return;
    }
    const int64_t bytes = *BytesOf(*object);
    if (bytes == 0 || object->data == nullptr) return;
    const auto begin = reinterpret_cast<uintptr_t>(object->data);
    bytes_.push_back(
        {begin, begin + (ffi::IsDirectAddressDevice(object->device) ? bytes : 1), leaf, path});
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

  void DefineByNumber(const ffi::Any& dim, ffi::AnyView value, const std::string& path) {
    Size* size = SizeOf(dim);
    const auto given = size == nullptr ? std::nullopt : value.try_cast<int64_t>();
    if (!given || size->value == *given) return;
    if (size->value) {
      Wrong() << "expects " << path << " to be " << *size->value << ", which is " << size->where
              << ", but got " << *given;
    } else {
      *size = {*given, path};
    }
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
    return ShapeText(dims.size(), [&](size_t i) {
      const Size* size = SizeOf(dims[i]);
      return size != nullptr ? size->value : std::nullopt;
    });
  }

  void CheckSizes(const std::optional<json::Array>& dims, int64_t ndim, ffi::ShapeView given,
                  const std::string& path) {
    const int64_t rank = dims ? static_cast<int64_t>(dims->size()) : ndim;
    if (rank >= 0 && rank != static_cast<int64_t>(given.size())) {
      Wrong() << "expects " << path << " to have " << rank << " dimensions"
              << (dims ? ", " + Text(*dims) : "") << ", but got " << relax_inplace::Text(given);
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
      why += ", where " + std::to_string(*expected->value) + " is " + expected->where;
    }
    if (!is_wrong) return;
    Wrong() << "expects " << path << " to have shape " << Text(*dims) << why << ", but got "
            << relax_inplace::Text(given);
  }

  std::vector<Size> sizes_;
  bool updates_;
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
 * \param args The arguments that the types are of.
 * \param function The function's name.
 * \param text The types, as above.
 * \return The sizes that the arguments define, as a Shape.
 * \throws TypeError or ValueError Says all that is wrong. Nothing has changed.
 */
static ffi::Any CheckArguments(ffi::PackedArgs args, ffi::String function, ffi::String text) {
  const json::Object types = ParseTypes(text);
  const auto params = Member<json::Array>(types, "params");
  const auto sizes = Member<int64_t>(types, "sizes");
  // No more sizes than there is text to name them: what follows allocates them.
  if (sizes < 0 || sizes > static_cast<int64_t>(text.size())) {
    Malformed("there cannot be " + std::to_string(sizes) + " sizes");
  }
  if (static_cast<int64_t>(params.size()) != args.size()) {
    Malformed("of " + std::to_string(params.size()) + " arguments, but there are " +
              std::to_string(args.size()));
  }
  ArgumentCheck check(sizes, Member<bool>(types, "updates"));
  for (size_t i = 0; i < params.size(); ++i) {
    const auto param = As<json::Object>(params[i], "a parameter");
    const auto name = Member<ffi::String>(param, "name");
    check.Check(Member<ffi::Any>(param, "type"), args[i], "`" + std::string(name) + "`");
  }
  check.CheckOverwrites(Member<json::Array>(types, "overwrites"));
  check.ThrowIfWrong(function);
  return check.Sizes();
}

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
static void CheckMemoryLimit(ffi::String function, int64_t limit, int64_t peak, int64_t otherwise,
                             ffi::Shape kept, std::optional<const ffi::ArrayObj*> tuple) {
  TVM_FFI_CHECK(limit >= 0 && peak >= 0 && otherwise >= 0, ValueError)
      << "vm.builtin.check_memory_limit: function `" << function << "` is given a limit of "
      << limit << " bytes and peaks of " << peak << " and " << otherwise
      << ", expected 0 or more; compile "
      << "the module again";
  const std::unordered_set<int64_t> stays(kept.begin(), kept.end());
  uint64_t held = 0;
  int64_t held_count = 0;
  std::ostringstream held_names;
  std::string imported;
  const TensorsOfTuple found(tuple ? **tuple : *ffi::Array<ffi::Any>().GetArrayObj());
  for (const TensorOfTuple& one : found.tensors()) {
    if (imported.empty() && !MayBeTakenOver(*one.tensor)) imported = one.path;
    const bool is_kept = std::any_of(one.leaves.begin(), one.leaves.end(),
                                     [&stays](int64_t leaf) { return stays.count(leaf) > 0; });
    if (one.outside() == 0 || is_kept) continue;
    held += static_cast<uint64_t>(BytesOf(*one.tensor).value_or(0));
    if (++held_count <= 4) held_names << (held_count > 1 ? ", " : "") << one.path;
  }
  std::ostringstream why;
  if (!imported.empty() && otherwise > peak) {
    peak = otherwise;
    why << ", as no new one can lie in a weight that was imported (field " << imported << ")";
  }
  const uint64_t needed = static_cast<uint64_t>(peak) + held;
  if (needed <= static_cast<uint64_t>(limit)) return;
  if (held_count > 0) {
    why << ", and " << held << " bytes for " << held_count
        << " weights that something else refers to, so that they cannot be freed (fields "
        << held_names.str() << (held_count > 4 ? ", ..." : "") << ")";
  }
  TVM_FFI_THROW(ValueError) << "function `" << function << "` would need " << needed
                            << " bytes: " << peak << " by its plan" << why.str()
                            << ". Its memory_limit is " << limit << ". No field has changed";
}

/*! \brief "function `f` asked for weight 1, `w`, a tensor of (4, ?), float32, but get_weight
 * returned " */
static std::string Asked(const ffi::String& function, int64_t index, const ffi::String& name,
                         const std::string& what) {
  return "function `" + std::string(function) + "` asked for weight " + std::to_string(index) +
         ", `" + std::string(name) + "`" + what + ", but get_weight returned ";
}

/*!
 * \brief Checks a weight that a callable has returned.
 *
 * TVM's own check (of R.match_cast) names the type that it expected, but not the weight.
 *
 * \param function The function's name.
 * \param index What the callable was given.
 * \param name The weight's.
 * \param value What was returned.
 * \param dtype Of a tensor; "" if it is not known.
 * \param sizes Of a tensor, with -1 for a size that is not known yet; no Shape if the rank is not.
 * \throws TypeError or ValueError Names the weight, what was expected and what was given.
 */
static void CheckWeight(ffi::String function, int64_t index, ffi::String name, ffi::AnyView value,
                        ffi::String dtype, ffi::AnyView sizes) {
  const auto* shape = sizes.as<ffi::ShapeObj>();
  std::string expected;
  if (shape != nullptr) {
    expected = ShapeText(shape->size, [&](size_t i) {
      return shape->data[i] < 0 ? std::nullopt : std::optional<int64_t>(shape->data[i]);
    });
  }
  if (!dtype.empty()) expected += (shape != nullptr ? ", " : "") + std::string(dtype);
  const auto asked = [&] {
    return Asked(function, index, name, expected.empty() ? "" : ", a tensor of " + expected);
  };
  const auto* tensor = value.as<ffi::TensorObj>();
  if (tensor == nullptr) {  // anything but a tensor is checked by R.match_cast
    if (expected.empty()) return;
    TVM_FFI_THROW(TypeError) << asked() << "`" << value.GetTypeKey() << "`";
  }
  const ffi::ShapeView given = ShapeOf(*tensor);
  bool is_wrong = !dtype.empty() && tensor->dtype != ffi::StringToDLDataType(std::string(dtype));
  if (shape != nullptr) {
    is_wrong = is_wrong || !std::equal(given.begin(), given.end(), shape->data,
                                       shape->data + shape->size, [](int64_t size, int64_t wanted) {
                                         return wanted < 0 || size == wanted;
                                       });
  }
  if (is_wrong) {
    TVM_FFI_THROW(ValueError) << asked() << "one of " << Text(given) << ", " << Text(tensor->dtype);
  }
  const std::string why_not = WhyNotCompact(*tensor);
  if (!why_not.empty())
    TVM_FFI_THROW(ValueError) << asked() << "one that is " << why_not << "; copy it";
}

/*!
 * \brief Checks a weight that is a number, and returns it.
 * \param function, index, name, value As above.
 * \param dtype Of the number.
 * \throws TypeError Names the weight, what was expected and what was given.
 */
static ffi::Any NumberWeight(ffi::String function, int64_t index, ffi::String name,
                             ffi::AnyView value, ffi::String dtype, ffi::AnyView /* sizes */) {
  const std::string text = dtype;
  const int32_t expected = text == "bool"            ? ffi::TypeIndex::kTVMFFIBool
                           : text.find("float") == 0 ? ffi::TypeIndex::kTVMFFIFloat
                                                     : ffi::TypeIndex::kTVMFFIInt;
  TVM_FFI_CHECK(value.type_index() == expected, TypeError)
      << Asked(function, index, name, ", a number of " + text) << "`" << value.GetTypeKey() << "`";
  return ffi::Any(value);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register(kBuiltins, CheckArguments);
  Register("vm.builtin.check_memory_limit", CheckMemoryLimit);
  Register("vm.builtin.check_weight", CheckWeight);
  Register("vm.builtin.number_weight", NumberWeight);
}

}  // namespace relax_inplace
