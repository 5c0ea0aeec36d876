// The memory that deployed networks work in, kept from call to call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

namespace attnops::pool {

// What memory is for: what a call works in, and gives back before it ends; what it returns, which
// the caller may keep. Without a purpose it is none of the pool's business.
enum class Purpose : int { kNone, kWork, kResult };

// Calls for whose sake memory is kept that this one did not need.
constexpr int64_t kRecentCalls = 4;

// Blocks of regions, which are mapped from the kernel, large ones in huge pages if there are such.
//
// A region for work is cut up; free neighbours become one again, so that images of other sizes fit
// in. A result has a region of its own: what a caller keeps holds nothing but itself. Any thread
// may take and give.
class Pool {
 public:
  // Not initialised, aligned to cache lines. null: the kernel has no more.
  void* take(size_t bytes, Purpose purpose);
  // data: from `take`.
  void give(void* data);
  bool owns(const void* data);

  // Around a call of a network. When it begins, what no recent one needed goes.
  void begin_call();
  void end_call();
  // All that is not in use goes, and until the next call begins, what is given back.
  void release();
  // In the child of a fork, which has no other threads. calling: whether this one is in a call.
  void forget_other_threads(bool calling) { running_ = calling; }

  struct Sizes {
    size_t mapped, used;
  };
  Sizes sizes();

  // Held during a fork, so that the child finds it free and the rest consistent.
  std::mutex mutex;

 private:
  struct Region {
    Purpose purpose;
    size_t size;
    int64_t last_call;  // in which something was taken or given
  };
  struct Block {
    Region* region;
    char* data;
    size_t size;
    Block *before, *after;  // neighbours in the region
    bool used;

    bool is_whole() const { return size == region->size; }
  };
  // The smallest that fits first; of those, the one with the lowest address.
  struct Smaller {
    using is_transparent = void;
    bool operator()(const Block* a, const Block* b) const {
      return std::make_pair(a->size, a->data) < std::make_pair(b->size, b->data);
    }
    bool operator()(const Block* a, size_t size) const { return a->size < size; }
  };
  using Free = std::set<Block*, Smaller>;

  Free& free_for(Purpose purpose) { return purpose == Purpose::kWork ? work_ : results_; }
  Block* take_free(size_t bytes, Purpose purpose);
  Block* map(size_t bytes, Purpose purpose);
  void split(Block* block, size_t bytes);
  void join_after(Block* block);
  void unmap(Block* block);
  // Regions that nothing was taken from and given to since this call.
  void release_unused_since(int64_t call);
  // The largest regions for work that are free, until no more than these bytes are mapped for it.
  void release_work_above(size_t bytes);

  Free work_, results_;
  std::unordered_map<const void*, Block*> used_;
  size_t mapped_ = 0, used_bytes_ = 0;      // in all
  size_t work_mapped_ = 0, work_used_ = 0;  // for work
  size_t most_used_ = 0;                    // for work, since a call ended last
  std::array<size_t, kRecentCalls> most_used_before_{};
  int64_t calls_ = 0, running_ = 0;  // ended, running
  bool keeps_ = false;
};

}  // namespace attnops::pool
