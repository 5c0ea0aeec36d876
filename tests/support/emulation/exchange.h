// What the drivers of emulated kernels share: the request they read and the arrays they fill.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "cuda/common/element.cuh"

namespace attnops::emulation {

// An array in a heap block of exactly its size, `misalign` elements off a 16-byte boundary. Starts
// as NaN.
template <typename T>
class Array {
 public:
  explicit Array(size_t count, int64_t misalign = 0)
      : bytes_(count * sizeof(T)),
        offset_(misalign * sizeof(T)),
        memory_(new char[offset_ + bytes_]) {
    std::fill_n(memory_.get(), offset_ + bytes_, static_cast<char>(0xFF));
  }
  T* data() { return reinterpret_cast<T*>(memory_.get() + offset_); }
  const char* read(const char* from) {
    std::copy_n(from, bytes_, memory_.get() + offset_);
    return from + bytes_;
  }
  void write(std::ostream& file) { file.write(memory_.get() + offset_, bytes_); }

 private:
  size_t bytes_;
  size_t offset_;
  std::unique_ptr<char[]> memory_;
};

// What every request starts with.
struct Form {
  int64_t dtype;  // 0 float32, 1 float16, 2 bfloat16, 3 float64
  int64_t backward, channels_last;
  int64_t multiprocessors, misalign;
};

// The next `count` values of a request.
template <typename T>
std::vector<T> take(const char*& bytes, size_t count) {
  std::vector<T> values(count);
  std::copy_n(bytes, count * sizeof(T), reinterpret_cast<char*>(values.data()));
  bytes += count * sizeof(T);
  return values;
}

inline std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Calls function(T{}) with the element type of number `dtype`; false if there is none.
template <typename Function>
bool with_dtype(int64_t dtype, const Function& function) {
  if (dtype == 0) return function(float{}), true;
#if !defined(FLOAT32_ONLY)
  if (dtype == 1) return function(__half{}), true;
  if (dtype == 2) return function(__nv_bfloat16{}), true;
  if (dtype == 3) return function(double{}), true;
#endif
  return false;
}

// main of a driver `NAME REQUEST RESULT`. The request starts with a Driver::Fields, the first of
// which is a Form; Driver::problem takes what it needs of the rest, and Driver::run<T>(fields,
// problem, rest, file RESULT) does it, unless Driver::supported says that it cannot: then an error
// names Driver::kRefused. Returns the exit status.
template <typename Driver>
int drive(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " REQUEST RESULT\n";
    return 2;
  }
  const std::string request = read_file(argv[1]);
  const char* bytes = request.data();
  const auto fields = take<typename Driver::Fields>(bytes, 1)[0];
  const auto problem = Driver::problem(fields, bytes);
  if (!Driver::supported(problem)) {
    std::cerr << "unsupported " << Driver::kRefused << "\n";
    return 2;
  }
  std::ofstream result(argv[2], std::ios::binary);
  const bool known = with_dtype(fields.form.dtype, [&](auto element) {
    Driver::template run<decltype(element)>(fields, problem, bytes, result);
  });
  if (!known) return 2;
  return result.good() ? 0 : 1;
}

}  // namespace attnops::emulation
