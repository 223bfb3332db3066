// A CUDA runtime and an NCCL without a GPU. Preloaded, it stands in for libcudart and libnccl, and torch's own CUDA stack
// (caching allocator, streams, events, graphs, sync debug mode, DDP) runs on it unchanged.
//
// True: control flow, devices and contexts, memory and its limit, captures, which rank waits for which in a collective.
// Garbage: values and times. Memory is address space, a kernel does nothing, and a stream is done with all it was given
// at once, except for collectives: these end once every rank has called them, so that a dead peer leaves the others
// waiting in the device, as it does with NCCL. Copies between host and device do move the bytes.
//
// Environment: NULLGPU_DEVICES (GPUs, default 2), NULLGPU_GIB (memory of each, default 80), NULLGPU_SHARED (a folder in
// which ranks meet; without one no rank waits), NULLGPU_LOG (a folder, in which each process writes what it did).
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

const int MOST = 64;               // devices, and the ranks of a communicator
const size_t SMALL = 4096;         // bytes: copies within the device and fills up to this are made, larger ones are not
const size_t SPREAD = 64 / sizeof(long);  // a counter for each rank, each in a cache line of its own

std::string setting(const char* name) {
  const char* value = getenv(name);
  return value ? value : "";
}

// Read anew each time: a process may have been forked with an environment of its own.
int devices() { return setting("NULLGPU_DEVICES").empty() ? 2 : atoi(getenv("NULLGPU_DEVICES")); }

size_t capacity() {
  const double gib = setting("NULLGPU_GIB").empty() ? 80 : atof(getenv("NULLGPU_GIB"));
  return size_t(gib * (1ull << 30));
}

// One line in NULLGPU_LOG/RANK.PROCESS.
void note(const char* what, long number = 0) {
  static FILE* file = nullptr;
  static pid_t writer = 0;
  if (writer != getpid()) {
    writer = getpid();
    const std::string folder = setting("NULLGPU_LOG"), rank = setting("RANK").empty() ? "0" : setting("RANK");
    file = folder.empty() ? nullptr : fopen((folder + "/" + rank + "." + std::to_string(writer)).c_str(), "a");
  }
  if (file) {
    fprintf(file, "%s %ld\n", what, number);
    fflush(file);
  }
}

// ------------------------------------------------------------------------------------------------- what a process holds

// A communicator. Its counters are in a file that all ranks map: how many collectives each has called, and its end.
struct Comm {
  int ranks, rank;
  std::string name;
  volatile long* calls = nullptr;  // [rank * SPREAD]; those of `ended` follow
  volatile long* ended = nullptr;
  long called = 0;
  int splits = 0;
};

struct Wait {  // for all ranks of a communicator to have called so many collectives
  Comm* comm;
  long number;
};

typedef std::vector<Wait> Waits;

struct Stream {
  int device;
  bool capturing = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id by;
  unsigned long long capture = 0;
  long nodes = 0;
  Waits waits;
};

struct Event {
  unsigned flags;
  Waits waits;
};

struct Graph {
  long nodes;
};

std::mutex lock;  // of all that follows
std::map<uintptr_t, std::pair<size_t, int>> blocks;  // device memory: start -> bytes, device
std::map<uintptr_t, size_t> pinned;
std::set<Stream*> streams;
std::set<int> contexts;
Stream defaults[MOST];
size_t used[MOST], peak[MOST];
unsigned long long captures = 0;
std::atomic<long> kernels{0}, waited{0}, strays{0};
thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last = error;
  return error;
}

void context(int device) {
  std::lock_guard<std::mutex> guard(lock);
  if (contexts.insert(device).second) note("context", device);
}

// A handle up to 2 means the default stream of the current device. Called under the lock.
Stream* find(cudaStream_t handle) {
  if ((uintptr_t)handle <= 2) {
    defaults[current].device = current;
    return &defaults[current];
  }
  return streams.count((Stream*)handle) ? (Stream*)handle : nullptr;
}

bool capturing(cudaStream_t handle) {
  std::lock_guard<std::mutex> guard(lock);
  Stream* stream = find(handle);
  return stream && stream->capturing;
}

// Whether a call that could break a capture must be refused now: a capture of this thread, or of any in global mode.
bool unsafe() {
  if (capture_mode == cudaStreamCaptureModeRelaxed) return false;
  std::lock_guard<std::mutex> guard(lock);
  for (Stream* stream : streams) {
    if (!stream->capturing) continue;
    if (stream->mode == cudaStreamCaptureModeGlobal) return true;
    if (stream->mode == cudaStreamCaptureModeThreadLocal && stream->by == std::this_thread::get_id()) return true;
  }
  return false;
}

