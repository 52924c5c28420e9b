// CPY: the elements of x, in flat order, in another shape and type, rounded to nearest even.
//
// One thread moves one element. Where the type stays it is moved as bits; else it goes through float32, which holds
// every f16 and bf16.

#include "elements.cuh"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    size_t out_ne[4];
    size_t out_start;
    size_t out_nb[4];
    size_t x_ne[4];
    size_t x_start;
    size_t x_nb[4];
    size_t x_type;    // TYPE_*
    size_t out_type;
};

extern "C" __global__ void cpy(const arguments p, const unsigned char *x, unsigned char *out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const size_t i0 = id % p.out_ne[0];
    const size_t i1 = id / p.out_ne[0] % p.out_ne[1];
    const size_t i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const size_t i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const size_t to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const size_t j0 = id % p.x_ne[0];
    const size_t j1 = id / p.x_ne[0] % p.x_ne[1];
    const size_t j2 = id / (p.x_ne[0] * p.x_ne[1]) % p.x_ne[2];
    const size_t j3 = id / (p.x_ne[0] * p.x_ne[1] * p.x_ne[2]);
    const size_t from = p.x_start + j0 * p.x_nb[0] + j1 * p.x_nb[1] + j2 * p.x_nb[2] + j3 * p.x_nb[3];

    if (p.x_type == p.out_type) {
        move(p.x_type == TYPE_F16 || p.x_type == TYPE_BF16 ? 2 : 4, out + to, x + from);
    } else {
        store(p.out_type, out + to, load(p.x_type, x + from));
    }
}
