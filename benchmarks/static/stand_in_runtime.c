// A CUDA runtime without a GPU: device memory is host memory, kernels are told to a callback.
//
// Loaded before libcudart (LD_PRELOAD), it makes PyTorch see one device of compute capability 9.0.
// Whatever allocates, checks and launches on the host is then real; nothing runs on a device, and
// what is copied stays uncopied. Its soname is that of the driver, of which PyTorch asks one thing.
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#undef cudaGetDeviceProperties
#define OK return cudaSuccess
#define STREAM ((cudaStream_t)8)
#define EVENT ((cudaEvent_t)8)

enum { MULTIPROCESSORS = 132, SHARED = 232448, SHARED_OF_ALL = 233472, REGISTERS = 65536 };

// name, grid and block, dynamic shared memory, addresses of the arguments
typedef void (*Launched)(const char *, const unsigned *, size_t, void **);
static Launched launched;

// name, threads of a block, dynamic shared memory -> blocks that a multiprocessor holds
typedef int (*Resident)(const char *, int, size_t);
static Resident resident;

void attnops_on_launch(Launched function) { launched = function; }
void attnops_on_occupancy(Resident function) { resident = function; }

// Kernels by the address of their host function, in the order in which libraries register them.
static struct {
  const void *host;
  const char *name;
} *kernels;
static size_t count, room;

static const char *name_of(const void *kernel) {
  for (size_t i = count; i-- > 0;) {
    if (kernels[i].host == kernel) return kernels[i].name;
  }
  return "?";
}

static cudaError_t tell(const void *kernel, dim3 grid, dim3 block, size_t shared, void **arguments) {
  const unsigned extents[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  if (launched) launched(name_of(kernel), extents, shared, arguments);
  OK;
}

static cudaError_t tell_copy(const char *name, size_t bytes) {
  const unsigned extents[] = {1, 1, 1, 1, 1, 1};
  if (launched) launched(name, extents, bytes, 0);
  OK;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **handle, char *host, char *address, const char *name, int external,
                       size_t size, int constant, int global) {}
void __cudaRegisterFunction(void **handle, const char *host, char *function, const char *name,
                            int limit, void *thread, void *block, void *block_size, void *grid_size,
                            int *warp_size) {
  if (count == room) kernels = realloc(kernels, (room = room ? 2 * room : 4096) * sizeof *kernels);
  kernels[count].host = host;
  kernels[count++].name = name;
}

static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  configuration.grid = grid;
  configuration.block = block;
  configuration.shared = shared;
  configuration.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *(void **)stream = configuration.stream;
  OK;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
  *kernel = (cudaKernel_t)host;
  OK;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream) {
  return tell(kernel, grid, block, shared, arguments);
}
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
  return tell(kernel, grid, block, shared, arguments);
}
cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                                        size_t shared, cudaStream_t stream) {
  return tell(kernel, grid, block, shared, arguments);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                                void **arguments) {
  return tell(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes, arguments);
}

cudaError_t cudaGetDeviceCount(int *devices) {
  *devices = 1;
  OK;
}
cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  OK;
}
cudaError_t cudaSetDevice(int device) { OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "stand-in");
  properties->major = 9;
  properties->multiProcessorCount = MULTIPROCESSORS;
  properties->totalGlobalMem = (size_t)80 << 30;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = SHARED;
  properties->sharedMemPerMultiprocessor = SHARED_OF_ALL;
  properties->regsPerBlock = properties->regsPerMultiprocessor = REGISTERS;
  properties->l2CacheSize = 50 << 20;
  for (int i = 0; i < 3; ++i) {
    properties->maxThreadsDim[i] = 1024;
    properties->maxGridSize[i] = i ? 65535 : 2147483647;
  }
  OK;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = MULTIPROCESSORS;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = SHARED;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = SHARED_OF_ALL;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = REGISTERS;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    default:
      *value = 0;
  }
  OK;
}

// Fresh memory is zero: whatever is read as an index or a count stays within bounds.
cudaError_t cudaMalloc(void **memory, size_t bytes) {
  char *whole = calloc(bytes + 512, 1);
  if (!whole) return cudaErrorMemoryAllocation;
  char *aligned = (char *)(((size_t)whole + 512) / 512 * 512);
  ((void **)aligned)[-1] = whole;
  *memory = aligned;
  OK;
}
cudaError_t cudaFree(void *memory) {
  if (memory) free(((void **)memory)[-1]);
  OK;
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags) {
  *memory = malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *memory) {
  free(memory);
  OK;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  *available = *total = (size_t)80 << 30;
  OK;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  if (kind == cudaMemcpyHostToDevice) memcpy(to, from, bytes);
  return tell_copy("memcpy", bytes);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void *memory, int value, size_t bytes) { return tell_copy("memset", bytes); }
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
  return tell_copy("memset", bytes);
}

cudaError_t cudaGetLastError(void) { OK; }
cudaError_t cudaPeekAtLastError(void) { OK; }
cudaError_t cudaDeviceSynchronize(void) { OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  OK;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  *stream = STREAM;
  OK;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { OK; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  OK;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = EVENT;
  OK;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { OK; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { OK; }
cudaError_t cudaEventQuery(cudaEvent_t event) { OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { OK; }

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value) {
  OK;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 64;
  OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                          int threads, size_t shared) {
  *blocks = resident ? resident(name_of(kernel), threads, shared) : 1;
  OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel,
                                                                   int threads, size_t shared,
                                                                   unsigned flags) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared);
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *memory) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeDevice;
  attributes->devicePointer = (void *)memory;
  OK;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  OK;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  OK;
}
static int driver_function(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  *function = (void *)driver_function;
  if (result) *result = cudaDriverEntryPointSuccess;
  OK;
}

// What Triton's launchers ask of the driver.
int cuLaunchKernelEx(const void *config, void *kernel, void **arguments, void **extra) { return 0; }
int cuPointerGetAttribute(void *value, int attribute, unsigned long long memory) {
  *(unsigned long long *)value = memory;
  return 0;
}
int cuCtxGetCurrent(void **context) {
  *context = (void *)8;
  return 0;
}

int cuCtxSetCurrent(void *context) { return 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return cuCtxGetCurrent(context); }
int cuFuncSetAttribute(void *kernel, int attribute, int value) { return 0; }
int cuTensorMapEncodeTiled(void *map) { return 0; }

int cuGetErrorString(int error, const char **text) {
  *text = "stand-in";
  return 0;
}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return 0;
}