// ---------------------------------------------------------------------------------------------------------------- waits

bool reached(volatile long* counters, int ranks, long number) {
  for (int rank = 0; rank < ranks; rank++)
    if (counters[rank * SPREAD] < number) return false;
  return true;
}

bool done(const Waits& waits) {
  for (const Wait& wait : waits)
    if (wait.comm->calls && !reached(wait.comm->calls, wait.comm->ranks, wait.number)) return false;
  return true;
}

void add(Waits& waits, const Waits& more) {
  if (done(waits)) waits.clear();
  for (const Wait& wait : more)
    if (!done({wait})) waits.push_back(wait);
}

cudaError_t wait_for(const Waits& waits) {
  waited++;
  while (!done(waits)) usleep(500);
  return cudaSuccess;
}

Waits waits_of(cudaStream_t handle) {
  std::lock_guard<std::mutex> guard(lock);
  Stream* stream = find(handle);
  return stream ? stream->waits : Waits();
}

cudaError_t launched(cudaStream_t handle) {
  kernels++;
  context(current);
  std::lock_guard<std::mutex> guard(lock);
  Stream* stream = find(handle);
  if (!stream) return cudaSuccess;
  if (stream->capturing) stream->nodes++;
  if (stream->device != current) {
    strays++;
    note("kernel on a stream of another device than the current one", stream->device);
  }
  return cudaSuccess;
}

cudaError_t moved(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (kind != cudaMemcpyDeviceToDevice || bytes <= SMALL) memmove(to, from, bytes);
  return cudaSuccess;
}

void recorded(cudaStream_t handle) {
  std::lock_guard<std::mutex> guard(lock);
  Stream* stream = find(handle);
  if (stream && stream->capturing) stream->nodes++;
}

}  // namespace

// What tests ask for, of the current device.
API long null_stat(const char* what) {
  std::string name(what);
  std::lock_guard<std::mutex> guard(lock);
  if (name == "kernels") return kernels;
  if (name == "waits") return waited;
  if (name == "strays") return strays;
  if (name == "contexts") return (long)contexts.size();
  if (name == "used") return used[current];
  if (name == "peak") return peak[current];
  if (name == "reset peak") return peak[current] = used[current];
  return -1;
}

// For the driver library.
API void null_launch(void* stream) { launched((cudaStream_t)stream); }
API int null_has_context(int device) {
  std::lock_guard<std::mutex> guard(lock);
  return contexts.count(device);
}

// -------------------------------------------------------------------------------------------------------------- devices

