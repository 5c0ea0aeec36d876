// Runs CUDA kernels on the host, so that g++'s sanitizers see every access they make. Test only.
//
// launch.h includes this header in place of the CUDA runtime when ATTNOPS_EMULATION is defined, and
// ATTNOPS_LAUNCH then runs the blocks of a grid one after another; ATTNOPS_LAUNCH_COOPERATIVE runs
// them together. Threads are fibers of one OS thread; each runs until it waits (barrier, shuffle,
// vote, tensor-core instruction) or returns.
//
// Order: ATTNOPS_EMULATION_ORDER = forward (default), reverse, or a number that seeds a random
// order for every round; in the first two a warp runs on alone until it comes to a
// barrier, and a block until it comes to one of the grid. A missing barrier gives a wrong result
// under one of two opposite orders. Built with -fsanitize=thread, it is reported as a data race
// under any: the sanitizer is told that only barriers and warp functions order the threads of a
// block, and only grid barriers the blocks of a cooperative launch (others count as ordered).
//
// Checked, with a message that names block, thread and source line, and exit status 86:
// a thread that returns, or waits at another place, while others wait for it; masks of warp
// functions (own bit, same mask and place in all lanes, lanes that returned); shuffles from lanes
// outside the mask; asynchronous copies that are misaligned or never waited for; grid barriers that
// blocks do not come to; limits of grid, block and shared memory. Dynamic shared memory and
// ATTNOPS_SHARED_ARRAYs are heap blocks of exactly their size, filled with NaN at the start of
// every block.
//
// Instructions (mma, ldmatrix, cp.async) and grid barriers are emulated behind the wrappers of
// csrc/cuda/common (cuda_emulation_instructions.h). Not emulated: textures, clusters, cooperative
// groups, other inline PTX, bulk copies. Such code stands behind ATTNOPS_EMULATION, with a plain
// path that runs here.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>

#include "cuda_emulation_fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
using cudaStream_t = void*;

namespace attnops::emulation {

class Machine {
 public:
  template <typename... Parameters, typename... Arguments>
  void launch(const char* name, bool together, void (*kernel)(Parameters...), dim3 grid, dim3 block,
              size_t shared_bytes, cudaStream_t, Arguments&&... arguments) {
    name_ = name;
    threads_ = block.x * block.y * block.z;
    if (threads_ == 0 || threads_ > 1024 || block.z > 64) fail("has an illegal block size");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > 65535 ||
        grid.z > 65535) {
      fail("has an illegal grid size");
    }
    if (shared_bytes > 227 * 1024) fail("asks for more shared memory than any device has");
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (together && blocks > SharedBlock::kMost) fail("has more blocks than may run together here");
    gridDim = grid;
    blockDim = block;
    body_ = [&] { kernel(arguments...); };
    dynamic_shared_ = std::make_unique<SharedBlock>(shared_bytes);
    const unsigned count = together ? static_cast<unsigned>(blocks) : 1;
    for (uint64_t first = 0; first < blocks; first += count) run_blocks(first, count);
  }

  ATTNOPS_UNTRACKED unsigned char* dynamic_shared() { return get(*dynamic_shared_); }
  ATTNOPS_UNTRACKED unsigned char* get(SharedBlock& memory) {
    return memory.get(current_->slot, current_->block->number);
  }
  ATTNOPS_UNTRACKED int lane() const { return static_cast<int>(current_->index % warpSize); }
  Fiber& current() const { return *current_; }
  ATTNOPS_UNTRACKED void stand_at(Site site) const { current_->site = site; }

  ATTNOPS_UNTRACKED void barrier(Site site) {
    Fiber& self = *current_;
    self.mask = 0;
    wait(State::kAtBarrier, site, &self.block->barriers[self.barriers++ % 2]);
  }

  // All threads of a block that have passed a barrier: the first adds one to `counter`.
  ATTNOPS_UNTRACKED void arrive_at_grid(unsigned* counter) {
    if (current_->index != 0) return;
    before_others(grid_sync(counter));
    ++*counter;
  }
  // Until `counter` reaches `target`.
  ATTNOPS_UNTRACKED void await_grid(Site site, unsigned* counter, unsigned target) {
    Fiber& self = *current_;
    self.mask = 0;
    self.counter = counter;
    self.target = target;
    void* sync = grid_sync(counter);
    wait(State::kAtGrid, site, &self.block->barriers[self.barriers++ % 2]);
    after_others(sync);
    ++self.grid_barriers;
  }

  // Gives `value` to the lanes of `mask`, takes that of lane `source`; returns the lanes that
  // voted.
  ATTNOPS_UNTRACKED unsigned exchange(Site site, unsigned mask, void* value, size_t bytes,
                                      int source, bool vote) {
    Fiber& self = *current_;
    self.site = site;
    self.mask = mask;
    if (!(mask >> lane() & 1)) fail("and passes a mask without its own lane");
    self.source = source;
    self.vote = vote;
    std::memcpy(self.value, value, bytes);
    wait(State::kAtWarp, site, &self.block->warps[self.index / warpSize]);
    std::memcpy(value, self.result, bytes);
    return self.votes;
  }

