// A host without Python and without the compiler: it loads a module that `make_model.py` has
// exported, and its weights, converts them in the memory they occupy, and runs the decoder. Weights
// that relax_inplace.runtime.save_params has saved converted are not converted again.
//
//   cpp_host MODEL.so WEIGHTS [--dump FILE]
//
// WEIGHTS is what checkpoint.h opens. What is needed: TVM's runtime, tvm-ffi, and the builtins.
// They are reached as a module reaches them, by tvm-ffi's global functions: relax_inplace has no
// headers, and those that TVM's wheel ships lack one that they include (tvm/support/io.h). Exit
// codes: 0 done, 1 refused or failed (one line on standard error), 2 wrong usage.
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#if defined(__linux__)
#include <elf.h>
#endif

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "checkpoint.h"

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

constexpr int kPooled = 2;  // tvm/runtime/memory/memory_manager.h, AllocatorType
constexpr double kMegabyte = 1e6;
constexpr double kSlack = 4.0;  // MB: pages of the process itself, of code that runs first here

static ffi::Function GlobalFunction(const char* name) {
  ffi::Optional<ffi::Function> function = ffi::Function::GetGlobal(name);
  if (!function.has_value()) {
    throw std::runtime_error(std::string("this process has no function `") + name +
                             "`: link relax_inplace::shared, or export the module with "
                             "--self-contained");
  }
  return function.value();
}

static ffi::Function FunctionOf(const ffi::Module& module, const std::string& name) {
  ffi::Optional<ffi::Function> function = module->GetFunction(name);
  if (!function.has_value()) throw std::runtime_error("the module has no function `" + name + "`");
  return function.value();
}

/*! \brief Refuses a library that is cut short: the system maps it all the same, and SIGBUS follows.
 */
static void RequireWhole(const std::string& library) {
  std::ifstream file(library, std::ios::binary);
  if (!file) throw std::runtime_error("no module at " + library);
#if defined(__linux__)
  Elf64_Ehdr header{};  // the table of sections is what linkers write last
  file.read(reinterpret_cast<char*>(&header), sizeof(header));
  const bool is_elf = file && std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0;
  const uint64_t end = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
  file.clear();
  const auto size = static_cast<uint64_t>(file.seekg(0, std::ios::end).tellg());
  if (is_elf && end > size) {
    throw std::runtime_error("the module at " + library + " is cut short: it has " +
                             std::to_string(size) + " bytes, expected " + std::to_string(end));
  }
#endif
}

/*! \brief A field of /proc/self/status, in MB: VmRSS is resident now, VmHWM was at the most. */
static double ResidentMegabytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) {
      return std::stod(line.substr(key.size() + 1)) * 1024 / kMegabyte;
    }
  }
  return 0;
}

/*! \brief Make VmHWM count from now; false where that cannot be done. */
static bool ResetPeak() {
#if defined(__GLIBC__)
  malloc_trim(0);  // the buffers that files were read into
#endif
  std::ofstream refs("/proc/self/clear_refs");
  return static_cast<bool>(refs << "5" << std::flush);
}

/*! \brief What the module says of its one transform: `inplace_param_map` (docs/runtime.md). */
struct Plan {
  std::string transform;
  std::string layout;               // the same for transforms that compute the same
  std::vector<TensorInfo> weights;  // what it takes
  std::vector<TensorInfo> params;   // what it makes of them
  size_t steps = 0;                 // slots that are written
  int64_t peak = 0;                 // bytes, the weights included

  explicit Plan(const ffi::Module& vm) {
    const auto text = FunctionOf(vm, "inplace_param_map")().cast<ffi::String>();
    for (const auto& [name, value] : json::Parse(text).cast<json::Object>()) {
      const auto entry = value.cast<json::Object>();
      if (entry["restores"] != nullptr || entry["streamed"].cast<bool>()) continue;
      transform = name.cast<std::string>();
      layout = entry["layout"].cast<std::string>();
      weights = TensorsOf(entry["weights"].cast<json::Array>());
      params = TensorsOf(entry["params"].cast<json::Array>());
      peak = entry["peak"].cast<int64_t>();
      for (const ffi::Any& one : entry["steps"].cast<json::Array>()) {
        steps += one.cast<json::Object>()["writes"].cast<json::Array>().size();
      }
    }
    if (transform.empty()) throw std::runtime_error("the module has no in-place transform");
  }

