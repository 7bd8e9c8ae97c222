// What KillUnusedRegisters asks of every binding of a lowered function. In Python it would be half
// of the time that the package adds to a compilation.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <cstring>

#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

using ffi::reflection::FieldGetter;
using Objects = ffi::Array<ffi::ObjectRef>;

/*! \brief The index of a type of the compiler's; throws if it is called otherwise by now. */
static int32_t TypeIndex(const char* key) {
  const TVMFFIByteArray bytes{key, std::strlen(key)};
  int32_t index = 0;
  TVM_FFI_CHECK_SAFE_CALL(TVMFFITypeKeyToIndex(&bytes, &index));
  return index;
}

static ffi::ObjectRef ValueOf(const ffi::ObjectRef& binding) {
  static const FieldGetter bound("relax.expr.VarBinding", "value");
  static const FieldGetter cast("relax.expr.MatchCast", "value");
  static const int32_t match_cast = TypeIndex("relax.expr.MatchCast");
  const FieldGetter& value = binding->type_index() == match_cast ? cast : bound;
  return value(binding).cast<ffi::ObjectRef>();
}

static ffi::ObjectRef CalleeOf(const ffi::ObjectRef& value) {
  static const FieldGetter op("ir.Call", "op");
  static const int32_t call = TypeIndex("ir.Call");
  return value->type_index() == call ? op(value).cast<ffi::ObjectRef>() : ffi::ObjectRef();
}

/*! \brief Whether a value is put into a register that may keep a tensor alive. */
static bool FillsRegister(const ffi::ObjectRef& bound, const ffi::ObjectRef& value,
                          const ffi::ObjectRef& callee, const Objects& allocations) {
  static const FieldGetter symbol("relax.expr.ExternFunc", "global_symbol");
  static const FieldGetter type("ir.Expr", "ty");
  static const int32_t tuple = TypeIndex("ir.Tuple");
  static const int32_t tuple_get_item = TypeIndex("ir.TupleGetItem");
  static const int32_t op = TypeIndex("ir.Op");
  static const int32_t extern_func = TypeIndex("relax.expr.ExternFunc");
  static const int32_t var = TypeIndex("ir.Var");
  static const int32_t tensor_type = TypeIndex("relax.TensorType");
  static const int32_t any_type = TypeIndex("relax.AnyType");
  const int32_t kind = value->type_index();
  if (kind == tuple || kind == tuple_get_item) return true;
  const int32_t bound_type = type(bound).cast<ffi::ObjectRef>()->type_index();
  if (kind == var) return bound_type == tensor_type;  // a second name has a register of its own
  if (!callee.defined()) return false;
  if (callee->type_index() == op) {
    for (const ffi::ObjectRef& allocation : allocations) {
      if (callee.same_as(allocation)) return true;
    }
    return false;
  }
  if (bound_type == tensor_type) return true;
  if (callee->type_index() == var) return bound_type == any_type;  // a weight that is asked for
  return callee->type_index() == extern_func &&  // a read from a tuple of unknown type
         symbol(callee).cast<ffi::String>() == "vm.builtin.tuple_getitem";
}

/*!
 * \brief The variables whose registers may keep a tensor alive, and that nothing kills.
 * \param blocks The binding blocks of a lowered function, or of a branch.
 * \param kill The operator that empties a variable's register.
 * \param allocations The operators that allocate.
 * \return From each to the variable of the binding that uses it last, itself if none does.
 */
static ffi::Map<ffi::ObjectRef, ffi::ObjectRef> UnkilledRegisters(const Objects& blocks,
                                                                  const ffi::ObjectRef& kill,
                                                                  const Objects& allocations) {
  static const FieldGetter bindings("relax.expr.BindingBlock", "bindings");
  static const FieldGetter var("relax.expr.Binding", "var");
  const ffi::Function free_vars = ffi::Function::GetGlobalRequired("relax.analysis.free_vars");
  ffi::Map<ffi::ObjectRef, ffi::ObjectRef> last_use;
  for (const ffi::ObjectRef& block : blocks) {
    for (const ffi::ObjectRef& binding : bindings(block).cast<Objects>()) {
      const auto bound = var(binding).cast<ffi::ObjectRef>();
      const ffi::ObjectRef value = ValueOf(binding);
      const ffi::ObjectRef callee = CalleeOf(value);
      const bool kills = callee.same_as(kill);
      for (const ffi::ObjectRef& used : free_vars(value).cast<Objects>()) {
        if (last_use.count(used) == 0) continue;
        if (kills) {
          last_use.erase(used);
        } else {
          last_use.Set(used, bound);
        }
      }
      if (FillsRegister(bound, value, callee, allocations)) last_use.Set(bound, bound);
    }
  }
  return last_use;
}

TVM_FFI_STATIC_INIT_BLOCK() { Register("relax_inplace.UnkilledRegisters", UnkilledRegisters); }

}  // namespace relax_inplace
