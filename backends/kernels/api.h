// One source for OpenCL and CUDA: kernels are written in OpenCL C, and under this header NVRTC, and g++ for cuda-host,
// take the same file as CUDA C++. A function that is no kernel begins with DEVICE.

#ifdef __OPENCL_VERSION__
#define DEVICE
#else
#define DEVICE __device__
#define __kernel extern "C" __global__
#define __global
#ifndef INFINITY
#define INFINITY __uint_as_float(0x7F800000u)
#endif

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef size_t ulong;

DEVICE ulong get_global_id(int) {
    return (ulong)blockIdx.x * blockDim.x + threadIdx.x;
}

DEVICE float as_float(uint bits) {
    return __uint_as_float(bits);
}

DEVICE uint as_uint(float value) {
    return __float_as_uint(value);
}
#endif

typedef ulong float_bits;  // a field that holds a float32, as bits in its low half
