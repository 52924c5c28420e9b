// SUM_ROWS: the sum of each row, in float32.
//
// A block sums one row: each thread every so many elements, and then they add up what they have, two by two.

#include "blocks.cuh"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    size_t out_ne[4];
    size_t out_start;
    size_t out_nb[4];
    size_t x_ne[4];
    size_t x_start;
    size_t x_nb[4];
};

extern "C" __global__ void sum_rows(const arguments p, const float *x, float *out) {
    const size_t id = blockIdx.x;
    if (id >= p.x_ne[1] * p.x_ne[2] * p.x_ne[3]) {
        return;
    }
    const size_t i1 = id % p.x_ne[1];
    const size_t i2 = id / p.x_ne[1] % p.x_ne[2];
    const size_t i3 = id / (p.x_ne[1] * p.x_ne[2]);
    const size_t row = p.x_start + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];
    const size_t to = p.out_start + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];

    float part = 0.0f;
    for (size_t n = threadIdx.x; n < p.x_ne[0]; n += blockDim.x) {
        part += x[(row + n * p.x_nb[0]) / 4];
    }
    const float sum = block_sum(part);
    if (threadIdx.x == 0) {
        out[to / 4] = sum;
    }
}
