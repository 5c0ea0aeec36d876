// Parts of the scratch memory of a worker.
#pragma once

#include "vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Hands out parts of the scratch memory in cache lines; without memory, it only counts.
class Arena {
 public:
  explicit Arena(void* data) : data_(static_cast<char*>(data)) {}

  template <class T>
  T* take(int64_t count) {
    char* part = data_ == nullptr ? nullptr : data_ + bytes_;
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(part);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* data_;
  int64_t bytes_ = 0;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
