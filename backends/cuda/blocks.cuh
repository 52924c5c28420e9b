// Sums and maxima over the threads of a block along x, of which there are a power of two, at most 256. Every thread must
// call, and every thread gets the result.

#define MINUS_INFINITY __uint_as_float(0xFF800000u)

__device__ float block_sum(float value) {
    __shared__ float parts[256];
    const unsigned int thread = threadIdx.x;

    parts[thread] = value;
    __syncthreads();
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half) {
            parts[thread] += parts[thread + half];
        }
        __syncthreads();
    }
    const float sum = parts[0];
    __syncthreads();  // all have read it before the next call writes
    return sum;
}

__device__ float block_max(float value) {
    __shared__ float parts[256];
    const unsigned int thread = threadIdx.x;

    parts[thread] = value;
    __syncthreads();
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half) {
            parts[thread] = fmaxf(parts[thread], parts[thread + half]);
        }
        __syncthreads();
    }
    const float largest = parts[0];
    __syncthreads();
    return largest;
}
