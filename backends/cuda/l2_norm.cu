// L2_NORM: rows over max(norm, eps), or over sqrt(sum of squares + eps), in float32.
//
// A block takes one row.

#include "blocks.cuh"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    size_t out_ne[4];
    size_t out_start;
    size_t out_nb[4];
    size_t x_ne[4];
    size_t x_start;
    size_t x_nb[4];
    size_t eps;    // the bits of a float32
    size_t added;  // 0: eps is the least divisor; 1: eps is added to the sum of squares
};

extern "C" __global__ void l2_norm(const arguments p, const float *x, float *out) {
    const size_t id = blockIdx.x;
    if (id >= p.x_ne[1] * p.x_ne[2] * p.x_ne[3]) {
        return;
    }
    const size_t i1 = id % p.x_ne[1];
    const size_t i2 = id / p.x_ne[1] % p.x_ne[2];
    const size_t i3 = id / (p.x_ne[1] * p.x_ne[2]);
    const size_t x_row = p.x_start + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];
    const size_t out_row = p.out_start + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const float eps = __uint_as_float((unsigned int)p.eps);

    float part = 0.0f;
    for (size_t n = threadIdx.x; n < p.x_ne[0]; n += blockDim.x) {
        const float value = x[(x_row + n * p.x_nb[0]) / 4];
        part += value * value;
    }
    const float squares = block_sum(part);
    const float divisor = p.added ? sqrtf(squares + eps) : fmaxf(sqrtf(squares), eps);
    for (size_t n = threadIdx.x; n < p.x_ne[0]; n += blockDim.x) {
        out[(out_row + n * p.out_nb[0]) / 4] = x[(x_row + n * p.x_nb[0]) / 4] / divisor;
    }
}
