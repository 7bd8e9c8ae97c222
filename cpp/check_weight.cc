// vm.builtin.check_weight, number_weight: what the callable of a streamed transform returned, where
// a weight has a name.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <sstream>
#include <string>

#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief Whether a tensor has the sizes that are known; -1 stands for one that is not. */
static bool HasShape(const ffi::TensorObj& tensor, const ffi::ShapeObj& expected) {
  if (tensor.ndim != static_cast<int>(expected.size)) return false;
  for (int i = 0; i < tensor.ndim; ++i) {
    if (expected.data[i] >= 0 && expected.data[i] != tensor.shape[i]) return false;
  }
  return true;
}

/*! \brief "(4, ?), float32" */
static std::string Text(const ffi::ShapeObj* shape, const std::string& dtype) {
  std::ostringstream text;
  if (shape != nullptr) {
    text << "(";
    for (size_t i = 0; i < shape->size; ++i) {
      text << (i > 0 ? ", " : "");
      if (shape->data[i] < 0) {
        text << "?";
      } else {
        text << shape->data[i];
      }
    }
    text << (shape->size == 1 ? ",)" : ")");
  }
  text << (shape != nullptr && !dtype.empty() ? ", " : "") << dtype;
  return text.str();
}

/*!
 * \brief Checks a weight that a callable has returned.
 *
 * TVM's own check (of R.match_cast) names the type that it expected, but not the weight; and none
 * but the kernels check that a tensor is contiguous from the first byte of its data.
 *
 * \param args The function's name; the index that the callable was given; the weight's name; what
 *        was returned; then, of a tensor, its dtype, "" if that is not known, and its shape, with
 * -1 for a size that is not known yet, or an integer if the rank is not known.
 * \throws TypeError or ValueError Names the weight, what was expected and what was given.
 */
static void CheckWeight(ffi::PackedArgs args, ffi::Any*) {
  const ffi::AnyView value = args[3];
  const auto dtype = args[4].cast<std::string>();
  const auto* shape = args[5].as<ffi::ShapeObj>();
  const bool is_tensor = !dtype.empty() || shape != nullptr;
  auto asked = [&args, is_tensor, shape, &dtype]() {
    return "function `" + args[0].cast<std::string>() + "` asked for weight " +
           std::to_string(args[1].cast<int64_t>()) + ", `" + args[2].cast<std::string>() + "`" +
           (is_tensor ? ", a tensor of " + Text(shape, dtype) : "") + ", but get_weight returned ";
  };
  const auto* object = value.as<ffi::TensorObj>();
  if (object == nullptr) {  // anything but a tensor is checked by R.match_cast
    if (is_tensor) TVM_FFI_THROW(TypeError) << asked() << "`" << value.GetTypeKey() << "`";
    return;
  }
  const auto tensor = ffi::GetRef<ffi::Tensor>(object);
  const ffi::Shape given(tensor.shape());
  const bool is_dtype = dtype.empty() || tensor.dtype() == ffi::StringToDLDataType(dtype);
  if (!is_dtype || (shape != nullptr && !HasShape(*object, *shape))) {
    const std::string given_dtype(ffi::DLDataTypeToString(tensor.dtype()));
    TVM_FFI_THROW(ValueError) << asked() << "one of " << Text(given.operator->(), given_dtype);
  }
  if (!tensor.IsContiguous() || object->byte_offset != 0) {
    TVM_FFI_THROW(ValueError) << asked()
                              << "one that is not contiguous from the first byte of its data "
                              << "(strides " << ffi::Shape(tensor.strides()) << ", byte_offset "
                              << object->byte_offset << "); copy it";
  }
}

/*!
 * \brief Checks a weight that is a number, and returns it.
 * \param args As above; its dtype, and an integer.
 * \throws TypeError Names the weight, what was expected and what was given.
 */
static void NumberWeight(ffi::PackedArgs args, ffi::Any* result) {
  const auto dtype = args[4].cast<std::string>();
  const int32_t expected = dtype == "bool"            ? ffi::TypeIndex::kTVMFFIBool
                           : dtype.find("float") == 0 ? ffi::TypeIndex::kTVMFFIFloat
                                                      : ffi::TypeIndex::kTVMFFIInt;
  TVM_FFI_CHECK(args[3].type_index() == expected, TypeError)
      << "function `" << args[0].cast<std::string>() << "` asked for weight "
      << args[1].cast<int64_t>() << ", `" << args[2].cast<std::string>() << "`, a number of "
      << dtype << ", but get_weight returned `" << args[3].GetTypeKey() << "`";
  *result = args[3];
}

TVM_FFI_STATIC_INIT_BLOCK() {
  RegisterPacked("vm.builtin.check_weight", CheckWeight);
  RegisterPacked("vm.builtin.number_weight", NumberWeight);
}

}  // namespace relax_inplace
