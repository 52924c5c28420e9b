// DIAG: square matrices with the rows of x as their diagonals. Elements of 2 or 4 bytes are moved as bits.
//
// One thread writes one element.

#include "elements.cuh"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    size_t out_ne[4];
    size_t out_start;
    size_t out_nb[4];
    size_t x_ne[4];
    size_t x_start;
    size_t x_nb[4];
    size_t itemsize;  // 2 or 4
};

extern "C" __global__ void diag(const arguments p, const unsigned char *x, unsigned char *out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const size_t i0 = id % p.out_ne[0];
    const size_t i1 = id / p.out_ne[0] % p.out_ne[1];
    const size_t i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const size_t i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const size_t to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const size_t from = p.x_start + i0 * p.x_nb[0] + i2 * p.x_nb[2] + i3 * p.x_nb[3];  // x has one row

    if (i0 == i1) {
        move(p.itemsize, out + to, x + from);
    } else {
        clear(p.itemsize, out + to);
    }
}
