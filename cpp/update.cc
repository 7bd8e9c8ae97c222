// vm.builtin.inplace_update_tuple: what R.inplace_update_tuple becomes in a compiled program.
// relax_inplace.ObserveUpdates: calls a transform, and tells of each update. RunTransform: the same
// on a tuple that nobody else can read meanwhile. OutsideReferences: who else refers to its
// tensors.
#include "update.h"

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device.h"
#include "registry.h"
#include "storage.h"
#include "tuple_fields.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief Tuples that nest deeper are refused: what takes them apart and frees them is recursive.
 */
constexpr size_t kMaxDepth = 1000;

// -- observing ------------------------------------------------------------------------------------

/*! \brief Observes the updates that are made in this thread while it exists. */
class UpdateObserver {
 public:
  /*!
   * \param callback Of an update it is told (slot, bytes in, bytes out, freed): the place, such as
   *        "0.3" in a nested tuple; the bytes of its new tensors, -1 if the slot was emptied, and
   *        of its old ones; and whether these are about to be freed. If so it is called once more
   *        when they have been, with None. What it throws, the update throws, when it is done.
   *        Of a new tensor it is told (None, bytes, 0, why), with a text in the fourth place: why
   *        it does not lie in a spent one's storage, "" if it does.
   * \param tuple Of it, and of those nested in it, updates are told.
   */
  UpdateObserver(ffi::Function callback, const ffi::ArrayObj& tuple)
      : callback_(std::move(callback)), outer_(current_) {
    ForEachIn(&tuple, [this](ffi::AnyView value, const Path& path) {
      const auto* fields = value.as<ffi::ArrayObj>();
      if (fields == nullptr) return;
      std::string prefix;
      for (const int64_t index : path) prefix += std::to_string(index) + ".";
      prefixes_.emplace(fields, prefix);
    });
    current_ = this;
  }
  ~UpdateObserver() { current_ = outer_; }
  UpdateObserver(const UpdateObserver&) = delete;
  UpdateObserver& operator=(const UpdateObserver&) = delete;

  /*! \brief The observer of this thread; null if nobody listens. */
  static UpdateObserver* Current() { return current_; }

  /*! \brief Tells of an update; `old` is what the slot held. */
  void Updated(const ffi::ArrayObj& tuple, int64_t index, ffi::AnyView value, ffi::Any old) const {
    const auto prefix = prefixes_.find(&tuple);
    if (prefix == prefixes_.end()) return;  // a tuple of the transform's own
    const bool is_emptied = value.type_index() == ffi::TypeIndex::kTVMFFINone;
    const auto [bytes_in, is_last_in] = Tensors(value);
    const auto [bytes_out, is_last] = Tensors(old);
    const bool is_freed = bytes_out > 0 && is_last;
    Tell(prefix->second + std::to_string(index), is_emptied ? -1 : bytes_in, bytes_out, is_freed);
    old = ffi::Any();
    if (is_freed) Tell(nullptr, 0, 0, true);
  }

  void Allocated(int64_t bytes, const char* why_not_reused) const {
    Tell(nullptr, bytes, 0, ffi::String(why_not_reused));
  }

 private:
  /*! \brief Calls the callback. Of what that does it is not told: it would not end. */
  void Tell(const ffi::Any& slot, int64_t bytes_in, int64_t bytes_out,
            const ffi::Any& freed) const {
    struct Deaf {
      UpdateObserver* self;
      ~Deaf() { current_ = self; }
    } deaf{std::exchange(current_, outer_)};
    callback_(slot, bytes_in, bytes_out, freed);
  }