 private:
  /*! \brief Tensors by their slots, of a tuple without tuples in it. */
  static std::vector<TensorInfo> TensorsOf(const json::Array& entries) {
    std::vector<TensorInfo> tensors;
    for (const ffi::Any& one : entries) {
      const auto entry = one.cast<json::Object>();
      const auto name = entry["name"].cast<std::string>();
      if (entry["slot"].cast<std::string>() != std::to_string(tensors.size())) {
        throw std::runtime_error("weight `" + name + "` is in a tuple within the tuple of weights");
      }
      TensorInfo tensor{name, entry["dtype"].cast<std::string>(), {}};
      for (const ffi::Any& size : entry["shape"].cast<json::Array>()) {
        tensor.shape.push_back(size.cast<int64_t>());
      }
      tensors.push_back(tensor);
    }
    return tensors;
  }
};

/*! \brief Tensors of a checkpoint, held by the array alone. */
static ffi::Array<ffi::Tensor> Load(const Checkpoint& checkpoint,
                                    const std::vector<TensorInfo>& wanted) {
  ffi::Array<ffi::Tensor> tensors;
  for (const TensorInfo& one : wanted) tensors.push_back(checkpoint.Read(one));
  return tensors;
}

static double MegabytesOf(const ffi::Array<ffi::Tensor>& tensors) {
  size_t total = 0;
  for (const ffi::Tensor& tensor : tensors) total += ffi::GetDataSize(tensor);
  return static_cast<double>(total) / kMegabyte;
}

/*!
 * \brief Convert the weights, with a line for each that is done; check the peak by the plan.
 * \return The given array, or a new one if the transform makes another number of weights.
 */
static ffi::Array<ffi::Tensor> Convert(const ffi::Module& vm, const Plan& plan,
                                       const ffi::Array<ffi::Tensor>& weights) {
  size_t done = 0;
  // Told of each update: the slot, the bytes of its new tensors, or -1 if it is emptied, and of its
  // old ones; and once more, with no slot, when these are freed (cpp/update.cc).
  const ffi::Function progress = ffi::Function::FromPacked([&](ffi::PackedArgs args, ffi::Any*) {
    const auto slot = args[0].try_cast<std::string>();
    if (!slot.has_value() || args[1].cast<int64_t>() < 0) return;
    std::printf("step %zu of %zu  %-40s %8.2f MB\n", ++done, plan.steps,
                plan.params.at(std::stoul(*slot)).name.c_str(),
                static_cast<double>(args[1].cast<int64_t>()) / kMegabyte);
  });
  const ffi::Function run = GlobalFunction("relax_inplace.RunTransform");
  const double planned = static_cast<double>(plan.peak) / kMegabyte - MegabytesOf(weights);
  const bool is_measured = ResetPeak();
  const double before = ResidentMegabytes("VmRSS");
  const auto converted =
      run(progress, FunctionOf(vm, plan.transform), weights).cast<ffi::Array<ffi::Tensor>>();
  const double peak = ResidentMegabytes("VmHWM");
  if (!is_measured) {
    std::printf("peak: not measured, by the plan %.1f MB above the weights\n", planned);
    return converted;
  }
  std::printf("resident: %.1f MB before, %.1f MB at the peak, %.1f MB after\n", before, peak,
              ResidentMegabytes("VmRSS"));
  std::printf("above the weights: %.1f MB measured, %.1f MB planned\n", peak - before, planned);
  if (peak - before > planned + kSlack) {
    throw std::runtime_error("the conversion took more memory than its plan says");
  }
  return converted;
}