  // Gives `value` to all lanes of a full warp, and finds what lane k gave by given(k, which).
  ATTNOPS_UNTRACKED unsigned give(Site site, const void* value, size_t bytes) {
    Fiber& self = *current_;
    const unsigned which = self.gifts++ % 2;
    std::memcpy(self.given[which], value, bytes);
    char nothing = 0;
    exchange(site, 0xFFFFFFFFu, &nothing, sizeof(nothing), -1, false);
    return which;
  }
  ATTNOPS_UNTRACKED const unsigned char* given(int lane, unsigned which) const {
    const unsigned index = current_->index / warpSize * warpSize + lane;
    if (index >= threads_) fail("and needs a full warp");
    return fiber(current_->slot, index).given[which];
  }

  [[noreturn]] void fail(const std::string& what) const {
    std::fprintf(stderr, "attnops emulation: %s: block (%u, %u, %u):", name_, blockIdx.x,
                 blockIdx.y, blockIdx.z);
    if (current_) std::fprintf(stderr, " %s", describe(*current_, blockDim).c_str());
    std::fprintf(stderr, " %s\n", what.c_str());
    std::fflush(stderr);
    std::_Exit(86);
  }

 private:
  void* grid_sync(unsigned* counter) const {
    return reinterpret_cast<char*>(counter) + current_->grid_barriers % 2;
  }

  ATTNOPS_UNTRACKED Fiber& fiber(unsigned slot, unsigned index) const {
    return *fibers_[slot * threads_ + index];
  }

  // Runs blocks [first, first + count) together.
  ATTNOPS_UNTRACKED void run_blocks(uint64_t first, unsigned count) {
    while (fibers_.size() < count * threads_) fibers_.push_back(std::make_unique<Fiber>());
    while (blocks_.size() < count) blocks_.push_back(std::make_unique<Block>());
    for (unsigned slot = 0; slot < count; ++slot) {
      Block& block = *blocks_[slot];
      block.index = position_in(first + slot, gridDim);
      block.number = ++started_blocks_;
      for (unsigned index = 0; index < threads_; ++index) {
        start(fiber(slot, index), block, slot, index);
      }
    }
    std::vector<unsigned> order(count * threads_);
    std::iota(order.begin(), order.end(), 0u);
    if (order_ == "reverse") std::reverse(order.begin(), order.end());
    const bool shuffled = order_ != "reverse" && order_ != "forward";
    before_others(&started_);
    do {
      if (shuffled) std::shuffle(order.begin(), order.end(), random_);
      const size_t alone = shuffled ? order.size() : threads_;  // a block, and in it a warp
      for (size_t k = 0; k < order.size(); k += alone) {
        do {
          run_warps(order.data() + k, alone, shuffled);
        } while (!shuffled && release_block(order[k] / threads_));
      }
    } while (release(order));
    after_others(&finished_);
  }

  ATTNOPS_UNTRACKED void run_warps(const unsigned* fibers, size_t count, bool shuffled) {
    for (size_t k = 0, end; k < count; k = end) {
      end = k;
      while (end < count && (shuffled || same_warp(fibers[k], fibers[end]))) ++end;
      do {
        for (size_t i = k; i < end; ++i) {
          if (fibers_[fibers[i]]->state == State::kReady) resume(*fibers_[fibers[i]]);
        }
      } while (!shuffled && release_warps(fibers + k, end - k));
    }
  }

  bool same_warp(unsigned a, unsigned b) const {
    return a / threads_ == b / threads_ && a % threads_ / warpSize == b % threads_ / warpSize;
  }

  ATTNOPS_UNTRACKED void start(Fiber& fiber, Block& block, unsigned slot, unsigned index) {
    fiber.block = &block;
    fiber.slot = slot;
    fiber.index = index;
    fiber.state = State::kReady;
    fiber.site = {};
    fiber.mask = fiber.barriers = fiber.grid_barriers = fiber.gifts = 0;
    fiber.copies.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = Fiber::kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Machine::enter, 0);
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), Fiber::kStackBytes);
#elif defined(__SANITIZE_THREAD__)
    if (fiber.tsan == nullptr) fiber.tsan = __tsan_create_fiber(0);
#endif
  }

  ATTNOPS_UNTRACKED static void enter();

  // Runs a thread until it waits or returns.
  ATTNOPS_UNTRACKED void resume(Fiber& fiber) {
    current_ = &fiber;
    threadIdx = position_in(fiber.index, blockDim);
    blockIdx = fiber.block->index;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack.get(), Fiber::kStackBytes);
