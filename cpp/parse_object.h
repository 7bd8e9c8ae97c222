// JSON of which nothing is known, not even that it is JSON.
#ifndef RELAX_INPLACE_PARSE_OBJECT_H_
#define RELAX_INPLACE_PARSE_OBJECT_H_

#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/tvm_ffi.h>

#include <optional>
#include <string>

namespace relax_inplace {

/*! \brief Parses what has to be an object. If it is none, `error` says what it is. */
inline std::optional<tvm::ffi::json::Object> ParseObject(const std::string& text,
                                                         std::string* error) {
  constexpr int kMaxDepth = 1000;  // tvm-ffi's parser is recursive, and what frees its result
  int depth = 0;
  bool is_quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_quoted && c == '\\') {
      ++i;
    } else if (c == '"') {
      is_quoted = !is_quoted;
    } else if (!is_quoted) {
      depth += (c == '[' || c == '{') - (c == ']' || c == '}');
      if (depth > kMaxDepth) {
        *error = "they are nested more than " + std::to_string(kMaxDepth) + " deep";
        return std::nullopt;
      }
    }
  }
  tvm::ffi::String wrong;
  const tvm::ffi::json::Value parsed = tvm::ffi::json::Parse(text, &wrong);
  if (!wrong.empty()) {
    *error = "no JSON, " + std::string(wrong);
    return std::nullopt;
  }
  const auto object = parsed.as<tvm::ffi::json::Object>();
  if (!object) *error = "all of them is `" + parsed.GetTypeKey() + "`";
  return object;
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_PARSE_OBJECT_H_
