// relax_inplace.ConvertLoaded: what an engine calls on the weights that TVM has loaded from a
// folder.
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <string>

#include "parse_object.h"
#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

constexpr const char* kMark = "relax_inplace.converted";  // relax_inplace/runtime/mark.py

static json::Object RequireObject(const std::string& text, const std::string& what) {
  std::string error;
  const auto object = ParseObject(text, &error);
  TVM_FFI_CHECK(object.has_value(), ValueError)
      << "relax_inplace.ConvertLoaded: " << what << " is no JSON object (" << error
      << "); load the original weights";
  return *object;
}

/*! \brief A member that is text; none if it is not there, or is something else. */
static std::optional<std::string> Text(const json::Object& object, const char* key) {
  const auto found = object.find(ffi::String(key));
  if (found == object.end()) return std::nullopt;
  const auto text = (*found).second.try_cast<ffi::String>();
  if (!text.has_value()) return std::nullopt;
  return std::string(text.value());
}

/*! \brief The layout of a folder's weights, by their mark; none if they are as they were stored. */
static std::optional<std::string> LayoutOf(const std::string& folder) {
  for (const char* name : {"tensor-cache.json", "ndarray-cache.json"}) {  // as TVM looks for them
    const std::string path = folder + "/" + name;
    std::ifstream file(path, std::ios::binary);
    if (!file) continue;
    const std::string text((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
    const json::Object manifest = RequireObject(text, path);
    const auto found = manifest.find(ffi::String("metadata"));
    if (found == manifest.end()) return std::nullopt;
    const auto metadata = (*found).second.try_cast<json::Object>();
    if (!metadata.has_value() || metadata->find(ffi::String(kMark)) == metadata->end()) {
      return std::nullopt;
    }
    const std::string where = path + ": the mark of converted weights";
    const auto mark = Text(metadata.value(), kMark);
    // A mark that cannot be read is one: taken for none, the weights might be converted twice.
    const json::Object fields = RequireObject(mark.value_or(""), where);
    return Text(fields, "layout").value_or("");
  }
  TVM_FFI_THROW(ValueError) << "relax_inplace.ConvertLoaded: expected the folder that the weights "
                            << "were loaded from, but " << folder << " has no tensor-cache.json";
}

/*! \brief A module's transform of resident weights: its name, and the layout it makes. */
struct OneTransform {
  std::string name;
  std::string layout;

  explicit OneTransform(const json::Object& map) {
    for (const auto& [key, value] : map) {
      const auto entry = value.cast<json::Object>();
      if (Text(entry, "restores").has_value() || entry["streamed"].cast<bool>()) continue;
      const std::string other = key.cast<ffi::String>();
      TVM_FFI_CHECK(name.empty(), ValueError)
          << "relax_inplace.ConvertLoaded: the module has several transforms, `" << name
          << "` and `" << other << "`; call relax_inplace.RunTransform with one of them";
      name = other;
      layout = Text(entry, "layout").value_or("");
    }
  }
};

/*!
 * \brief Converts weights that were loaded from a folder, in the memory they occupy; or leaves them
 *        as they are, if the folder's mark says that this has been done.
 *
 * What decides is the mark that relax_inplace.runtime.save_params has written, never the shapes: a
 * square weight that was transposed looks as it did before.
 *
 * \param vm The model's virtual machine. If it converts nothing the weights are left as they are.
 * \param folder What they were loaded from, with TVM's manifest.
 * \param params Their array; nothing else may refer to a tensor of it (TVM's cache is cleared).
 * \return The array that the model's functions take. It is the given one if there are as many
 * weights. \throws ValueError The weights were converted to another layout, or the mark cannot be
 * read.
 */
static ffi::Any ConvertLoaded(ffi::Module vm, ffi::String folder, ffi::Array<ffi::Any> params) {
  const auto map = vm->GetFunction("inplace_param_map", true);
  if (!map.has_value()) return params;
  const OneTransform transform(
      RequireObject(map.value()().cast<ffi::String>(), "the module's inplace_param_map"));
  if (transform.name.empty()) return params;
  const std::optional<std::string> layout = LayoutOf(std::string(folder));
  if (layout.has_value()) {
    TVM_FFI_CHECK(!layout->empty() && *layout == transform.layout, ValueError)
        << "relax_inplace.ConvertLoaded: the weights in " << std::string(folder)
        << " were converted to layout `" << *layout
        << "`, expected weights as they were stored, or "
        << "of layout `" << transform.layout << "`; load the original ones";
    return params;
  }
  const auto run = ffi::Function::GetGlobalRequired("relax_inplace.RunTransform");
  const auto convert = vm->GetFunction(transform.name, true);
  TVM_FFI_CHECK(convert.has_value(), ValueError)
      << "relax_inplace.ConvertLoaded: the module has no function `" << transform.name << "`";
  ffi::Any converted;
  const ffi::AnyView arguments[3] = {nullptr, convert.value(), params};
  run.CallPacked(ffi::PackedArgs(arguments, 3), &converted);
  return converted;
}

TVM_FFI_STATIC_INIT_BLOCK() { Register("relax_inplace.ConvertLoaded", ConvertLoaded); }

}  // namespace relax_inplace
