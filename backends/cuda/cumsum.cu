// CUMSUM: out_i = sum of x_j over j <= i (exclusive: j < i) along one axis, from the far end where reverse; float32.
//
// A block walks one line along the axis, a tile of as many elements as it has threads at a time. In a tile the threads
// add up in doubling steps, and what the tiles before came to is carried on: every sum is a tree over its own terms. A
// file of its own, for threads that exchange sums need blocks and barriers.

#include "cumsum.cl"

extern "C" __global__ void cumsum(const arguments p, const float *x, float *out) {
    __shared__ float sums[256];  // of the tile, up to each of its elements; a block has at most so many threads
    __shared__ float carry;      // the sum of all tiles before

    const size_t line = blockIdx.x;
    const unsigned int thread = threadIdx.x, width = blockDim.x;
    const size_t ne0 = p.axis == 0 ? 1 : p.x_ne[0];  // there is a line for every place along the other axes
    const size_t ne1 = p.axis == 1 ? 1 : p.x_ne[1];
    const size_t ne2 = p.axis == 2 ? 1 : p.x_ne[2];
    const size_t ne3 = p.axis == 3 ? 1 : p.x_ne[3];
    if (line >= ne0 * ne1 * ne2 * ne3) {
        return;
    }
    const size_t i0 = line % ne0;
    const size_t i1 = line / ne0 % ne1;
    const size_t i2 = line / (ne0 * ne1) % ne2;
    const size_t i3 = line / (ne0 * ne1 * ne2);
    const size_t x_line = p.x_start + i0 * p.x_nb[0] + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];
    const size_t out_line = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const size_t length = p.x_ne[p.axis], x_step = p.x_nb[p.axis], out_step = p.out_nb[p.axis];

    if (thread == 0) {
        carry = 0.0f;
    }
    for (size_t tile = 0; tile < length; tile += width) {
        const size_t n = tile + thread;
        const size_t i = p.reverse ? length - 1 - n : n;
        sums[thread] = n < length ? x[(x_line + i * x_step) / 4] : 0.0f;
        __syncthreads();
        for (unsigned int step = 1; step < width; step *= 2) {
            const float left = thread >= step ? sums[thread - step] : 0.0f;
            __syncthreads();  // all have read before any writes
            sums[thread] += left;
            __syncthreads();
        }
        const float before = thread > 0 ? sums[thread - 1] : 0.0f;
        if (n < length) {
            out[(out_line + i * out_step) / 4] = carry + (p.exclusive ? before : sums[thread]);
        }
        __syncthreads();  // all have read the carry, and of the tile what they need
        if (thread == width - 1) {
            carry += sums[thread];
        }
    }
}