API cudaError_t cudaGetDeviceCount(int* count) {
  *count = devices();
  return cudaSuccess;
}
API cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= devices()) return result(cudaErrorInvalidDevice);
  current = device;
  context(device);
  return cudaSuccess;
}
API cudaError_t cudaGetLastError() {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
API cudaError_t cudaPeekAtLastError() { return last; }
API const char* cudaGetErrorString(cudaError_t error) {
  static thread_local char text[64];
  snprintf(text, sizeof text, "null error %d", (int)error);
  return text;
}
API const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
API cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {  // an H100's
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "NVIDIA H100 80GB HBM3 (null)");
  memcpy(&p->uuid, &device, sizeof device);
  p->pciBusID = device + 1;
  p->totalGlobalMem = capacity();
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 52428800;
  p->textureAlignment = 512;
  p->memoryBusWidth = 5120;
  p->unifiedAddressing = p->concurrentKernels = p->canMapHostMemory = p->managedMemory = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  const std::map<int, int> known = {
      {cudaDevAttrMaxThreadsPerBlock, 1024}, {cudaDevAttrMaxBlockDimX, 1024}, {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64}, {cudaDevAttrMaxGridDimX, 2147483647}, {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535}, {cudaDevAttrMaxSharedMemoryPerBlock, 49152}, {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxRegistersPerBlock, 65536}, {cudaDevAttrClockRate, 1980000},
      {cudaDevAttrMultiProcessorCount, 132}, {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrComputeCapabilityMajor, 9}, {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536}, {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
      {cudaDevAttrCooperativeLaunch, 1}, {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
      {cudaDevAttrMemoryPoolsSupported, 1}};
  auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
API cudaError_t cudaDeviceSynchronize() {
  if (unsafe()) return result(cudaErrorStreamCaptureUnsupported);
  Waits all = waits_of(nullptr);
  {
    std::lock_guard<std::mutex> guard(lock);
    for (Stream* stream : streams)
      if (stream->device == current) add(all, stream->waits);
  }
  return wait_for(all);
}

// --------------------------------------------------------------------------------------------------------------- memory

API cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (unsafe()) return result(cudaErrorStreamCaptureUnsupported);
  context(current);
  std::lock_guard<std::mutex> guard(lock);
  *pointer = nullptr;
  if (used[current] + bytes > capacity()) return result(cudaErrorMemoryAllocation);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* start = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (start == MAP_FAILED) return result(cudaErrorMemoryAllocation);
  used[current] += bytes;
  peak[current] = std::max(peak[current], used[current]);
  blocks[(uintptr_t)start] = {bytes, current};
  *pointer = start;
  return cudaSuccess;
}
API cudaError_t cudaFree(void* pointer) {
  if (!pointer) {
    context(current);
    return cudaSuccess;
  }
  std::lock_guard<std::mutex> guard(lock);
  auto block = blocks.find((uintptr_t)pointer);
  if (block == blocks.end()) return cudaErrorInvalidValue;
  auto [bytes, device] = block->second;
  used[device] -= bytes;
  munmap(pointer, bytes ? bytes : 1);
  blocks.erase(block);
  return cudaSuccess;
}
API cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
API cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  context(current);
  std::lock_guard<std::mutex> guard(lock);
  *total = capacity();
  *free = capacity() - used[current];
  return cudaSuccess;
}
API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  context(current);
  *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  std::lock_guard<std::mutex> guard(lock);
  pinned[(uintptr_t)*pointer] = bytes;
  return cudaSuccess;
}
API cudaError_t cudaFreeHost(void* pointer) {
  std::lock_guard<std::mutex> guard(lock);
  pinned.erase((uintptr_t)pointer);
  free(pointer);
  return cudaSuccess;
}
API cudaError_t cudaHostRegister(void*, size_t, unsigned) { return cudaSuccess; }
API cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->device = -2;
  attributes->hostPointer = (void*)pointer;
  const uintptr_t place = (uintptr_t)pointer;
  std::lock_guard<std::mutex> guard(lock);
  auto block = blocks.upper_bound(place);
  if (block != blocks.begin() && place < (--block)->first + block->second.first) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = block->second.second;
    attributes->devicePointer = (void*)pointer;
    attributes->hostPointer = nullptr;
    return cudaSuccess;
  }
  auto page = pinned.upper_bound(place);
  if (page != pinned.begin() && place < (--page)->first + page->second) {
    attributes->type = cudaMemoryTypeHost;
    attributes->device = 0;
    attributes->devicePointer = (void*)pointer;
  }
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (unsafe()) return result(cudaErrorStreamCaptureUnsupported);
  wait_for(waits_of(nullptr));
  return moved(to, from, bytes, kind);
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  recorded(stream);
  return moved(to, from, bytes, kind);
}
API cudaError_t cudaMemcpyPeerAsync(void*, int, const void*, int, size_t, cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_row, const void* from, size_t from_row, size_t width,
                                  size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t row = 0; row < height; row++) memmove((char*)to + row * to_row, (const char*)from + row * from_row, width);
  return cudaSuccess;
}
API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
API cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  if (bytes <= SMALL) memset(pointer, value, bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  recorded(stream);
  return cudaMemset(pointer, value, bytes);
}
API cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
  static char symbols[1 << 16];
  *pointer = symbols;
  return cudaSuccess;
}

// --------------------------------------------------------------------------------------------------- streams and events

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned, int) {
  context(current);
  Stream* stream = new Stream{current};
  std::lock_guard<std::mutex> guard(lock);
  streams.insert(stream);
  *handle = (cudaStream_t)stream;
  return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}
API cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }
API cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  std::lock_guard<std::mutex> guard(lock);
  streams.erase((Stream*)handle);
  delete (Stream*)handle;
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  if (capturing(handle) || unsafe()) return result(cudaErrorStreamCaptureUnsupported);
  return wait_for(waits_of(handle));
}
API cudaError_t cudaStreamQuery(cudaStream_t handle) {
  if (capturing(handle)) return result(cudaErrorStreamCaptureUnsupported);
  return done(waits_of(handle)) ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  std::lock_guard<std::mutex> guard(lock);
  if (Stream* stream = find(handle)) add(stream->waits, ((Event*)event)->waits);
  return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t call, void* data, unsigned) {
  call(handle, cudaSuccess, data);
  return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t call, void* data) {
  call(data);
  return cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  context(current);
  *event = (cudaEvent_t) new Event{flags};
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete (Event*)event;
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  std::lock_guard<std::mutex> guard(lock);
  Stream* stream = find(handle);
  ((Event*)event)->waits = stream ? stream->waits : Waits();
  return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned) {
  return cudaEventRecord(event, handle);
}
API cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (unsafe()) return result(cudaErrorStreamCaptureUnsupported);
  std::lock_guard<std::mutex> guard(lock);
  return done(((Event*)event)->waits) ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (unsafe()) return result(cudaErrorStreamCaptureUnsupported);
  Waits waits;
  {
    std::lock_guard<std::mutex> guard(lock);
    waits = ((Event*)event)->waits;
  }
  return wait_for(waits);
}
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const unsigned flags = ((Event*)from)->flags | ((Event*)to)->flags;
  if (flags & cudaEventDisableTiming) return result(cudaErrorInvalidResourceHandle);
  *milliseconds = 1;
  return cudaSuccess;
}

// --------------------------------------------------------------------------------------------------------------- graphs

API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  if ((uintptr_t)handle <= 2) return result(cudaErrorStreamCaptureUnsupported);
  std::lock_guard<std::mutex> guard(lock);
  Stream* stream = (Stream*)handle;
  stream->capturing = true;
  stream->mode = mode;
  stream->by = std::this_thread::get_id();
  stream->capture = ++captures;
  stream->nodes = 0;
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  std::lock_guard<std::mutex> guard(lock);
  Stream* stream = (Stream*)handle;
  stream->capturing = false;
  note("captured", stream->nodes);
  *graph = (cudaGraph_t) new Graph{stream->nodes};
  return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  *status = capturing(handle) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** nodes,
                                         const cudaGraphEdgeData** edges, size_t* count) {
  const bool active = capturing(handle);
  if (status) *status = active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = active ? ((Stream*)handle)->capture : 0;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = (cudaGraphExec_t) new Graph{((Graph*)graph)->nodes};
  return cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  kernels++;
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete (Graph*)graph;
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete (Graph*)exec;
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = ((Graph*)graph)->nodes;
  return cudaSuccess;
}

// -------------------------------------------------------------------------------------------------------------- kernels

API cudaError_t cudaLaunchKernel(const void*, dim3 grid, dim3 block, void**, size_t, cudaStream_t stream) {
  const unsigned threads = block.x * block.y * block.z;
  const bool empty = !grid.x || !grid.y || !grid.z || !threads;
  if (empty || grid.y > 65535 || grid.z > 65535 || threads > 1024) return result(cudaErrorInvalidConfiguration);
  return launched(stream);
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                   cudaStream_t stream) {
  return cudaLaunchKernel((const void*)kernel, grid, block, arguments, shared, stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  return launched(config->stream);
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                       unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* found) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (found) *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
API void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*) {}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
static thread_local std::vector<Configuration> configurations;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return cudaErrorInvalidConfiguration;
  Configuration top = configurations.back();
  configurations.pop_back();
  *grid = top.grid;
  *block = top.block;
  *shared = top.shared;
  *(void**)stream = top.stream;
  return cudaSuccess;
}

// ----------------------------------------------------------------------------------------------------------------- NCCL
// Data stay where they are; small gathers give every rank's place this rank's own data.

// Map the counters of a communicator, and wait until all its ranks have come.
static void meet(Comm* comm) {
  const std::string folder = setting("NULLGPU_SHARED");
  if (folder.empty() || comm->ranks == 1) return;
  const size_t bytes = 2 * MOST * SPREAD * sizeof(long);
  const int file = open((folder + "/" + comm->name).c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, bytes)) return;
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (start == MAP_FAILED) return;
  comm->calls = (volatile long*)start;
  comm->ended = comm->calls + MOST * SPREAD;
  comm->calls[comm->rank * SPREAD] = ++comm->called;
  while (!reached(comm->calls, comm->ranks, 1)) usleep(500);
}

static ncclResult_t collective(const char* name, size_t count, ncclComm_t handle, cudaStream_t stream) {
  note(name, (long)count);
  Comm* comm = (Comm*)handle;
  comm->called++;
  if (comm->calls) {
    comm->calls[comm->rank * SPREAD] = comm->called;
    std::lock_guard<std::mutex> guard(lock);
    if (Stream* found = find(stream)) add(found->waits, {{comm, comm->called}});
  }
  launched(stream);
  return ncclSuccess;
}

