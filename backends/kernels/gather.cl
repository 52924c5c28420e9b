// Ops that move elements: out is x, which begins `before` elements further on along each axis, where the op's row in
// families.py says so; zeros fill the rest. Elements of 2 or 4 bytes are moved as bits.
//
// One work-item writes one element.

#include "api.h"
#include "elements.h"
#include "formula.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong x_ne[4];  // an axis along which x is repeated has the size of out, and no stride
    ulong x_start;
    ulong x_nb[4];
    ulong itemsize;  // 2 or 4
    ulong before[4];
    ulong parameters[2];
};

__kernel void gather(const struct arguments p, __global const uchar *x, __global uchar *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const ulong i0 = id % p.out_ne[0];
    const ulong i1 = id / p.out_ne[0] % p.out_ne[1];
    const ulong i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const ulong i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const ulong to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const ulong j0 = i0 - p.before[0];  // before x this wraps round to more than any size
    const ulong j1 = i1 - p.before[1];
    const ulong j2 = i2 - p.before[2];
    const ulong j3 = i3 - p.before[3];
    const ulong from = p.x_start + j0 * p.x_nb[0] + j1 * p.x_nb[1] + j2 * p.x_nb[2] + j3 * p.x_nb[3];

    const bool inside = j0 < p.x_ne[0] && j1 < p.x_ne[1] && j2 < p.x_ne[2] && j3 < p.x_ne[3];
    if (inside && formula(i0, i1, p.parameters[0], p.parameters[1])) {
        move(p.itemsize, out + to, x + from);
    } else {
        clear(p.itemsize, out + to);
    }
}
