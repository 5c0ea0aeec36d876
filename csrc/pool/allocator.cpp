// The pool as PyTorch's allocator on CPUs, for threads that are in a call of a deployed network.
//
// Allocators are no part of PyTorch's stable ABI, so this is a library of its own, which is loaded
// for the versions of PyTorch that it fits (models/deploy/working_memory.py).
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <torch/headeronly/version.h>

#include "pool.h"

#define ATTNOPS_EXPORT extern "C" __attribute__((visibility("default")))

namespace attnops::pool {
namespace {

constexpr size_t kSmallest = size_t{64} << 10;  // malloc keeps smaller ones itself

Pool& pool() {
  static Pool* const kept = new Pool;  // never destroyed: tensors may outlive all else
  return *kept;
}

thread_local Purpose purpose = Purpose::kNone;

void give(void* data) {
  c10::profiledCPUMemoryReporter().Delete(data);
  pool().give(data);
}

// What the pool has nothing to do with is allocated by the allocator that was there before, with
// its own deleter, as if this one were not there.
class Allocator final : public c10::Allocator {
 public:
  explicit Allocator(c10::Allocator* other) : other_(other) { other_delete = other->raw_deleter(); }

  c10::DataPtr allocate(size_t bytes) override {
    if (purpose != Purpose::kNone && bytes >= kSmallest) {
      if (void* data = pool().take(bytes, purpose)) {
        c10::profiledCPUMemoryReporter().New(data, bytes);
        return {data, data, &give, c10::Device(c10::DeviceType::CPU)};
      }
    }
    return other_->allocate(bytes);
  }

  bool is_simple_data_ptr(const c10::DataPtr& data) const override {
    return data.get_deleter() == &give ? data.get() == data.get_context()
                                       : other_->is_simple_data_ptr(data);
  }

  // Of `raw_allocate`, which leaves the deleter out: this one asks whose it is.
  c10::DeleterFnPtr raw_deleter() const override {
    return other_delete == nullptr ? nullptr : &raw_delete;
  }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    other_->copy_data(target, source, bytes);
  }

 private:
  static void raw_delete(void* data) { (pool().owns(data) ? &give : other_delete)(data); }

  static inline c10::DeleterFnPtr other_delete = nullptr;
  c10::Allocator* const other_;
};

Allocator* install() {
  auto* const allocator = new Allocator(c10::GetCPUAllocator());
  // With the priority of the one that is there: what could replace that one can replace this one.
  for (int priority = 0; priority < 256 && c10::GetCPUAllocator() != allocator; ++priority)
    c10::SetCPUAllocator(allocator, static_cast<uint8_t>(priority));
  pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); },
                 [] {
                   pool().forget_other_threads(purpose != Purpose::kNone);
                   pool().mutex.unlock();
                 });
  return allocator;
}

}  // namespace
}  // namespace attnops::pool

using attnops::pool::pool;
using attnops::pool::Purpose;

// The version of PyTorch that it was compiled for: 100 major + minor.
ATTNOPS_EXPORT int attnops_pool_torch() { return 100 * TORCH_VERSION_MAJOR + TORCH_VERSION_MINOR; }

// To be called before the others, once or more often.
ATTNOPS_EXPORT void attnops_pool_install() {
  static const auto* const allocator = attnops::pool::install();
  static_cast<void>(allocator);
}

// Says what this thread allocates for from now on; returns what it did so far. A call of a network
// begins where there was no purpose, and ends where there is none.
ATTNOPS_EXPORT int attnops_pool_use(int purpose) {
  const Purpose next = static_cast<Purpose>(purpose), last = attnops::pool::purpose;
  if (last == Purpose::kNone && next != Purpose::kNone) pool().begin_call();
  if (last != Purpose::kNone && next == Purpose::kNone) pool().end_call();
  attnops::pool::purpose = next;
  return static_cast<int>(last);
}

ATTNOPS_EXPORT void attnops_pool_release() { pool().release(); }
ATTNOPS_EXPORT size_t attnops_pool_mapped() { return pool().sizes().mapped; }
ATTNOPS_EXPORT size_t attnops_pool_used() { return pool().sizes().used; }