  /*! \brief Bytes of the tensors in a field, and whether one reference to it is all that keeps
   * them. */
  static std::pair<int64_t, bool> Tensors(ffi::AnyView field) {
    uint64_t bytes = 0;
    bool is_last = true;
    ForEachIn(field, [&](ffi::AnyView value, const Path&) {
      if (const auto* tensor = value.as<ffi::TensorObj>()) {
        bytes += static_cast<uint64_t>(BytesOf(*tensor).value_or(0));
        is_last = is_last && tensor->use_count() == 1;
      } else if (const auto* fields = value.as<ffi::ArrayObj>()) {
        is_last = is_last && fields->use_count() == 1;
      }
    });
    return {static_cast<int64_t>(bytes), is_last};
  }

  // Not a setting: it is what the call stack of this thread holds, innermost.
  static thread_local UpdateObserver* current_;

  ffi::Function callback_;
  std::unordered_map<const ffi::ArrayObj*, std::string> prefixes_;
  UpdateObserver* outer_;
};

thread_local UpdateObserver* UpdateObserver::current_ = nullptr;

void TellAllocated(int64_t bytes, const char* why_not_reused) {
  if (const auto* observer = UpdateObserver::Current()) observer->Allocated(bytes, why_not_reused);
}

// -- the update -----------------------------------------------------------------------------------

/*! \brief Whether a tuple is a value, or stands in it at any depth. */
static bool Holds(ffi::AnyView value, const ffi::ArrayObj& tuple) {
  bool holds = false;
  ForEachIn(value, [&](ffi::AnyView one, const Path&) {
    holds = holds || one.as<ffi::ArrayObj>() == &tuple;
  });
  return holds;
}

/*!
 * \brief Replaces one field of a tuple and returns the tuple, the same object.
 *
 * The old field is freed if nothing else refers to it; on a device, when what this thread's stream
 * was given is done. Constant time, unless the new field is a tuple, which is walked. Every check
 * precedes the change, so a call that throws has changed nothing, unless it is an observer that
 * throws.
 *
 * \param tuple What the Relax VM makes of a tuple. An ffi.List is none.
 * \param index The field, 0 <= index < size.
 * \param value The new field.
 * \throws TypeError if value is an unowned DLTensor.
 * \throws IndexError if index is out of range.
 * \throws ValueError if the tuple would hold itself, directly or in a nested tuple.
 * \throws What the device reports of the kernels before, if the old field would be freed.
 */
static ffi::Any InplaceUpdateTuple(const ffi::ArrayObj* tuple, int64_t index, ffi::AnyView value) {
  // A DLTensor* is borrowed for the length of the call; a field outlives it.
  TVM_FFI_CHECK(value.type_index() != ffi::TypeIndex::kTVMFFIDLTensorPtr, TypeError)
      << "vm.builtin.inplace_update_tuple: argument 2 is an unowned DLTensor*, which the tuple "
      << "cannot keep; pass a Tensor";
  TVM_FFI_CHECK(0 <= index && index < static_cast<int64_t>(tuple->size()), IndexError)
      << "vm.builtin.inplace_update_tuple: index " << index << " is out of range for a tuple of "
      << tuple->size() << " fields";
  // It would never be freed, and what goes through tuples would not end.
  if (Holds(value, *tuple)) {
    TVM_FFI_THROW(ValueError) << "vm.builtin.inplace_update_tuple: the new field " << index
                              << " is the tuple itself, or a tuple that holds it; a tuple cannot "
                              << "hold itself. No field has changed";
  }
  // An ffi.Array is immutable by convention: the ownership analysis of the compiler is what
  // entitles us to write to it.
  auto* fields = const_cast<ffi::ArrayObj*>(tuple);
  ffi::Any old = tuple->begin()[index];
  WaitBeforeFreeing(old);
  fields->SetItem(index, ffi::Any(value));
  if (const auto* observer = UpdateObserver::Current()) {
    observer->Updated(*tuple, index, value, std::move(old));
  }
  return ffi::GetRef<ffi::ObjectRef>(tuple);
}

// -- transforms -----------------------------------------------------------------------------------

/*!
 * \brief The tuples in a tuple, itself included.
 * \throws ValueError if one stands in two places, or in itself: its fields could be moved once
 * only.
 */
