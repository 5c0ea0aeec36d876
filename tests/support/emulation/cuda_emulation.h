// Runs CUDA kernels on the host, so that g++'s sanitizers see every access they make. Test only.
//
// launch.h includes this header in place of the CUDA runtime when ATTNOPS_EMULATION is defined, and
// ATTNOPS_LAUNCH then runs the blocks of a grid one after another. The threads of a block are
// fibers of one OS thread; each runs until it waits (barrier, shuffle, vote) or returns.
//
// Order: ATTNOPS_EMULATION_ORDER = forward (default), reverse, or a number that seeds a random
// order for every round. A missing barrier gives a wrong result under one of two opposite orders.
// Built with -fsanitize=thread, it is reported as a data race under any: the sanitizer is told that
// only barriers and warp functions order the threads of a block (blocks count as ordered).
//
// Checked, with a message that names block, thread and source line, and exit status 86:
// a thread that returns, or waits at another place, while others wait for it; masks of warp
// functions (own bit, same mask and place in all lanes, lanes that returned); shuffles from lanes
// outside the mask; limits of grid, block and shared memory. Dynamic shared memory and
// ATTNOPS_SHARED_ARRAYs are heap blocks of exactly their size, filled with NaN at the start of
// every block.
//
// Not emulated: textures, clusters, cooperative groups, inline PTX, tensor cores, bulk copies. Such
// code stands behind ATTNOPS_EMULATION, with a plain path that runs here.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
// For the scheduler's own functions: their accesses are not the kernel's.
#define ATTNOPS_UNTRACKED __attribute__((no_sanitize_thread))
#else
#define ATTNOPS_UNTRACKED
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;
using cudaStream_t = void*;

namespace attnops::emulation {

// What came before before_others(x) came before all that follows a later after_others(x).
inline void before_others([[maybe_unused]] void* sync) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(sync);
#endif
}
inline void after_others([[maybe_unused]] void* sync) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(sync);
#endif
}

// Where a thread waits: the function it called and from which line.
struct Site {
  const char* what;
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && !std::strcmp(what, other.what) && !std::strcmp(file, other.file);
  }
};

enum class State { kReady, kAtBarrier, kAtWarp, kReturned };

struct Fiber {
  static constexpr size_t kStackBytes = 128 * 1024;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's
  unsigned index = 0;
  State state = State::kReady;
  Site site{};
  // A warp function: what this lane gives, whose value it takes (-1: its own), what it gets.
  unsigned mask = 0;
  int source = 0;
  bool vote = false;
  unsigned votes = 0;
  unsigned char value[16];
  unsigned char result[16];
};

// Memory of exactly `bytes` that is poisoned anew for every block.
class SharedBlock {
 public:
  static constexpr std::align_val_t kAlignment{128};
  explicit SharedBlock(size_t bytes)
      : bytes_(bytes), memory_(static_cast<unsigned char*>(::operator new(bytes, kAlignment))) {}
  ~SharedBlock() { ::operator delete(memory_, kAlignment); }
  SharedBlock(const SharedBlock&) = delete;
  SharedBlock& operator=(const SharedBlock&) = delete;

  unsigned char* get(uint64_t block) {
    after_others(this);
    if (block != block_) {
      std::memset(memory_, 0xFF, bytes_);  // NaN in every float type, -1 in integers
      block_ = block;
      before_others(this);
    }
    return memory_;
  }

 private:
  size_t bytes_;
  unsigned char* memory_;
  uint64_t block_ = 0;
};