API ncclResult_t ncclGetVersion(int* version) {
  *version = 23007;
  return ncclSuccess;
}
API ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  memset(id, 0, sizeof *id);
  FILE* file = fopen("/dev/urandom", "r");
  unsigned long number = 0;
  if (!file || fread(&number, sizeof number, 1, file) != 1) return ncclSystemError;
  fclose(file);
  snprintf(id->internal, sizeof id->internal, "comm-%016lx", number);
  return ncclSuccess;
}
API ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int ranks, ncclUniqueId id, int rank, ncclConfig_t*) {
  note("communicator of ranks", ranks);
  Comm* comm = new Comm{ranks, rank, id.internal};
  meet(comm);
  *handle = (ncclComm_t)comm;
  return ncclSuccess;
}
API ncclResult_t ncclCommInitRank(ncclComm_t* handle, int ranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(handle, ranks, id, rank, nullptr);
}
API ncclResult_t ncclCommInitRankScalable(ncclComm_t* handle, int ranks, int rank, int, ncclUniqueId* ids,
                                          ncclConfig_t*) {
  return ncclCommInitRankConfig(handle, ranks, ids[0], rank, nullptr);
}
API ncclResult_t ncclCommSplit(ncclComm_t handle, int, int, ncclComm_t* part, ncclConfig_t*) {  // all ranks are in it
  Comm* whole = (Comm*)handle;
  Comm* comm = new Comm{whole->ranks, whole->rank, whole->name + "-" + std::to_string(++whole->splits)};
  meet(comm);
  *part = (ncclComm_t)comm;
  return ncclSuccess;
}
API ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
API const char* ncclGetErrorString(ncclResult_t) { return "null"; }
API const char* ncclGetLastError(ncclComm_t) { return "null"; }
API ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  *count = ((Comm*)handle)->ranks;
  return ncclSuccess;
}
API ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  *rank = ((Comm*)handle)->rank;
  return ncclSuccess;
}
API ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t, ncclRedOp_t, ncclComm_t comm,
                               cudaStream_t stream) {
  if (from != to && count <= SMALL / 8) memmove(to, from, 4 * count);
  return collective("all_reduce", count, comm, stream);
}
API ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                               cudaStream_t stream) {
  const bool wide = type == ncclInt64 || type == ncclUint64 || type == ncclFloat64;
  const bool byte = type == ncclInt8 || type == ncclUint8;
  const bool half = type == ncclFloat16 || type == ncclBfloat16;
  const size_t bytes = count * (wide ? 8 : byte ? 1 : half ? 2 : 4);
  if (bytes <= 65536)
    for (int rank = 0; rank < ((Comm*)comm)->ranks; rank++) memmove((char*)to + rank * bytes, from, bytes);
  return collective("all_gather", count, comm, stream);
}
API ncclResult_t ncclBroadcast(const void*, void*, size_t count, ncclDataType_t, int, ncclComm_t comm,
                               cudaStream_t stream) {
  return collective("broadcast", count, comm, stream);
}
API ncclResult_t ncclBcast(void*, size_t count, ncclDataType_t, int, ncclComm_t comm, cudaStream_t stream) {
  return collective("broadcast", count, comm, stream);
}
API ncclResult_t ncclReduce(const void*, void*, size_t count, ncclDataType_t, ncclRedOp_t, int, ncclComm_t comm,
                            cudaStream_t stream) {
  return collective("reduce", count, comm, stream);
}
API ncclResult_t ncclMemAlloc(void** pointer, size_t bytes) {
  return cudaMalloc(pointer, bytes) == cudaSuccess ? ncclSuccess : ncclSystemError;
}
API ncclResult_t ncclMemFree(void* pointer) {
  cudaFree(pointer);
  return ncclSuccess;
}
// Like NCCL's, it waits for the other ranks to end the communicator too.
API ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  note("finalize");
  Comm* comm = (Comm*)handle;
  if (!comm->calls) return ncclSuccess;
  comm->ended[comm->rank * SPREAD] = 1;
  while (!reached(comm->ended, comm->ranks, 1)) usleep(500);
  return ncclSuccess;
}
API ncclResult_t ncclCommDestroy(ncclComm_t) {
  note("destroy");
  return ncclSuccess;
}
API ncclResult_t ncclCommAbort(ncclComm_t) {
  note("abort");
  return ncclSuccess;
}
