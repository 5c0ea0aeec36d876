#include "pool.h"

#include <sys/mman.h>

#include <algorithm>

namespace attnops::pool {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLine = 64;
constexpr size_t kRegion = size_t{32} << 20;  // for work, unless a block needs more

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// bytes: whole pages. Aligned to huge pages if it is as large as one; null: there is no more.
char* map_pages(size_t bytes) {
  const bool large = bytes >= kHugePage;
  const size_t with_margin = bytes + (large ? kHugePage - kPage : 0);
  void* found =
      mmap(nullptr, with_margin, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(found);
  if (!large) return begin;
  const uintptr_t at = reinterpret_cast<uintptr_t>(begin);
  const size_t before = round_up(at, kHugePage) - at, after = with_margin - bytes - before;
  if (before > 0) munmap(begin, before);
  if (after > 0) munmap(begin + before + bytes, after);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, bytes, MADV_HUGEPAGE);
#endif
  return begin + before;
}

}  // namespace

void* Pool::take(size_t bytes, Purpose purpose) {
  const std::lock_guard<std::mutex> lock(mutex);
  // A line more than needed: neighbours of whole pages would begin at one place of their pages, and
  // what is read from one and written to the other compete for the same lines of the first cache.
  if (purpose == Purpose::kWork) bytes = round_up(bytes, kLine) + kLine;
  Block* block = take_free(bytes, purpose);
  if (block == nullptr) block = map(bytes, purpose);
  if (block == nullptr) {
    release_unused_since(calls_);
    block = map(bytes, purpose);
  }
  if (block == nullptr) return nullptr;
  if (purpose == Purpose::kWork) split(block, bytes);
  block->used = true;
  block->region->last_call = calls_;
  used_[block->data] = block;
  used_bytes_ += block->size;
  if (purpose == Purpose::kWork) {
    work_used_ += block->size;
    most_used_ = std::max(most_used_, work_used_);
  }
  return block->data;
}

void Pool::give(void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = used_.find(data);
  Block* block = found->second;
  used_.erase(found);
  used_bytes_ -= block->size;
  block->used = false;
  block->region->last_call = calls_;
  const Purpose purpose = block->region->purpose;
  if (purpose == Purpose::kWork) work_used_ -= block->size;
  Free& free = free_for(purpose);
  if (block->after != nullptr && !block->after->used) {
    free.erase(block->after);
    join_after(block);
  }
  if (block->before != nullptr && !block->before->used) {
    block = block->before;
    free.erase(block);
    join_after(block);
  }
  // A caller may drop thousands of results at once; calls to come need few.
  const bool enough =
      purpose == Purpose::kResult && static_cast<int64_t>(free.size()) >= kRecentCalls + running_;
  if (block->is_whole() && (enough || !keeps_)) {
    unmap(block);
  } else {
    free.insert(block);
  }
}

bool Pool::owns(const void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  return used_.count(data) > 0;
}

void Pool::begin_call() {
  const std::lock_guard<std::mutex> lock(mutex);
  ++running_;
  keeps_ = true;
  release_unused_since(calls_ - kRecentCalls * running_ - 1);
  // A small block may keep a huge region alive, so it counts what was used, too. Twice that: free
  // memory between blocks is not always where it is needed.
  const size_t most = *std::max_element(most_used_before_.begin(), most_used_before_.end());
  release_work_above(2 * most + kRegion);
}

void Pool::end_call() {
  const std::lock_guard<std::mutex> lock(mutex);
  most_used_before_[calls_ % kRecentCalls] = std::exchange(most_used_, work_used_);
  ++calls_;
  --running_;
}

void Pool::release() {
  const std::lock_guard<std::mutex> lock(mutex);
  release_unused_since(calls_);
  keeps_ = running_ > 0;
}

Pool::Sizes Pool::sizes() {
  const std::lock_guard<std::mutex> lock(mutex);
  return {mapped_, used_bytes_};
}

Pool::Block* Pool::take_free(size_t bytes, Purpose purpose) {
  Free& free = free_for(purpose);
  const auto found = free.lower_bound(bytes);
  if (found == free.end()) return nullptr;
  Block* block = *found;
  // A result is not cut up, so one that is much too large would be wasted.
  if (purpose == Purpose::kResult && block->size > round_up(bytes + bytes / 8, kPage))
    return nullptr;
  free.erase(found);
  return block;
}

Pool::Block* Pool::map(size_t bytes, Purpose purpose) {
  const size_t size = purpose == Purpose::kWork ? round_up(std::max(bytes, kRegion), kHugePage)
                                                : round_up(bytes, kPage);
  char* data = map_pages(size);
  if (data == nullptr) return nullptr;
  mapped_ += size;
  if (purpose == Purpose::kWork) work_mapped_ += size;
  return new Block{new Region{purpose, size, calls_}, data, size, nullptr, nullptr, false};
}

void Pool::split(Block* block, size_t bytes) {
  if (block->size - bytes < kLine) return;
  char* const end = block->data + bytes;
  auto* rest =
      new Block{block->region, end, block->size - bytes, block, block->after, /*used=*/false};
  if (rest->after != nullptr) rest->after->before = rest;
  block->after = rest;
  block->size = bytes;
  free_for(Purpose::kWork).insert(rest);
}

void Pool::join_after(Block* block) {
  Block* const gone = block->after;
  block->size += gone->size;
  block->after = gone->after;
  if (block->after != nullptr) block->after->before = block;
  delete gone;
}

void Pool::unmap(Block* block) {
  munmap(block->data, block->size);
  mapped_ -= block->size;
  if (block->region->purpose == Purpose::kWork) work_mapped_ -= block->size;
  delete block->region;
  delete block;
}

void Pool::release_unused_since(int64_t call) {
  for (Free* free : {&work_, &results_}) {
    for (auto at = free->begin(); at != free->end();) {
      Block* const block = *at;
      if (block->is_whole() && block->region->last_call <= call) {
        at = free->erase(at);
        unmap(block);
      } else {
        ++at;
      }
    }
  }
}

void Pool::release_work_above(size_t bytes) {
  for (auto at = work_.end(); work_mapped_ > bytes && at != work_.begin();) {
    Block* const block = *--at;
    if (!block->is_whole()) continue;
    at = work_.erase(at);
    unmap(block);
  }
}

}  // namespace attnops::pool