static std::unordered_map<const ffi::ArrayObj*, Path> RequireTree(const ffi::ArrayObj& tuple) {
  std::unordered_map<const ffi::ArrayObj*, Path> places;
  ForEachIn(&tuple, [&](ffi::AnyView value, const Path& path) {
    const auto* fields = value.as<ffi::ArrayObj>();
    if (fields == nullptr) return;
    if (path.size() > kMaxDepth) {
      TVM_FFI_THROW(ValueError) << "tuples are nested more than " << kMaxDepth
                                << " deep. No field has changed";
    }
    const auto [seen, is_new] = places.emplace(fields, path);
    if (!is_new && !fields->empty()) {
      TVM_FFI_THROW(ValueError) << "one tuple stands in two places, "
                                << (seen->second.empty() ? "the outermost" : Text(seen->second))
                                << " and " << Text(path) << ", where an update of one would change "
                                << "the other; pass a copy as one of them. No field has changed";
    }
  });
  return places;
}

/*! \brief The fields of a tuple while they are elsewhere, in a tuple of the same nesting. */
class TakenFields {
 public:
  explicit TakenFields(const ffi::ArrayObj* tuple)
      : tuple_(const_cast<ffi::ArrayObj*>(tuple)), places_(RequireTree(*tuple)) {
    taken_ = Take(tuple_);
  }
  ~TakenFields() { PutBack(); }
  TakenFields(const TakenFields&) = delete;
  TakenFields& operator=(const TakenFields&) = delete;

  const ffi::Array<ffi::Any>& fields() const { return taken_; }

  /*! \brief Leaves the tuple empty. */
  void Keep() { tuple_ = nullptr; }

  /*!
   * \brief Puts them back, once.
   * \return Whether all are there: not one that has come to hold the tuple.
   */
  bool PutBack() {
    return tuple_ == nullptr ||
           Put(std::exchange(tuple_, nullptr), const_cast<ffi::ArrayObj*>(taken_.GetArrayObj()));
  }

 private:
  /*! \brief Moves the fields of a tuple, at any depth, into a new one; None stays behind. */
  static ffi::Array<ffi::Any> Take(ffi::ArrayObj* tuple) {
    ffi::Array<ffi::Any> taken;
    taken.reserve(static_cast<int64_t>(tuple->size()));
    for (int64_t i = 0; i < static_cast<int64_t>(tuple->size()); ++i) {
      ffi::Any field = tuple->begin()[i];
      if (const auto* nested = field.as<ffi::ArrayObj>()) {
        taken.push_back(Take(const_cast<ffi::ArrayObj*>(nested)));
      } else {
        tuple->SetItem(i, ffi::Any(nullptr));
        taken.push_back(std::move(field));
      }
    }
    return taken;
  }

  /*! \brief Moves the fields of a tuple into another of as many. */
  bool Put(ffi::ArrayObj* tuple, ffi::ArrayObj* fields) const {
    bool is_whole = true;
    for (int64_t i = 0; i < static_cast<int64_t>(tuple->size()); ++i) {
      ffi::Any field = fields->begin()[i];
      const ffi::Any slot = tuple->begin()[i];
      const auto* nested = field.as<ffi::ArrayObj>();
      const auto* nested_slot = slot.as<ffi::ArrayObj>();
      if (nested != nullptr && places_.count(nested_slot) > 0 &&
          nested->size() == nested_slot->size()) {
        is_whole &=
            Put(const_cast<ffi::ArrayObj*>(nested_slot), const_cast<ffi::ArrayObj*>(nested));
      } else if (HoldsOurs(field)) {
        is_whole = false;
      } else {
        fields->SetItem(i, ffi::Any(nullptr));
        tuple->SetItem(i, std::move(field));
      }
    }
    return is_whole;
  }

  bool HoldsOurs(ffi::AnyView field) const {
    bool holds = false;
    ForEachIn(field, [&](ffi::AnyView one, const Path&) {
      const auto* fields = one.as<ffi::ArrayObj>();
      holds = holds || (fields != nullptr && !fields->empty() && places_.count(fields) > 0);
    });
    return holds;
  }

