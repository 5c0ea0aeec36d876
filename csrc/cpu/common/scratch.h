// Scratch memory of calls, which the next call finds in the caches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace attnops::cpu {

// Memory of calls that are over. The allocator would give it to maps, and the next call would write
// to lines that have to come from main memory first.
class ScratchStore {
 public:
  static constexpr std::align_val_t kAlignment{64};

  struct Block {
    char* data;
    size_t bytes;
  };

  static ScratchStore& of_process() {
    static ScratchStore* const store = new ScratchStore;  // outlives every thread
    return *store;
  }

  Block take(size_t bytes) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock.owns_lock()) {
      const auto found = std::find_if(kept_.rbegin(), kept_.rend(),
                                      [=](const Block& block) { return block.bytes >= bytes; });
      if (found != kept_.rend()) {
        const Block block = *found;
        kept_.erase(std::next(found).base());
        kept_bytes_ -= block.bytes;
        return block;
      }
    }
    return {static_cast<char*>(::operator new(bytes, kAlignment)), bytes};
  }

  // Keeps it, and what was given back last of the others, up to kMostBytes.
  void give_back(const Block& block) {
    std::vector<Block> dropped = {block};
    // A lock that is held is not waited for: in a forked process nobody may be left to release it.
    if (const std::unique_lock lock(mutex_, std::try_to_lock);
        lock.owns_lock() && block.bytes <= kMostBytes) {
      dropped.clear();
      kept_.push_back(block);
      kept_bytes_ += block.bytes;
      while (kept_bytes_ > kMostBytes) {
        dropped.push_back(kept_.front());
        kept_bytes_ -= kept_.front().bytes;
        kept_.erase(kept_.begin());
      }
    }
    for (const Block& old : dropped) ::operator delete(old.data, kAlignment);
  }

 private:
  static constexpr size_t kMostBytes = size_t{32} << 20;

  std::mutex mutex_;
  std::vector<Block> kept_;  // the last one was given back last
  size_t kept_bytes_ = 0;
};

// Bytes for the kernels, aligned to cache lines, not initialised.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : block_(ScratchStore::of_process().take(static_cast<size_t>(std::max<int64_t>(bytes, 64)))) {
  }
  Scratch(Scratch&& other) noexcept : block_(std::exchange(other.block_, {nullptr, 0})) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (block_.data != nullptr) ScratchStore::of_process().give_back(block_);
  }

  char* at(int64_t offset) const { return block_.data + offset; }

 private:
  ScratchStore::Block block_;
};

}  // namespace attnops::cpu
