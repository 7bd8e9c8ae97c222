// vm.builtin.check_contiguous: the one check of an argument that TVM makes too late.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <string>

#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

static void CheckContiguousAt(ffi::AnyView value, const std::string& path,
                              const ffi::String& function) {
  // Object pointers, which None is not: an ffi.Tensor or ffi.Array reference may be null.
  if (const auto* object = value.as<ffi::TensorObj>()) {
    const ffi::Tensor tensor = ffi::GetRef<ffi::Tensor>(object);
    const bool is_contiguous = tensor.IsContiguous();
    const uint64_t offset = tensor.GetDLTensorPtr()->byte_offset;
    TVM_FFI_CHECK(is_contiguous && offset == 0, ValueError)
        << "function `" << function << "` updates its argument in place: " << path
        << " is not contiguous from the first byte of its data (shape "
        << ffi::Shape(tensor.shape()) << ", strides " << ffi::Shape(tensor.strides())
        << ", byte_offset " << offset << "); copy it before the call. No field has changed";
  } else if (const auto* fields = value.as<ffi::ArrayObj>()) {
    int64_t index = 0;
    for (const ffi::Any& field : *fields) {
      CheckContiguousAt(field, path + "[" + std::to_string(index++) + "]", function);
    }
  }
}

/*!
 * \brief Checks that every tensor in the arguments, at any depth of tuples, is contiguous from the
 *        first byte of its data.
 *
 * VMShapeLower checks dtype, rank and shape at entry; strides and byte_offset are checked by the
 * kernels, when fields have been replaced already.
 *
 * \param args The function's name, then a name and a value for each of its parameters.
 * \throws ValueError Names the function and the field.
 */
static void CheckContiguous(ffi::PackedArgs args, ffi::Any*) {
  const auto function = args[0].cast<ffi::String>();
  for (int i = 1; i + 1 < args.size(); i += 2) {
    CheckContiguousAt(args[i + 1], "`" + std::string(args[i].cast<ffi::String>()) + "`", function);
  }
}

TVM_FFI_STATIC_INIT_BLOCK() { RegisterPacked("vm.builtin.check_contiguous", CheckContiguous); }

}  // namespace relax_inplace
