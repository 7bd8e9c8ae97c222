// What the compiler calls, where there is one: the registration of relax.inplace_update_tuple, and
// what is asked of each update so often that Python would take too long.
//
// TVM's wheel ships no IR headers, so the compiler is reached through its global functions; they
// are looked up when called, never when this library is loaded.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>

#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

static bool IsRegistered(const ffi::String& name) {
  for (const ffi::String& known :
       FunctionOfTVM("ir.ListOpNames")().cast<ffi::Array<ffi::String>>()) {
    if (known == name) return true;
  }
  return false;
}

/*!
 * \brief Registers the op relax.inplace_update_tuple. Calling it again changes nothing.
 * \param attrs FInferType, FNormalize, FLowerBuiltin and what else the op carries, by name.
 */
static void RegisterOp(ffi::Map<ffi::String, ffi::Any> attrs) {
  const ffi::String name = "relax.inplace_update_tuple";
  if (IsRegistered(name)) return;
  FunctionOfTVM("ir.RegisterOp")(
      name,
      "Replaces a field of a tuple in place and returns the tuple. The name the tuple was given by "
      "may not be used again.");
  const ffi::Any op = FunctionOfTVM("ir.GetOp")(name);
  const ffi::Function add_argument = FunctionOfTVM("ir.OpAddArgument");
  add_argument(op, "tuple", "Expr", "The tuple, consumed.");
  add_argument(op, "index", "int", "The field, a constant.");
  add_argument(op, "value", "Expr", "The new field.");
  FunctionOfTVM("ir.OpSetNumInputs")(op, 3);
  const ffi::Function register_attr = FunctionOfTVM("ir.RegisterOpAttr");
  for (const auto& [key, value] : attrs) register_attr(name, key, value, 10);
}

/*!
 * \brief Whether an update's index needs no normalisation: a constant that is not negative.
 *
 * FNormalize asks this at every visit by every pass; answered in Python, it is a tenth of the time
 * to compile.
 */
static bool HasNormalIndex(const ffi::Object* call) {
  if (call->GetTypeKey() != "ir.Call") return false;
  static const ffi::reflection::FieldGetter args("ir.Call", "args");
  static const ffi::reflection::FieldGetter value("ir.IntImm", "value");
  const auto operands = args(call).cast<ffi::Array<ffi::ObjectRef>>();
  return operands.size() == 3 && operands[1].defined() &&
         operands[1]->GetTypeKey() == "ir.IntImm" && value(operands[1]).cast<int64_t>() >= 0;
}

/*! \brief FNormalize that calls `normalize` only for a call that needs it. */
static ffi::Function NormalizeIfNeeded(ffi::Function normalize) {
  return ffi::Function::FromTyped(
      [normalize](ffi::AnyView builder, const ffi::Object* call) -> ffi::Any {
        if (HasNormalIndex(call)) return ffi::GetRef<ffi::ObjectRef>(call);
        return normalize(builder, call);
      });
}

/*!
 * \brief A copy of an array with one item replaced.
 *
 * Type inference of an update is this on the fields of a tuple type. In Python it would turn n
 * fields into Python objects and back, for each of n updates.
 */
static ffi::Array<ffi::Any> ArrayWithItem(ffi::Array<ffi::Any> array, int64_t index,
                                          ffi::AnyView item) {
  array.Set(index, item);  // copies on write: the caller holds a reference
  return array;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register("relax_inplace.RegisterOp", RegisterOp);
  Register("relax_inplace.NormalizeIfNeeded", NormalizeIfNeeded);
  Register("relax_inplace.ArrayWithItem", ArrayWithItem);
}

}  // namespace relax_inplace
