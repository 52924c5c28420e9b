// CPY: the elements of x, in flat order, in another shape and type, rounded to nearest even.
//
// One work-item moves one element. Where the type stays it is moved as bits; else it goes through float32, which holds
// every f16 and bf16.

#include "api.h"
#include "elements.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
    ulong x_type;    // TYPE_*
    ulong out_type;
};

__kernel void cpy(const struct arguments p, __global const uchar *x, __global uchar *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const ulong i0 = id % p.out_ne[0];
    const ulong i1 = id / p.out_ne[0] % p.out_ne[1];
    const ulong i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const ulong i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const ulong to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const ulong j0 = id % p.x_ne[0];
    const ulong j1 = id / p.x_ne[0] % p.x_ne[1];
    const ulong j2 = id / (p.x_ne[0] * p.x_ne[1]) % p.x_ne[2];
    const ulong j3 = id / (p.x_ne[0] * p.x_ne[1] * p.x_ne[2]);
    const ulong from = p.x_start + j0 * p.x_nb[0] + j1 * p.x_nb[1] + j2 * p.x_nb[2] + j3 * p.x_nb[3];

    if (p.x_type == p.out_type) {
        move(p.x_type == TYPE_F16 || p.x_type == TYPE_BF16 ? 2 : 4, out + to, x + from);
    } else {
        store(p.out_type, out + to, load(p.x_type, x + from));
    }
}
