// CUDA C on the CPU: what a kernel file needs so that g++ compiles it as it stands.
//
// One thread of the CPU runs the blocks one after the other, and within a block the threads one after the other up to
// the next barrier (host.cpp). g++ is told to check indices and alignment and to report every access to memory, so that
// out of bounds, races and uninitialised reads are found with their line; see host.py for the options.

#include <math.h>
#include <stddef.h>
#include <string.h>

#include <utility>

struct host_dim3 {
    unsigned int x, y, z;
};

struct host_geometry {
    host_dim3 thread, block, threads, blocks;
};

extern "C" {
extern host_geometry host_now;
void host_barrier(const char *file, int line);
int host_run(const unsigned int *geometry, void (*thread)(void *), void *closure, char *shared, size_t shared_size,
             const char *image);

// The kernels' shared variables and the start of the library, as the linker names them.
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
}

#define threadIdx host_now.thread
#define blockIdx host_now.block
#define blockDim host_now.threads
#define gridDim host_now.blocks

#define __global__
#define __device__ static
#define __shared__ static __attribute__((section("cuda_shared")))
#define __syncthreads() host_barrier(__FILE__, __LINE__)

static inline float __uint_as_float(unsigned int bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline unsigned int __float_as_uint(float value) {
    unsigned int bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// A kernel with the addresses of its arguments, as cuLaunchKernel gets them; every thread gets copies.
template <class... Arguments>
struct HostCall {
    void (*kernel)(Arguments...);
    void **arguments;

    static void thread(void *closure) {
        const HostCall *call = (const HostCall *)closure;
        call->with(std::index_sequence_for<Arguments...>());
    }

    template <size_t... Index>
    __attribute__((no_sanitize("thread"))) void with(std::index_sequence<Index...>) const {
        kernel(*(std::remove_const_t<Arguments> *)arguments[Index]...);
    }
};

template <class... Arguments>
static int host_launch(const unsigned int *geometry, void (*kernel)(Arguments...), void **arguments) {
    HostCall<Arguments...> call = {kernel, arguments};
    const size_t shared_size = __stop_cuda_shared - __start_cuda_shared;
    return host_run(geometry, HostCall<Arguments...>::thread, &call, __start_cuda_shared, shared_size, __ehdr_start);
}

// What is called from outside for a kernel: NAME_launch(blocks and threads, addresses of the arguments).
#define HOST_KERNEL(name)                                                            \
    extern "C" int name##_launch(const unsigned int *geometry, void **arguments) {   \
        return host_launch(geometry, name, arguments);                               \
    }
