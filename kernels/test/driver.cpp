// A CUDA driver of a device without Hopper's instructions that runs its kernels on the host, for tests of all that stands above it: device memory is the
// host's, every call has ended when it returns, and a graph is a list of calls. Declarations as in cuda.h; only what the package uses.
#include "block.h"  // first: see there

#include <cstdio>
#include <map>
#include <string>

#include "../append/append.cu"
#include "../model/instantiations.cu"
#include "../portable/decode.cu"

namespace {

enum Status : int { kSuccess = 0, kInvalidValue = 1, kNotFound = 500 };

struct Kernel {
  size_t bytes;  // of its one parameter
  std::function<void(const void*)> call;

  template <typename Params>
  explicit Kernel(void (*function)(Params)) : bytes(sizeof(Params)), call([function](const void* params) { function(*static_cast<const Params*>(params)); }) {}
};

std::map<std::string, Kernel>& kernels() {
#define OF(symbol) {#symbol, Kernel(symbol)}
  static std::map<std::string, Kernel> all = {
      OF(mla_take_rows), OF(mla_rms_norm), OF(mla_copy_columns), OF(mla_rotary), OF(mla_add), OF(mla_silu_mul), OF(mla_convert), OF(mla_argmax), OF(mla_sample),
      OF(mla_route), OF(mla_linear_few_1), OF(mla_linear_few_4), OF(mla_linear_few_8), OF(mla_linear_row), OF(mla_linear_rows_mma), OF(mla_linear_mma_16x16), OF(mla_linear_mma_16x32), OF(mla_linear_mma_32x32),
      OF(mla_linear_many), OF(mla_linear_half), OF(mla_expert_up), OF(mla_expert_down), OF(mla_expert_sort), OF(mla_expert_tiles), OF(mla_expert_tiles_half),
      OF(mla_expert_sum),
      OF(mla_append_rows), OF(mla_append_latents), OF(mla_attend), OF(mla_attend_merge), OF(mla_gather_latents), OF(mla_attend_naive), OF(mla_append), OF(mla_cast),
      OF(mla_decode_portable_bf16), OF(mla_decode_portable_f16), OF(mla_combine),
  };
  return all;
}

using Operation = std::function<void()>;
using Graph = std::vector<Operation>;
Graph* recording = nullptr;
std::map<uint64_t, std::vector<char>> memory;

// Does what a stream was asked for, or notes it for the graph that is being captured.
int queue(Operation operation) {
  if (recording != nullptr) recording->push_back(std::move(operation));
  else operation();
  return kSuccess;
}

// Whether so many bytes from there on are of one allocation.
bool holds(uint64_t address, size_t bytes) {
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return false;
  const auto& [start, block] = *--after;
  return address - start + bytes <= block.size();
}
char* at(uint64_t address) { return reinterpret_cast<char*>(address); }

struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  void* stream;
  void* attributes;
  unsigned count;
};

}  // namespace

extern "C" {

int cuGetErrorName(int status, const char** name) {
  *name = status == kNotFound ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR_INVALID_VALUE";
  return status == kNotFound || status == kInvalidValue ? kSuccess : kInvalidValue;
}
int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
int cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, kSuccess; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, size_t(length), "host"), kSuccess; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = size_t(1) << 32, kSuccess; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  static const std::map<int, int> of = {{16, 6}, {36, 2619000}, {37, 5120}, {75, 8}, {76, 0}, {97, 232448}};  // few multiprocessors: work is split less
  const auto found = of.find(attribute);
  if (found == of.end()) return kInvalidValue;
  *value = found->second;
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &memory, kSuccess; }
int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &memory, kSuccess; }
int cuMemPoolSetAttribute(void*, int, void*) { return kSuccess; }
int cuCtxSetCurrent(void*) { return kSuccess; }
int cuCtxSynchronize() { return kSuccess; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = size_t(1) << 32, kSuccess; }

