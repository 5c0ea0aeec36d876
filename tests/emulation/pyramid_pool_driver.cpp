// Runs one pyramid_pool problem through the emulated CUDA kernels.
//
//   pyramid_pool_driver REQUEST RESULT
//
// REQUEST holds int64 fields (struct Request), the level sizes, then the input elements: x in the
// given layout for the forward; grad `[B, C, S]`, then for max argmax `[B, C, S]` int32 for the
// backward. RESULT receives out, then for max argmax; or grad_x. Every array lies in a heap block
// of exactly its size, `misalign` elements off a 16-byte boundary; results start as NaN.
#include <fstream>
#include <iostream>
#include <iterator>

#include "cuda/pyramid_pool_launch.cuh"

namespace {

using namespace attnops::cuda;

struct Request {
  int64_t dtype;  // 0 float32, 1 float16, 2 bfloat16, 3 float64
  int64_t backward, use_max, channels_last;
  int64_t batch, channels, height, width;
  int64_t multiprocessors, misalign, levels;
};

template <typename T>
class Array {
 public:
  Array(size_t count, int64_t misalign)
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

template <typename T>
void run(const Request& request, const PoolProblem& problem, const char* input,
         std::ostream& file) {
  const size_t pixels = problem.planes() * problem.height * problem.width;
  const size_t cells = problem.planes() * make_levels(problem.sizes).cells;
  Array<T> map(pixels, request.misalign);
  Array<T> pooled(cells, request.misalign);
  Array<int32_t> argmax(problem.use_max ? cells : 0, 0);
  if (request.backward) {
    input = pooled.read(input);
    argmax.read(input);
    pool_backward<T>(problem, pooled.data(), argmax.data(), map.data(), nullptr);
    map.write(file);
    return;
  }
  map.read(input);
  const PoolSchedule schedule = schedule_forward<T>(problem, is_aligned(map.data()));
  Array<char> scratch(schedule.scratch_bytes, 0);
  pool_forward<T>(problem, schedule, map.data(), pooled.data(), argmax.data(),
                  schedule.scratch_bytes > 0 ? scratch.data() : nullptr, nullptr);
  pooled.write(file);
  argmax.write(file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: pyramid_pool_driver REQUEST RESULT\n";
    return 2;
  }
  std::ifstream input(argv[1], std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(input), {}};
  Request request;
  std::memcpy(&request, bytes.data(), sizeof(request));
  std::vector<int64_t> sizes(request.levels);
  std::memcpy(sizes.data(), bytes.data() + sizeof(request), sizes.size() * sizeof(int64_t));
  const PoolProblem problem{request.batch,
                            request.channels,
                            static_cast<int>(request.height),
                            static_cast<int>(request.width),
                            sizes,
                            request.use_max != 0,
                            request.channels_last != 0,
                            static_cast<int>(request.multiprocessors)};
  if (!levels_supported(sizes)) {
    std::cerr << "unsupported levels\n";
    return 2;
  }
  const char* data = bytes.data() + sizeof(request) + sizes.size() * sizeof(int64_t);
  std::ofstream file(argv[2], std::ios::binary);
  switch (request.dtype) {
    case 0:
      run<float>(request, problem, data, file);
      break;
#if !defined(FLOAT32_ONLY)
    case 1:
      run<__half>(request, problem, data, file);
      break;
    case 2:
      run<__nv_bfloat16>(request, problem, data, file);
      break;
    case 3:
      run<double>(request, problem, data, file);
      break;
#endif
    default:
      return 2;
  }
  return file.good() ? 0 : 1;
}