#elif defined(__SANITIZE_THREAD__)
    if (scheduler_tsan_ == nullptr) scheduler_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&scheduler_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
    current_ = nullptr;
  }

  // Back to the scheduler, until it resumes this fiber (never, if it has returned). `sync` stands
  // for the threads that wait for each other.
  ATTNOPS_UNTRACKED void wait(State state, Site site, void* sync) {
    Fiber& self = *current_;
    self.state = state;
    self.site = site;
    before_others(sync);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::kReturned ? nullptr : &self.fake_stack,
                                   scheduler_stack_, scheduler_stack_bytes_);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&self.context, &scheduler_);
    arrive(self.fake_stack);
    after_others(sync);
  }

  ATTNOPS_UNTRACKED void arrive([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // With no thread ready: lets those go on for whom all they wait for are there. Returns false when
  // all threads of these blocks have returned.
  ATTNOPS_UNTRACKED bool release(const std::vector<unsigned>& order) {
    if (release_warps(order.data(), order.size())) return true;
    bool released = false;
    const Fiber* stuck = nullptr;
    for (unsigned slot = 0; slot < order.size() / threads_; ++slot) {
      if (release_block(slot)) {
        released = true;
        continue;
      }
      const Fiber* waiting = all_wait(slot);
      if (waiting && *waiting->counter < waiting->target) {
        stuck = waiting;
      } else if (waiting) {
        make_ready(slot);
        released = true;
      }
    }
    if (stuck && !released) {
      fail(describe(*stuck, blockDim) + " and waits for blocks that do not come");
    }
    return released;
  }

  // Lets the threads of a block pass a barrier, if all are there.
  ATTNOPS_UNTRACKED bool release_block(unsigned slot) {
    const Fiber* waiting = all_wait(slot);
    if (!waiting || waiting->state == State::kAtGrid) return false;
    make_ready(slot);
    return true;
  }

  ATTNOPS_UNTRACKED void make_ready(unsigned slot) {
    for (unsigned index = 0; index < threads_; ++index) fiber(slot, index).state = State::kReady;
  }

  // A thread of the block, if all wait at one place; null if all have returned.
  ATTNOPS_UNTRACKED const Fiber* all_wait(unsigned slot) const {
    const Fiber* waiting = nullptr;
    blockIdx = blocks_[slot]->index;  // of which messages speak
    for (unsigned index = 0; index < threads_ && !waiting; ++index) {
      const Fiber& fiber = this->fiber(slot, index);
      if (fiber.state != State::kReturned) waiting = &fiber;
    }
    if (!waiting) return nullptr;
    for (unsigned index = 0; index < threads_; ++index) {
      const Fiber& fiber = this->fiber(slot, index);
      const bool is_there = fiber.state == waiting->state && fiber.site == waiting->site &&
                            fiber.mask == waiting->mask;
      if (!is_there && waits_for(*waiting, fiber)) {
        fail(describe(*waiting, blockDim) + " and waits, but " + describe(fiber, blockDim));
      }
    }
    return waiting;
  }

  // Completes the warp functions of these fibers that can be.
  ATTNOPS_UNTRACKED bool release_warps(const unsigned* fibers, size_t count) {
    bool released = false;
    for (size_t k = 0; k < count; ++k) {
      const Fiber& fiber = *fibers_[fibers[k]];
      if (fiber.state == State::kAtWarp) released |= release_warp(fiber);
    }
    return released;
  }

  // Completes the warp function at which `first` waits, if all lanes of its mask are there.
  ATTNOPS_UNTRACKED bool release_warp(const Fiber& first) {
    const unsigned base = first.index / warpSize * warpSize;
    const unsigned mask = first.mask;
    Fiber* lanes[warpSize] = {};
    unsigned votes = 0;
    for (unsigned lane = 0; lane < warpSize && base + lane < threads_; ++lane) {
      if (!(mask >> lane & 1)) continue;
      Fiber& other = fiber(first.slot, base + lane);
      const bool there = other.state == State::kAtWarp && other.mask == mask;
      if (!there || !(other.site == first.site)) return false;
      lanes[lane] = &other;
      votes |= static_cast<unsigned>(other.vote) << lane;
    }
    for (Fiber* lane : lanes) {
      if (!lane) continue;
      const Fiber* source = lane->source < 0 ? lane : lanes[lane->source];
      if (!source) fail(describe(*lane, blockDim) + " and reads a lane that does not take part");
      std::memcpy(lane->result, source->value, sizeof(lane->result));
      lane->votes = votes;
      lane->state = State::kReady;
    }
    return true;
  }

  const char* name_ = "";
  std::function<void()> body_;
  std::vector<std::unique_ptr<Fiber>> fibers_;  // those of a block together
  std::vector<std::unique_ptr<Block>> blocks_;
  unsigned threads_ = 0;  // of a block
  uint64_t started_blocks_ = 0;
  Fiber* current_ = nullptr;
  std::unique_ptr<SharedBlock> dynamic_shared_;
  std::string order_ = read_order();
  std::mt19937 random_{static_cast<unsigned>(std::atoi(order_.c_str()))};
  ucontext_t scheduler_;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  void* scheduler_tsan_ = nullptr;
  char started_ = 0, finished_ = 0;  // blocks that run together, for ThreadSanitizer
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

inline void Machine::enter() {
  Machine& self = machine();
  self.arrive(nullptr);
  after_others(&self.started_);
  self.body_();
  for (const auto& group : self.current_->copies) {
    if (!group.empty()) self.fail("returns while its copies are on their way");
  }
  self.wait(State::kReturned, {}, &self.finished_);
}

}  // namespace attnops::emulation

#include "cuda_emulation_functions.h"
