// relax_inplace.RunTransform: calls a transform on a tuple that nobody else can read meanwhile.
// relax_inplace.ObserveUpdates: the same on one that others can. relax_inplace.OutsideReferences:
// who else refers to its tensors.
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "registry.h"
#include "tuple_leaves.h"
#include "update_observer.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief Refuses a tuple that holds one twice, or itself: its fields could be moved once only. */
static void RequireOnce(const ffi::ArrayObj& tuple, const std::string& path,
                        std::unordered_map<const ffi::ArrayObj*, std::string>* places) {
  const auto [seen, is_new] = places->emplace(&tuple, path);
  if (!is_new && !tuple.empty()) {
    TVM_FFI_THROW(ValueError) << "one tuple stands in two places, "
                              << (seen->second.empty() ? "the outermost" : seen->second) << " and "
                              << path << ", where an update of one would change the other; pass a "
                              << "copy as one of them. No field has changed";
  }
  int64_t index = 0;
  for (const ffi::Any& field : tuple) {
    if (const auto* nested = field.as<ffi::ArrayObj>()) {
      RequireOnce(*nested, path + "[" + std::to_string(index) + "]", places);
    }
    ++index;
  }
}

/*! \brief Moves the fields of a tuple, at any depth, into a new one; None stays behind. */
static ffi::Array<ffi::Any> TakeFields(ffi::ArrayObj* tuple) {
  ffi::Array<ffi::Any> taken;
  taken.reserve(static_cast<int64_t>(tuple->size()));
  for (int64_t i = 0; i < static_cast<int64_t>(tuple->size()); ++i) {
    ffi::Any field = (*tuple)[i];
    if (const auto* nested = field.as<ffi::ArrayObj>()) {
      taken.push_back(TakeFields(const_cast<ffi::ArrayObj*>(nested)));
    } else {
      tuple->SetItem(i, ffi::Any(nullptr));
      taken.push_back(std::move(field));
    }
  }
  return taken;
}

/*! \brief Moves the fields of a tuple into another of as many. */
static void PutFields(ffi::ArrayObj* tuple, ffi::ArrayObj* fields) {
  for (int64_t i = 0; i < static_cast<int64_t>(tuple->size()); ++i) {
    ffi::Any field = (*fields)[i];
    const ffi::Any slot = (*tuple)[i];
    const auto* nested = field.as<ffi::ArrayObj>();
    const auto* nested_slot = slot.as<ffi::ArrayObj>();
    if (nested != nullptr && nested_slot != nullptr && nested->size() == nested_slot->size()) {
      PutFields(const_cast<ffi::ArrayObj*>(nested_slot), const_cast<ffi::ArrayObj*>(nested));
    } else {
      fields->SetItem(i, ffi::Any(nullptr));
      tuple->SetItem(i, std::move(field));
    }
  }
}

static ffi::ArrayObj* RequireTuple(ffi::AnyView value, const char* where) {
  const auto* tuple = value.as<ffi::ArrayObj>();
  TVM_FFI_CHECK(tuple != nullptr, TypeError)
      << where << ": expected a tuple (ffi.Array), but got `" << value.GetTypeKey() << "`";
  return const_cast<ffi::ArrayObj*>(tuple);
}

/*!
 * \brief Calls a transform, and tells a callback about each update of the tuple it is given.
 * \param args The callback, or None; the transform; its arguments, of which the last is the tuple.
 * \param result What the transform returns.
 * \throws What the transform or the callback throws.
 */
static void ObserveUpdates(ffi::PackedArgs args, ffi::Any* result) {
  TVM_FFI_CHECK(args.size() >= 3, TypeError)
      << "relax_inplace.ObserveUpdates: expected a callback, a transform and a tuple";
  const auto callback = args[0].cast<ffi::Optional<ffi::Function>>();
  const auto transform = args[1].cast<ffi::Function>();
  const ffi::ArrayObj* tuple = RequireTuple(args[args.size() - 1], "relax_inplace.ObserveUpdates");
  std::optional<UpdateObserver> observer;
  if (callback.has_value()) observer.emplace(callback.value(), *tuple);
  transform.CallPacked(args.Slice(2), result);
}

/*!
 * \brief The same on the fields of a tuple that nobody else can read meanwhile.
 *
 * The fields are moved out of the tuple, so that whoever reads it meanwhile reads None, and never
 * a tensor that is being freed; and moved back, whatever happens. But if the transform returns
 * another number of fields, what it returns is a new tuple, and the given one stays empty.
 *
 * \param args As for ObserveUpdates.
 * \param result The given tuple, or a new one.
 * \throws What the transform or the callback throws.
 */
static void RunTransform(ffi::PackedArgs args, ffi::Any* result) {
  TVM_FFI_CHECK(args.size() >= 3, TypeError)
      << "relax_inplace.RunTransform: expected a callback, a transform and a tuple";
  const int32_t last = args.size() - 1;

  struct Taken {
    ffi::ArrayObj* from;
    ffi::Array<ffi::Any> fields;
    explicit Taken(ffi::ArrayObj* tuple) : from(tuple), fields(TakeFields(tuple)) {}
    ~Taken() {
      if (from != nullptr) PutFields(from, const_cast<ffi::ArrayObj*>(fields.GetArrayObj()));
    }
  };
  ffi::ArrayObj* tuple = RequireTuple(args[last], "relax_inplace.RunTransform");
  std::unordered_map<const ffi::ArrayObj*, std::string> places;
  RequireOnce(*tuple, "", &places);
  Taken taken(tuple);
  std::vector<ffi::AnyView> packed(args.data(), args.data() + last);
  packed.push_back(taken.fields);
  ffi::Any returned;
  ObserveUpdates(ffi::PackedArgs(packed.data(), args.size()), &returned);
  if (returned.as<ffi::ArrayObj>() == taken.fields.GetArrayObj()) {
    *result = ffi::Any(args[last]);
  } else {
    taken.from = nullptr;
    *result = std::move(returned);
  }
}

/*!
 * \brief Who refers to the tensors of a tuple, besides the tuple.
 * \param tuple An ffi.Array, which may hold others.
 * \return For each field that is no tuple: references from outside, and the first field that holds
 *         the same tensor. 0 and itself if it is no tensor.
 */
static ffi::Array<ffi::Shape> OutsideReferences(ffi::AnyView tuple) {
  const TensorsOfTuple found(*RequireTuple(tuple, "relax_inplace.OutsideReferences"));
  std::vector<int64_t> outside(found.leaves(), 0);
  std::vector<int64_t> first(found.leaves());
  for (int64_t leaf = 0; leaf < found.leaves(); ++leaf) first[leaf] = leaf;
  for (const TensorOfTuple& one : found.tensors()) {
    for (int64_t leaf : one.leaves) {
      outside[leaf] = one.outside();
      first[leaf] = one.leaves.front();
    }
  }
  return {ffi::Shape(outside), ffi::Shape(first)};
}

TVM_FFI_STATIC_INIT_BLOCK() {
  RegisterPacked("relax_inplace.ObserveUpdates", ObserveUpdates);
  RegisterPacked("relax_inplace.RunTransform", RunTransform);
  Register("relax_inplace.OutsideReferences", OutsideReferences);
}

}  // namespace relax_inplace
