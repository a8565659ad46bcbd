// A CUDA driver that only looks at its arguments, for a test of what koffi hands over and of the structs that a compiler lays out.
// Declarations as in cuda.h of CUDA 12. What was seen is read back through stub_seen.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned int id;
  char pad[4];
  union {
    char pad[64];
    struct { unsigned int x, y, z; } clusterDim;
    int programmaticStreamSerializationAllowed;
  } value;
} CUlaunchAttribute;

typedef struct {
  unsigned int gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
  void *hStream;
  CUlaunchAttribute *attrs;
  unsigned int numAttrs;
} CUlaunchConfig;

static char seen[4096];
const char *stub_seen(void) { return seen; }
#define SEE(...) snprintf(seen + strlen(seen), sizeof seen - strlen(seen), __VA_ARGS__)

int cuGetErrorName(int status, const char **name) {
  if (status != 2) return 1;
  *name = "CUDA_ERROR_OUT_OF_MEMORY";
  return 0;
}
int cuInit(unsigned int flags) { return (int)flags; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 40 + ordinal, 0; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, (size_t)length, "stub %d", device), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = 80000000000u + (size_t)device, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = device == 40 ? attribute : -1, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)(0xffff800000000000u + (size_t)device), 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device == 40 ? 0 : 1; }
int cuDeviceGetDefaultMemPool(void **pool, int device) { return *pool = (void *)(size_t)device, 0; }
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
  return SEE("pool %zu %d %" PRIx64 "\n", (size_t)pool, attribute, *(uint64_t *)value), 0;
}
int cuCtxSetCurrent(void *context) { return SEE("current %zx\n", (size_t)context), 0; }
int cuCtxSynchronize(void) { return 0; }
int cuStreamCreate(void **stream, unsigned int flags) { return *stream = (void *)0xfedcba9876543210u, flags == 1 ? 0 : 1; }
int cuStreamSynchronize(void *stream) { return stream == (void *)0xfedcba9876543210u ? 0 : 1; }
int cuStreamDestroy_v2(void *stream) { return stream == (void *)0xfedcba9876543210u ? 0 : 1; }
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
  SEE("allocate %zu on %zx\n", bytes, (size_t)stream);
  return *address = 0x7f0000000000u, bytes > (1ull << 40) ? 2 : 0;
}
int cuMemFreeAsync(uint64_t address, void *stream) { return SEE("free %" PRIx64 "\n", address), stream ? 0 : 1; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  return SEE("upload %.*s to %" PRIx64 "\n", (int)bytes, (const char *)from, to), stream ? 0 : 1;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned int flags) { return *memory = calloc(bytes, 1), (int)flags; }
int cuMemFreeHost(void *memory) { return SEE("host %s\n", (const char *)memory), free(memory), 0; }
int cuModuleLoadData(void **module, const void *image) { return SEE("image %s\n", (const char *)image), *module = (void *)1, 0; }
int cuModuleUnload(void *module) { return module == (void *)1 ? 0 : 1; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  return SEE("function %s\n", name), *function = (char *)module + 1, 0;
}
int cuLaunchKernelEx(const CUlaunchConfig *c, void *function, void **parameters, void **extra) {
  SEE("launch %zu: %u %u %u, %u %u %u, %u, stream %zx, %u:", (size_t)function, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX,
      c->blockDimY, c->blockDimZ, c->sharedMemBytes, (size_t)c->hStream, c->numAttrs);
  for (unsigned int i = 0; i < c->numAttrs; i++) {
    const CUlaunchAttribute *a = &c->attrs[i];
    if (a->id == 4) SEE(" cluster %u %u %u", a->value.clusterDim.x, a->value.clusterDim.y, a->value.clusterDim.z);
    if (a->id == 6) SEE(" programmatic %d", a->value.programmaticStreamSerializationAllowed);
  }
  return SEE(", %s %d\n", (const char *)parameters[0], *(int *)parameters[1]), extra ? 1 : 0;
}
