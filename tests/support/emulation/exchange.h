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

// The exit status of a driver that cannot run a problem.
inline int refuse(const char* what) {
  std::cerr << "unsupported " << what << "\n";
  return 2;
}

inline std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Calls function(T{}) with the element type of number `dtype`; the exit status.
template <typename Function>
int with_dtype(int64_t dtype, const Function& function) {
  if (dtype == 0) return function(float{}), 0;
#if !defined(FLOAT32_ONLY)
  if (dtype == 1) return function(__half{}), 0;
  if (dtype == 2) return function(__nv_bfloat16{}), 0;
  if (dtype == 3) return function(double{}), 0;
#endif
  return refuse("dtype");
}

// main of a driver `NAME REQUEST RESULT`: calls run(bytes of the file REQUEST, the file RESULT),
// which returns the exit status.
template <typename Run>
int drive(int argc, char** argv, const Run& run) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " REQUEST RESULT\n";
    return 2;
  }
  const std::string request = read_file(argv[1]);
  std::ofstream result(argv[2], std::ios::binary);
  const int status = run(request.data(), result);
  return status == 0 && !result.good() ? 1 : status;
}

}  // namespace attnops::emulation
