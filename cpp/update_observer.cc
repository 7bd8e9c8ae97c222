// The observer of updates, which is told of each before the old field is freed, and after.
#include "update_observer.h"

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <string>
#include <utility>

namespace relax_inplace {

namespace ffi = tvm::ffi;

// Not a setting: it is what the call stack of this thread holds, innermost.
static thread_local UpdateObserver* current_observer = nullptr;

UpdateObserver::UpdateObserver(ffi::Function callback, const ffi::ArrayObj& tuple)
    : callback_(std::move(callback)), outer_(current_observer) {
  Name(tuple, "");
  current_observer = this;
}

UpdateObserver::~UpdateObserver() { current_observer = outer_; }

UpdateObserver* UpdateObserver::Current() { return current_observer; }

void UpdateObserver::Name(const ffi::ArrayObj& tuple, const std::string& prefix) {
  prefixes_[&tuple] = prefix;
  int64_t index = 0;
  for (const ffi::Any& field : tuple) {
    if (const auto* nested = field.as<ffi::ArrayObj>()) {
      Name(*nested, prefix + std::to_string(index) + ".");
    }
    ++index;
  }
}

/*! \brief Bytes of the tensors in a field, at any depth. */
static int64_t Bytes(ffi::AnyView field) {
  if (const auto* tensor = field.as<ffi::TensorObj>()) {
    return static_cast<int64_t>(ffi::GetDataSize(*tensor));
  }
  int64_t total = 0;
  if (const auto* fields = field.as<ffi::ArrayObj>()) {
    for (const ffi::Any& one : *fields) total += Bytes(one);
  }
  return total;
}

/*! \brief Whether nothing but this reference to a field, at any depth, keeps its tensors. */
static bool IsLast(const ffi::Any& field) {
  if (const auto* tensor = field.as<ffi::TensorObj>()) {
    return ffi::GetRef<ffi::Tensor>(tensor).use_count() == 2;
  }
  if (const auto* fields = field.as<ffi::ArrayObj>()) {
    if (ffi::GetRef<ffi::ObjectRef>(fields).use_count() > 2) return false;
    for (const ffi::Any& one : *fields) {
      if (!IsLast(one)) return false;
    }
  }
  return true;
}

void UpdateObserver::Updated(const ffi::ArrayObj& tuple, int64_t index, ffi::AnyView value,
                             ffi::Any old) const {
  const auto prefix = prefixes_.find(&tuple);
  if (prefix == prefixes_.end()) return;  // a tuple of the transform's own
  const bool is_emptied = value.type_index() == ffi::TypeIndex::kTVMFFINone;
  const int64_t bytes_out = Bytes(old);
  const bool is_freed = bytes_out > 0 && IsLast(old);
  callback_(prefix->second + std::to_string(index), is_emptied ? int64_t{-1} : Bytes(value),
            bytes_out, is_freed);
  old = ffi::Any();
  if (is_freed) callback_(nullptr, int64_t{0}, int64_t{0}, true);
}

void UpdateObserver::Allocated(int64_t bytes, const char* why_not_reused) const {
  callback_(nullptr, bytes, int64_t{0}, ffi::String(why_not_reused));
}

}  // namespace relax_inplace
