// The library by itself, without Python and TVM: so it runs where these do not, such as under an
// emulator. Loads it, and calls what modules call: update, donation of storage, relayouts, each
// compared with loops.
//
//   check_builtins LIBRELAX_INPLACE.so
#include <dlfcn.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

static std::mt19937_64 random_numbers(1);

static int64_t Below(int64_t count) { return static_cast<int64_t>(random_numbers() % count); }

static void Require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("it does not hold that ") + what);
}

/*! \brief Memory as TVM's runtime allocates it. */
struct HostMemory {
  void AllocData(DLTensor* tensor) {
    tensor->data = std::aligned_alloc(64, (ffi::GetDataSize(*tensor) + 64) / 64 * 64);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

/*! \brief What the library asks TVM's runtime for. */
static void StandInForTVM() {
  ffi::Function::SetGlobal(
      "runtime.TVMTensorAllocWithScope",
      ffi::Function::FromTyped([](const ffi::Shape& shape, DLDataType dtype, DLDevice device,
                                  const ffi::Optional<ffi::String>&) {
        return ffi::Tensor::FromNDAlloc(HostMemory(), shape, dtype, device);
      }));
}

static ffi::Function Builtin(const char* name) { return ffi::Function::GetGlobalRequired(name); }

/*! \brief A tensor of random bytes, in pages of its own: large enough for that. */
static ffi::Tensor AnyTensor(const ffi::Shape& shape, DLDataType dtype) {
  const auto tensor = Builtin("relax_inplace.AllocateTensor")(shape, dtype, DLDevice{kDLCPU, 0})
                          .cast<ffi::Tensor>();
  auto* bytes = static_cast<unsigned char*>(tensor.data_ptr());
  for (size_t i = 0; i < ffi::GetDataSize(tensor); ++i) {
    bytes[i] = static_cast<unsigned char>(random_numbers() >> 11);
  }
  return tensor;
}

static std::vector<unsigned char> BytesOf(const ffi::Tensor& tensor) {
  const auto* bytes = static_cast<const unsigned char*>(tensor.data_ptr());
  return {bytes, bytes + ffi::GetDataSize(tensor)};
}

static void CheckUpdate() {
  constexpr DLDataType kHalf{kDLFloat, 16, 1};
  const ffi::Function update = Builtin("vm.builtin.inplace_update_tuple");
  const ffi::Tensor made = AnyTensor({256, 4096}, kHalf);
  ffi::Tensor old = AnyTensor({4096, 256}, kHalf);
  const ffi::Tensor other = AnyTensor({4096, 256}, kHalf);
  const ffi::Array<ffi::Tensor> tuple{old, other};
  const auto updated = update(tuple, 0, made).cast<ffi::Array<ffi::Tensor>>();
  Require(updated.same_as(tuple), "the same tuple comes back");
  Require(tuple[0].same_as(made) && tuple[1].same_as(other), "one field is another");
  Require(old.use_count() == 1, "the old field is let go");
  bool is_refused = false;
  try {
    update(tuple, 2, made);
  } catch (const ffi::Error& error) {
    is_refused = error.kind() == "IndexError";
  }
  Require(is_refused, "there is no third field");
  std::printf(
      "update: the same tuple, the old field is freed, an index too far is an IndexError\n");
}

static void CheckDonation() {
  constexpr DLDataType kByte{kDLUInt, 8, 1};
  constexpr DLDataType kFloat{kDLFloat, 32, 1};
  const ffi::Function donate = Builtin("vm.builtin.donate_storage");
  ffi::Tensor spent = AnyTensor({1 << 20}, kFloat);
  const std::vector<unsigned char> before = BytesOf(spent);
  const void* storage = spent.data_ptr();
  // The caller's reference alone keeps it: what is passed is borrowed.
  auto made = donate(spent, nullptr, ffi::Shape{4 << 20}, kByte).cast<ffi::Tensor>();
  Require(made.data_ptr() == storage && BytesOf(made) == before, "the storage is taken as it is");
  const auto copy = donate(spent, nullptr, ffi::Shape{4 << 20}, kByte).cast<ffi::Tensor>();
  Require(copy.data_ptr() != storage, "what something else refers to is not taken");
  Require(BytesOf(spent) == before, "nothing is written to it");
  std::printf("donate: taken where the caller alone refers to it, left alone elsewhere\n");
}

/*! \brief A transposition of any axes: what is moved, as the builtin is told, and by loops. */
struct Transposition {
  int64_t element;  // bytes
  std::vector<int64_t> extents, read, into;

  Transposition() : element(int64_t{1} << Below(5)), extents(2 + Below(3)) {
    std::vector<size_t> order(extents.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_numbers);
    for (int64_t& extent : extents) extent = 1 + Below(70);
    read.resize(extents.size());
    into.resize(extents.size());
    int64_t stride = element;
    for (size_t i = extents.size(); i-- > 0; stride *= extents[i]) read[i] = stride;
    stride = element;
    for (const size_t i : order) {
      into[i] = stride;
      stride *= extents[i];
    }
  }

  int64_t Bytes() const {
    return std::accumulate(extents.begin(), extents.end(), element, std::multiplies<>());
  }

  void RunBuiltin(const ffi::Tensor& source, const ffi::Tensor& target) const {
    std::vector<ffi::AnyView> args{source,
                                   target,
                                   int64_t{1},
                                   8 * element,
                                   int64_t{0},
                                   int64_t{0},  // read, into
                                   int64_t{0},
                                   int64_t{0},  // a pattern, fills
                                   static_cast<int64_t>(extents.size())};
    for (size_t i = 0; i < extents.size(); ++i) {
      args.insert(args.end(), {extents[i], 8 * into[i], 8 * read[i]});
    }
    ffi::Any none;
    Builtin("relax_inplace.relayout")
        .CallPacked(ffi::PackedArgs(args.data(), static_cast<int32_t>(args.size())), &none);
  }

  void RunLoops(const unsigned char* source, unsigned char* target, size_t axis = 0) const {
    if (axis == extents.size()) {
      std::memcpy(target, source, element);
      return;
    }
    for (int64_t i = 0; i < extents[axis]; ++i) {
      RunLoops(source + i * read[axis], target + i * into[axis], axis + 1);
    }
  }
};

static void CheckRelayouts(int count) {
  constexpr DLDataType kByte{kDLUInt, 8, 1};
  int64_t bytes = 0;
  for (int moved = 0; moved < count;) {
    const Transposition one;
    if (one.Bytes() < (1 << 20) || one.Bytes() > (4 << 20)) continue;
    const ffi::Shape shape{one.Bytes()};
    const ffi::Tensor source = AnyTensor(shape, kByte);
    const ffi::Tensor target = AnyTensor(shape, kByte);
    const std::vector<unsigned char> before = BytesOf(source);
    std::vector<unsigned char> expected(before.size());
    one.RunLoops(before.data(), expected.data());
    one.RunBuiltin(source, target);
    Require(BytesOf(source) == before, "a move leaves its source as it is");
    Require(BytesOf(target) == expected, "a move gives the bits that loops give");
    one.RunBuiltin(source, source);
    Require(BytesOf(source) == expected, "a move in place gives the bits that loops give");
    bytes += one.Bytes();
    ++moved;
  }
  std::printf("relayout: %d moves, %.1f MB, out of place and in place, bitwise as by loops\n",
              count, static_cast<double>(bytes) / 1e6);
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: check_builtins LIBRELAX_INPLACE.so\n");
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "check_builtins: error: %s\n", dlerror());
    return 1;
  }
  try {
    StandInForTVM();
    std::printf("%s\n", Builtin("relax_inplace.Builtins")().cast<std::string>().c_str());
    CheckUpdate();
    CheckDonation();
    CheckRelayouts(20);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "check_builtins: error: %s\n", error.what());
    return 1;
  }
  return 0;
}
