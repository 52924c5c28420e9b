// Rows that lanes share: `lane()` of `lanes()` takes every so many elements of row `row_id()`, and a sum or a maximum
// over the lanes gives the result to all of them. On OpenCL a work-item takes a row alone. On CUDA a block shares it: its
// threads along x are the lanes, a power of two of them and at most 256, and every thread must call.

#ifdef __OPENCL_VERSION__
ulong row_id(void) {
    return get_global_id(0);
}

ulong lane(void) {
    return 0;
}

ulong lanes(void) {
    return 1;
}

float sum_of_lanes(float value) {
    return value;
}

float max_of_lanes(float value) {
    return value;
}
#else
DEVICE ulong row_id() {
    return blockIdx.x;
}

DEVICE ulong lane() {
    return threadIdx.x;
}

DEVICE ulong lanes() {
    return blockDim.x;
}

DEVICE float sum_of_lanes(float value) {
    __shared__ float parts[256];
    const uint thread = threadIdx.x;

    parts[thread] = value;
    __syncthreads();
    for (uint half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half) {
            parts[thread] += parts[thread + half];
        }
        __syncthreads();
    }
    const float sum = parts[0];
    __syncthreads();  // all have read it before the next call writes
    return sum;
}

DEVICE float max_of_lanes(float value) {
    __shared__ float parts[256];
    const uint thread = threadIdx.x;

    parts[thread] = value;
    __syncthreads();
    for (uint half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half) {
            parts[thread] = fmax(parts[thread], parts[thread + half]);
        }
        __syncthreads();
    }
    const float largest = parts[0];
    __syncthreads();
    return largest;
}
#endif
