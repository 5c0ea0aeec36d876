// What the emulation of cuda_emulation.h keeps of threads and blocks, and tells the sanitizers.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
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

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

constexpr int warpSize = 32;

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

// A cp.async on its way: what a thread copies when it waits for it.
struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;  // the rest, up to `size`, becomes zero
  int size;
};

// A block that is running, and the addresses on which ThreadSanitizer is told of the order of its
// threads. Barriers take turns at two of them: a thread may be at the next before all have left.
struct Block {
  uint3 index;
  uint64_t number;  // since the start of the program, from 1
  char barriers[2], warps[1024 / warpSize];
};

enum class State { kReady, kAtBarrier, kAtGrid, kAtWarp, kReturned };

struct Fiber {
  static constexpr size_t kStackBytes = 128 * 1024;
  static constexpr size_t kGivenBytes = 48;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's
  Block* block = nullptr;
  unsigned slot = 0;   // of the block, among those that run together
  unsigned index = 0;  // in the block
  State state = State::kReady;
  Site site{};
  unsigned barriers = 0, grid_barriers = 0;  // passed or waited at
  // A grid barrier: the number of arrivals, and how many the thread waits for.
  unsigned* counter = nullptr;
  unsigned target = 0;
  // A warp function: what this lane gives, whose value it takes (-1: its own), what it gets.
  unsigned mask = 0;
  int source = 0;
  bool vote = false;
  unsigned votes = 0;
  unsigned char value[16];
  unsigned char result[16];
  // What it gives to all lanes; two take turns, as a lane may be at the next before all have read.
  alignas(16) unsigned char given[2][kGivenBytes];
  unsigned gifts = 0;
  // Groups of copies on their way, oldest first; the last is not committed yet.
  std::vector<std::vector<Copy>> copies{1};
};

inline uint3 position_in(uint64_t index, dim3 extent) {
  return {static_cast<unsigned>(index % extent.x),
          static_cast<unsigned>(index / extent.x % extent.y),
          static_cast<unsigned>(index / extent.x / extent.y)};
}

// Thread and place, for messages.
inline std::string describe(const Fiber& fiber, dim3 block_dim) {
  const uint3 at = position_in(fiber.index, block_dim);
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

// Whether `waiting` cannot go on without `other`, of the same block.
inline bool waits_for(const Fiber& waiting, const Fiber& other) {
  if (waiting.state != State::kAtWarp) return true;
  const bool same_warp = waiting.index / warpSize == other.index / warpSize;
  return same_warp && (waiting.mask >> other.index % warpSize & 1);
}

inline std::string read_order() {
  const char* order = std::getenv("ATTNOPS_EMULATION_ORDER");
  return order ? order : "forward";
}

// Memory of exactly `bytes` for each of the blocks that run together, poisoned anew for every
// block.
class SharedBlock {
 public:
  static constexpr std::align_val_t kAlignment{128};
  static constexpr unsigned kMost = 1024;  // blocks that run together
  explicit SharedBlock(size_t bytes) : bytes_(bytes) {}
  ~SharedBlock() {
    for (Part& part : parts_) ::operator delete(part.memory, kAlignment);
  }
  SharedBlock(const SharedBlock&) = delete;
  SharedBlock& operator=(const SharedBlock&) = delete;

  ATTNOPS_UNTRACKED unsigned char* get(unsigned slot, uint64_t block) {
    Part& part = parts_[slot];
    after_others(&part);
    if (block != part.block) {
      if (part.memory == nullptr) {
        part.memory = static_cast<unsigned char*>(::operator new(bytes_, kAlignment));
      }
      std::memset(part.memory, 0xFF, bytes_);  // NaN in every float type, -1 in integers
      part.block = block;
      before_others(&part);
    }
    return part.memory;
  }

 private:
  struct Part {
    unsigned char* memory = nullptr;
    uint64_t block = 0;
  };
  size_t bytes_;
  Part parts_[kMost];
};

}  // namespace attnops::emulation