int cuStreamCreate(void** stream, unsigned) { return *stream = new char, kSuccess; }
int cuStreamDestroy_v2(char* stream) { return delete stream, kSuccess; }
int cuStreamSynchronize(void*) { return kSuccess; }
int cuStreamQuery(void*) { return kSuccess; }
int cuStreamWaitEvent(void*, void*, unsigned) { return kSuccess; }
int cuEventCreate(void** event, unsigned) { return *event = new char, kSuccess; }
int cuEventDestroy_v2(char* event) { return delete event, kSuccess; }
int cuEventRecord(void*, void*) { return kSuccess; }
int cuEventQuery(void*) { return kSuccess; }
int cuEventSynchronize(void*) { return kSuccess; }
int cuEventElapsedTime(float* ms, void*, void*) { return *ms = 0, kSuccess; }

// What is not written yet is a NaN in every float type.
int cuMemAllocAsync(uint64_t* address, size_t bytes, void*) {
  std::vector<char> block(bytes, char(0xff));
  *address = reinterpret_cast<uint64_t>(block.data());
  memory.emplace(*address, std::move(block));
  return kSuccess;
}
int cuMemFreeAsync(uint64_t address, void*) { return memory.erase(address) == 1 ? kSuccess : kInvalidValue; }
int cuMemHostAlloc(void** address, size_t bytes, unsigned) { return *address = std::calloc(bytes, 1), kSuccess; }
int cuMemFreeHost(void* address) { return std::free(address), kSuccess; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const char* from, size_t bytes, void*) {
  return holds(to, bytes) ? queue([=] { std::memcpy(at(to), from, bytes); }) : kInvalidValue;
}
int cuMemcpyDtoHAsync_v2(char* to, uint64_t from, size_t bytes, void*) {
  return holds(from, bytes) ? queue([=] { std::memcpy(to, at(from), bytes); }) : kInvalidValue;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) {
  return holds(to, bytes) && holds(from, bytes) ? queue([=] { std::memmove(at(to), at(from), bytes); }) : kInvalidValue;
}
int cuMemsetD8Async(uint64_t to, unsigned value, size_t bytes, void*) {
  return holds(to, bytes) ? queue([=] { std::memset(at(to), int(value), bytes); }) : kInvalidValue;
}

int cuModuleLoadData(void** module, const void*) { return *module = new char, kSuccess; }
int cuModuleUnload(char* module) { return delete module, kSuccess; }
int cuModuleGetFunction(Kernel** function, void*, const char* name) {
  const auto found = kernels().find(name);
  if (found == kernels().end()) return kNotFound;
  *function = &found->second;
  return kSuccess;
}
int cuFuncGetAttribute(int* value, int, void*) { return *value = 0, kSuccess; }
int cuFuncSetAttribute(void*, int, int) { return kSuccess; }
int cuLaunchKernelEx(const LaunchConfig* config, const Kernel* kernel, void** params, void**) {
#ifdef FLASHMLA_IDLE
  return queue([] {});
#endif
  const char* bytes = static_cast<const char*>(params[0]);
  return queue([kernel, grid = Index{config->grid[0], config->grid[1], config->grid[2]}, threads = int(config->block[0]),
                copy = std::vector<char>(bytes, bytes + kernel->bytes)] { block::launch(grid, threads, [&] { kernel->call(copy.data()); }); });
}
int cuTensorMapEncodeTiled() { return kSuccess; }

int cuStreamBeginCapture_v2(void*, int) {
  if (recording != nullptr) return kInvalidValue;
  recording = new Graph;
  return kSuccess;
}
int cuStreamEndCapture(void*, Graph** graph) {
  if (recording == nullptr) return kInvalidValue;
  *graph = recording;
  recording = nullptr;
  return kSuccess;
}
int cuGraphInstantiateWithFlags(Graph** executable, const Graph* graph, uint64_t) { return *executable = new Graph(*graph), kSuccess; }
int cuGraphExecUpdate_v2(Graph* executable, const Graph* graph, int* result) { return *executable = *graph, *result = 0, kSuccess; }
int cuGraphLaunch(const Graph* executable, void*) {
  for (const Operation& operation : *executable) operation();
  return kSuccess;
}
int cuGraphExecDestroy(Graph* executable) { return delete executable, kSuccess; }
int cuGraphDestroy(Graph* graph) { return delete graph, kSuccess; }

}  // extern "C"