  ffi::ArrayObj* tuple_;
  std::unordered_map<const ffi::ArrayObj*, Path> places_;
  ffi::Array<ffi::Any> taken_;
};

static const ffi::ArrayObj* LastTuple(ffi::PackedArgs inputs, const char* where) {
  const auto* tuple = inputs.size() > 0 ? inputs[inputs.size() - 1].as<ffi::ArrayObj>() : nullptr;
  TVM_FFI_CHECK(tuple != nullptr, TypeError)
      << where << ": expected a tuple (ffi.Array) as the last argument, but got "
      << (inputs.size() > 0 ? "`" + inputs[inputs.size() - 1].GetTypeKey() + "`" : "none");
  return tuple;
}

/*!
 * \brief Calls a transform, and tells a callback about each update of the tuple it is given.
 * \param inputs Of the transform, of which the last is the tuple.
 * \param callback Who is told, as UpdateObserver says; or None.
 * \param transform What is called.
 * \return What the transform returns.
 * \throws What the transform or the callback throws.
 */
static ffi::Any ObserveUpdates(ffi::PackedArgs inputs, ffi::Optional<ffi::Function> callback,
                               ffi::Function transform) {
  const ffi::ArrayObj* tuple = LastTuple(inputs, "relax_inplace.ObserveUpdates");
  std::optional<UpdateObserver> observer;
  if (callback.has_value()) observer.emplace(callback.value(), *tuple);
  ffi::Any result;
  transform.CallPacked(inputs, &result);
  return result;
}

/*!
 * \brief The same on the fields of a tuple that nobody else can read meanwhile.
 *
 * The fields are moved out of the tuple, so that whoever reads it meanwhile reads None, and never
 * a tensor that is being freed; and moved back, whatever happens. But if the transform returns
 * another number of fields, what it returns is a new tuple, and the given one stays empty.
 *
 * \param inputs, callback, transform As for ObserveUpdates.
 * \return The given tuple, or a new one.
 * \throws What the transform or the callback throws. ValueError if the tuple would hold itself.
 */
static ffi::Any RunTransform(ffi::PackedArgs inputs, ffi::Optional<ffi::Function> callback,
                             ffi::Function transform) {
  const ffi::ArrayObj* tuple = LastTuple(inputs, "relax_inplace.RunTransform");
  TakenFields taken(tuple);
  std::vector<ffi::AnyView> packed(inputs.data(), inputs.data() + inputs.size());
  packed.back() = taken.fields();
  ffi::Any returned =
      ObserveUpdates(ffi::PackedArgs(packed.data(), inputs.size()), callback, transform);
  if (returned.as<ffi::ArrayObj>() != taken.fields().GetArrayObj()) {
    taken.Keep();
    return returned;
  }
  TVM_FFI_CHECK(taken.PutBack(), ValueError)
      << "relax_inplace.RunTransform: the transform has put the tuple into a field of it; a tuple "
      << "cannot hold itself. That field is None";
  return ffi::GetRef<ffi::ObjectRef>(tuple);
}

/*!
 * \brief Who refers to the tensors of a tuple, besides the tuple.
 * \param tuple It may hold others.
 * \return For each field that is no tuple: references from outside, and the first field that holds
 *         the same tensor. 0 and itself if it is no tensor.
 */
static ffi::Array<ffi::Shape> OutsideReferences(const ffi::ArrayObj* tuple) {
  RequireTree(*tuple);
  const TensorsOfTuple found(*tuple);
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
  Register("vm.builtin.inplace_update_tuple", InplaceUpdateTuple);
  Register("relax_inplace.ObserveUpdates", ObserveUpdates);
  Register("relax_inplace.RunTransform", RunTransform);
  Register("relax_inplace.OutsideReferences", OutsideReferences);
}

}  // namespace relax_inplace
