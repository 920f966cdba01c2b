/* A CUDA driver without a device, for scripts/cuda-kernels: memory is the host's, kernels are loaded and never run. What is loaded is
   written to the folder CUDA_KERNELS_OUT; CUDA_KERNELS_SM is the compute capability, such as 90. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
typedef void *Handle;
typedef uint64_t Address;

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101 };

static int capability(void) {
    const char *text = getenv("CUDA_KERNELS_SM");
    return text ? atoi(text) : 90;
}

Status cuInit(unsigned flags) { return SUCCESS; }
Status cuDriverGetVersion(int *version) { *version = 12090; return SUCCESS; }
Status cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
Status cuDeviceGet(int *device, int index) { *device = index; return index ? INVALID_DEVICE : SUCCESS; }
Status cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "no device"); return SUCCESS; }
Status cuDeviceGetUuid_v2(char *id, int device) { memset(id, 1, 16); return SUCCESS; }
Status cuDeviceGetUuid(char *id, int device) { return cuDeviceGetUuid_v2(id, device); }
Status cuDeviceGetPCIBusId(char *id, int length, int device) { snprintf(id, length, "0000:00:00.0"); return SUCCESS; }
Status cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return SUCCESS; }
Status cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = (size_t)80 << 30; return SUCCESS; }
Status cuDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return SUCCESS; }

/* The numbers of CUdevice_attribute, with the values of an H100. */
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;        /* threads per block, and along two axes */
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break;                  /* blocks along the axes */
    case 6: case 7: *value = 65535; break;
    case 8: *value = 49152; break;                       /* shared memory per block */
    case 10: *value = 32; break;                         /* threads per warp */
    case 12: *value = 65536; break;                      /* registers per block */
    case 16: *value = 132; break;                        /* multiprocessors */
    case 39: *value = 2048; break;                       /* threads per multiprocessor */
    case 75: *value = capability() / 10; break;
    case 76: *value = capability() % 10; break;
    case 81: *value = 233472; break;                     /* shared memory per multiprocessor */
    case 97: *value = 232448; break;                     /* and per block that asks for it */
    default: *value = 1;
    }
    return SUCCESS;
}

static char anything;
static Status some(Handle *handle) { *handle = &anything; return SUCCESS; }

Status cuDevicePrimaryCtxRetain(Handle *context, int device) { return some(context); }
Status cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Status cuCtxSetCurrent(Handle context) { return SUCCESS; }
Status cuCtxGetCurrent(Handle *context) { return some(context); }
Status cuCtxSynchronize(void) { return SUCCESS; }
Status cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }
Status cuStreamCreate(Handle *stream, unsigned flags) { return some(stream); }
Status cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) { return some(stream); }
Status cuStreamDestroy_v2(Handle stream) { return SUCCESS; }
Status cuStreamSynchronize(Handle stream) { return SUCCESS; }
Status cuStreamQuery(Handle stream) { return SUCCESS; }
Status cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { return SUCCESS; }
Status cuEventCreate(Handle *event, unsigned flags) { return some(event); }
Status cuEventRecord(Handle event, Handle stream) { return SUCCESS; }
Status cuEventQuery(Handle event) { return SUCCESS; }
Status cuEventSynchronize(Handle event) { return SUCCESS; }
Status cuEventElapsedTime(float *ms, Handle start, Handle end) { *ms = 1.0f; return SUCCESS; }
Status cuEventElapsedTime_v2(float *ms, Handle start, Handle end) { return cuEventElapsedTime(ms, start, end); }
Status cuEventDestroy_v2(Handle event) { return SUCCESS; }

/* Pages that nobody touches cost nothing, and read as zeros the first time. */
static Handle pages(size_t bytes) { return calloc(1, bytes ? bytes : 1); }

Status cuMemAlloc_v2(Address *address, size_t bytes) {
    /* Kernels expect addresses that are multiples of 256. */
    char *start = pages(bytes + 512);
    if (!start) return OUT_OF_MEMORY;
    char *aligned = (char *)(((uintptr_t)start + 511) & ~(uintptr_t)255);
    ((char **)aligned)[-1] = start;
    *address = (Address)aligned;
    return SUCCESS;
}
Status cuMemFree_v2(Address address) { free(((char **)address)[-1]); return SUCCESS; }
Status cuMemAllocAsync(Address *address, size_t bytes, Handle stream) { return cuMemAlloc_v2(address, bytes); }
Status cuMemFreeAsync(Address address, Handle stream) { return cuMemFree_v2(address); }
Status cuMemAllocHost_v2(Handle *memory, size_t bytes) { *memory = pages(bytes); return SUCCESS; }
Status cuMemFreeHost(Handle memory) { free(memory); return SUCCESS; }

Status cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Handle stream) { memcpy((Handle)to, from, bytes); return SUCCESS; }
/* Nothing has been computed: all that is read is 0. */
Status cuMemcpyDtoHAsync_v2(Handle to, Address from, size_t bytes, Handle stream) { memset(to, 0, bytes); return SUCCESS; }
Status cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle stream) { memmove((Handle)to, (Handle)from, bytes); return SUCCESS; }
Status cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Handle stream) { memset((Handle)to, value, bytes); return SUCCESS; }

struct Side { size_t x, y; int type; const void *host; Address device; Handle array; size_t pitch; };
struct Copy { struct Side from, to; size_t width, height; };

static char *row(const struct Side *side, size_t line) {
    char *start = side->type == 1 ? (char *)side->host : (char *)side->device;
    return start + (side->y + line) * side->pitch + side->x;
}

Status cuMemcpy2DAsync_v2(const struct Copy *copy, Handle stream) {
    for (size_t line = 0; line < copy->height; line++) {
        if (copy->to.type == 1) memset(row(&copy->to, line), 0, copy->width);
        else memmove(row(&copy->to, line), row(&copy->from, line), copy->width);
    }
    return SUCCESS;
}

Status cuModuleLoadData(Handle *module, const void *image) {
    static int count;
    const char *folder = getenv("CUDA_KERNELS_OUT");
    char path[4096];
    snprintf(path, sizeof path, "%s/%05d.ptx", folder ? folder : ".", __sync_add_and_fetch(&count, 1));
    FILE *file = folder ? fopen(path, "w") : NULL;
    if (file) {
        fputs(image, file);
        fclose(file);
    }
    return some(module);
}
Status cuModuleLoadDataEx(Handle *module, const void *image, unsigned count, Handle options, Handle values) { return cuModuleLoadData(module, image); }
Status cuModuleUnload(Handle module) { return SUCCESS; }
Status cuModuleGetFunction(Handle *function, Handle module, const char *name) { return some(function); }
Status cuFuncSetAttribute(Handle function, int attribute, int value) { return SUCCESS; }
Status cuFuncGetAttribute(int *value, int attribute, Handle function) { *value = 64; return SUCCESS; }
Status cuLaunchKernel(Handle function, unsigned x, unsigned y, unsigned z, unsigned in_x, unsigned in_y, unsigned in_z, unsigned shared,
                      Handle stream, Handle *arguments, Handle *extra) { return SUCCESS; }
Status cuLaunchKernelEx(const void *config, Handle function, Handle *arguments, Handle *extra) { return SUCCESS; }
Status cuGetErrorName(int error, const char **name) { *name = "an error without a device"; return SUCCESS; }
Status cuGetErrorString(int error, const char **name) { return cuGetErrorName(error, name); }