class Machine {
 public:
  template <typename... Parameters, typename... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
              size_t shared_bytes, cudaStream_t, Arguments&&... arguments) {
    name_ = name;
    threads_ = block.x * block.y * block.z;
    if (threads_ == 0 || threads_ > 1024 || block.z > 64) fail("has an illegal block size");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > 65535 ||
        grid.z > 65535) {
      fail("has an illegal grid size");
    }
    if (shared_bytes > 227 * 1024) fail("asks for more shared memory than any device has");
    gridDim = grid;
    blockDim = block;
    body_ = [&] { kernel(arguments...); };
    while (fibers_.size() < threads_) fibers_.push_back(std::make_unique<Fiber>());
    dynamic_shared_ = std::make_unique<SharedBlock>(shared_bytes);
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
      for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block();
      }
    }
  }

  ATTNOPS_UNTRACKED unsigned char* dynamic_shared() { return dynamic_shared_->get(block_); }
  ATTNOPS_UNTRACKED uint64_t block() const { return block_; }
  ATTNOPS_UNTRACKED int lane() const { return static_cast<int>(current_->index % warpSize); }

  ATTNOPS_UNTRACKED void barrier(Site site) {
    current_->mask = 0;
    wait(State::kAtBarrier, site);
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
    wait(State::kAtWarp, site);
    std::memcpy(value, self.result, bytes);
    return self.votes;
  }

 private:
  ATTNOPS_UNTRACKED Fiber& fiber(unsigned index) const { return *fibers_[index]; }

  static uint3 position(unsigned index) {
    return {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
  }

  [[noreturn]] void fail(const std::string& what) const {
    std::fprintf(stderr, "attnops emulation: %s: block (%u, %u, %u):", name_, blockIdx.x,
                 blockIdx.y, blockIdx.z);
    if (current_) std::fprintf(stderr, " %s", describe(*current_).c_str());
    std::fprintf(stderr, " %s\n", what.c_str());
    std::fflush(stderr);
    std::_Exit(86);
  }

  std::string describe(const Fiber& fiber) const {
    const uint3 at = position(fiber.index);
    char text[512];
    int length = std::snprintf(text, sizeof(text), "thread (%u, %u, %u)", at.x, at.y, at.z);
    const auto append = [&](const char* format, auto... values) {
      length += std::snprintf(text + length, sizeof(text) - length, format, values...);
    };
    if (fiber.state == State::kReturned) {
      append(" has returned");
    } else if (fiber.site.what != nullptr) {
      append(" is at %s [%.200s:%d]", fiber.site.what, fiber.site.file, fiber.site.line);
      if (fiber.mask != 0) append(" with mask %08x", fiber.mask);
    }
    return text;
  }

  ATTNOPS_UNTRACKED void run_block() {
    ++block_;
    std::vector<unsigned> order(threads_);
    std::iota(order.begin(), order.end(), 0u);
    if (order_ == "reverse") std::reverse(order.begin(), order.end());
    const bool shuffled = order_ != "reverse" && order_ != "forward";
    for (unsigned index : order) start(fiber(index), index);
    before_others(&released_);
    do {
      if (shuffled) std::shuffle(order.begin(), order.end(), random_);
      for (unsigned index : order) {
        if (fiber(index).state == State::kReady) resume(fiber(index));
      }
    } while (release());
  }

  ATTNOPS_UNTRACKED void start(Fiber& fiber, unsigned index) {
    fiber.index = index;
    fiber.state = State::kReady;
    fiber.site = {};
    fiber.mask = 0;
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
    threadIdx = position(fiber.index);
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

  // Back to the scheduler, until it resumes this fiber (never, if it has returned).
  ATTNOPS_UNTRACKED void wait(State state, Site site) {
    Fiber& self = *current_;
    self.state = state;
    self.site = site;
    void* warp = &warps_[self.index / warpSize];
    before_others(state == State::kAtWarp ? warp : &arrived_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::kReturned ? nullptr : &self.fake_stack,
                                   scheduler_stack_, scheduler_stack_bytes_);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&self.context, &scheduler_);
    arrive(self.fake_stack);
    after_others(state == State::kAtWarp ? warp : &released_);
  }

  ATTNOPS_UNTRACKED void arrive([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // With no thread ready: lets those go on for whom all they wait for are there. Returns false when
  // all threads have returned.
  ATTNOPS_UNTRACKED bool release() {
    bool released = false;
    const Fiber* waiting = nullptr;
    for (unsigned index = 0; index < threads_; ++index) {
      const Fiber& fiber = this->fiber(index);
      if (fiber.state == State::kAtWarp) released |= release_warp(fiber);
      if (fiber.state != State::kReturned && !waiting) waiting = &fiber;
    }
    if (released) return true;
    after_others(&arrived_);
    if (!waiting) return false;
    for (unsigned index = 0; index < threads_; ++index) {
      const Fiber& fiber = this->fiber(index);
      const bool is_there = fiber.state == waiting->state && fiber.site == waiting->site &&
                            fiber.mask == waiting->mask;
      if (!is_there && waits_for(*waiting, fiber)) {
        fail(describe(*waiting) + " and waits, but " + describe(fiber));
      }
    }
    for (unsigned index = 0; index < threads_; ++index) fiber(index).state = State::kReady;
    before_others(&released_);
    return true;
  }

  static bool waits_for(const Fiber& waiting, const Fiber& other) {
    if (waiting.state == State::kAtBarrier) return true;
    const bool same_warp = waiting.index / warpSize == other.index / warpSize;
    return same_warp && (waiting.mask >> other.index % warpSize & 1);
  }

  // Completes the warp function at which `first` waits, if all lanes of its mask are there.
  ATTNOPS_UNTRACKED bool release_warp(const Fiber& first) {
    const unsigned base = first.index / warpSize * warpSize;
    const unsigned mask = first.mask;
    Fiber* lanes[warpSize] = {};
    unsigned votes = 0;
    for (unsigned lane = 0; lane < warpSize && base + lane < threads_; ++lane) {
      if (!(mask >> lane & 1)) continue;
      Fiber& other = fiber(base + lane);
      const bool there = other.state == State::kAtWarp && other.mask == mask;
      if (!there || !(other.site == first.site)) return false;
      lanes[lane] = &other;
      votes |= static_cast<unsigned>(other.vote) << lane;
    }
    for (Fiber* lane : lanes) {
      if (!lane) continue;
      const Fiber* source = lane->source < 0 ? lane : lanes[lane->source];
      if (!source) fail(describe(*lane) + " and reads a lane that does not take part");
      std::memcpy(lane->result, source->value, sizeof(lane->result));
      lane->votes = votes;
      lane->state = State::kReady;
    }
    return true;
  }

  static std::string read_order() {
    const char* order = std::getenv("ATTNOPS_EMULATION_ORDER");
    return order ? order : "forward";
  }

  const char* name_ = "";
  std::function<void()> body_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  unsigned threads_ = 0;
  uint64_t block_ = 0;  // number of the block since the start of the program, from 1
  Fiber* current_ = nullptr;
  std::unique_ptr<SharedBlock> dynamic_shared_;
  std::string order_ = read_order();
  std::mt19937 random_{static_cast<unsigned>(std::atoi(order_.c_str()))};
  ucontext_t scheduler_;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  void* scheduler_tsan_ = nullptr;
  // Addresses on which ThreadSanitizer is told of the order of threads.
  char arrived_ = 0, released_ = 0, warps_[1024 / warpSize] = {};
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

inline void Machine::enter() {
  Machine& self = machine();
  self.arrive(nullptr);
  after_others(&self.released_);
  self.body_();
  self.wait(State::kReturned, {});
}

}  // namespace attnops::emulation

#include "cuda_emulation_functions.h"
