// CPY: the elements of x, in flat order, in another shape and type, rounded to nearest even.
//
// One work-item moves one element. Where the type stays it is moved as bits; else it goes through float32, which holds
// every f16 and bf16.

#include "api.h"
#include "elements.h"
#include "places.h"

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

DEVICE ulong size_of(ulong type) {
    return type == TYPE_F16 || type == TYPE_BF16 ? 2 : 4;
}

DEVICE void copy(const struct arguments p, __global const uchar *from, __global uchar *to) {
    if (p.x_type == p.out_type) {
        move(size_of(p.x_type), to, from);
    } else {
        store(p.out_type, to, load(p.x_type, from));
    }
}

__kernel void cpy(const struct arguments p, __global const uchar *x, __global uchar *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const struct indices i = indices_of(id, p.out_ne[0], p.out_ne[1], p.out_ne[2]);
    const ulong to = p.out_start + i.i0 * p.out_nb[0] + i.i1 * p.out_nb[1] + i.i2 * p.out_nb[2] + i.i3 * p.out_nb[3];
    const struct indices j = indices_of(id, p.x_ne[0], p.x_ne[1], p.x_ne[2]);
    const ulong from = p.x_start + j.i0 * p.x_nb[0] + j.i1 * p.x_nb[1] + j.i2 * p.x_nb[2] + j.i3 * p.x_nb[3];

    copy(p, x + from, out + to);
}

// The same where both are packed: there is nothing to divide.
__kernel void cpy_packed(const struct arguments p, __global const uchar *x, __global uchar *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    copy(p, x + p.x_start + id * size_of(p.x_type), out + p.out_start + id * size_of(p.out_type));
}