static ffi::Tensor Tokens(const std::vector<int32_t>& values) {
  const ffi::Function allocate = GlobalFunction("runtime.TVMTensorAllocWithScope");
  const ffi::Shape shape{1, static_cast<int64_t>(values.size())};
  const auto tokens =
      allocate(shape, DLDataType{kDLInt, 32, 1}, DLDevice{kDLCPU, 0}, nullptr).cast<ffi::Tensor>();
  std::memcpy(tokens.data_ptr(), values.data(), values.size() * sizeof(int32_t));
  return tokens;
}

static int32_t MostLikely(const ffi::Tensor& logits) {
  const auto* first = static_cast<const float*>(logits.data_ptr());
  return static_cast<int32_t>(std::max_element(first, first + logits.numel()) - first);
}

static void Dump(std::ofstream& file, const ffi::Tensor& tensor) {
  file.write(static_cast<const char*>(tensor.data_ptr()),
             static_cast<std::streamsize>(ffi::GetDataSize(tensor)));
}

/*!
 * \brief The weights that the model's functions take, from files.
 *
 * What decides whether they are converted is the mark in the files, never the shapes: a square
 * weight that was transposed looks as it did before.
 */
static ffi::Array<ffi::Tensor> ConvertedWeights(const ffi::Module& vm, const std::string& path) {
  const Plan plan(vm);
  const Checkpoint checkpoint(path);
  const std::optional<std::string>& layout = checkpoint.layout();
  if (layout.has_value() && (layout->empty() || *layout != plan.layout)) {
    throw std::runtime_error("the weights in " + path + " were converted to layout `" + *layout +
                             "`, expected weights as they were stored, or of layout `" +
                             plan.layout + "`; load the original ones");
  }
  const auto weights = Load(checkpoint, layout.has_value() ? plan.params : plan.weights);
  std::printf("%s: %zu weights, %.1f MB%s\n", path.c_str(), weights.size(), MegabytesOf(weights),
              layout.has_value() ? ", converted before" : "");
  return layout.has_value() ? weights : Convert(vm, plan, weights);
}

static void Run(const std::string& library, const std::string& path, const std::string& dump) {
  RequireWhole(library);
  // Without a slash the dynamic loader would look in the system's folders.
  const bool has_folder = library.find('/') != std::string::npos;
  const auto module = ffi::Module::LoadFromFile(has_folder ? library : "./" + library);
  const ffi::Module vm = FunctionOf(module, "vm_load_executable")().cast<ffi::Module>();
  FunctionOf(vm, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooled);
  const ffi::Array<ffi::Tensor> weights = ConvertedWeights(vm, path);

  const auto prefilled =
      FunctionOf(vm, "prefill")(Tokens({1, 8, 15, 22}), weights).cast<ffi::Array<ffi::Tensor>>();
  const int32_t first = MostLikely(prefilled[0]);
  const auto logits =
      FunctionOf(vm, "decode")(Tokens({first}), prefilled[1], weights).cast<ffi::Tensor>();
  std::printf("decode: after token %d comes %d\n", first, MostLikely(logits));
  if (!dump.empty()) {
    std::ofstream file(dump, std::ios::binary);
    for (const ffi::Tensor& weight : weights) Dump(file, weight);
    Dump(file, logits);
    if (!file.flush()) throw std::runtime_error("cannot write " + dump);
  }
}

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() != 2 && !(args.size() == 4 && args[2] == "--dump")) {
    std::cerr << "usage: cpp_host MODEL.so WEIGHTS [--dump FILE]\n";
    return 2;
  }
  try {
    Run(args[0], args[1], args.size() == 4 ? args[3] : "");
  } catch (const std::exception& error) {  // a tvm::ffi::Error is one: its first line says it
    std::fflush(stdout);
    std::string line = error.what();
    line.resize(std::min(line.size(), line.find('\n')));
    const auto is_control = [](unsigned char c) { return std::iscntrl(c) != 0; };
    std::replace_if(line.begin(), line.end(), is_control, '?');  // in names that files give
    std::cerr << "cpp_host: error: " << line << "\n";
    return 1;
  }
  return 0;
}
