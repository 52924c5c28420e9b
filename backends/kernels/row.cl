// Row ops: sums over a row of x, and from them every element of the row of out, or its only one. What is summed, and
// what becomes of it, says the op's row in families.py. In float32, rounded once to the type of out.
//
// The lanes of a row take its elements in turn. An op of two sums reads the row once more for the second.

#include "api.h"
#include "elements.h"
#include "formula.h"
#include "lanes.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong out_type;  // TYPE_*
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
    ulong x_type;
    float_bits parameters[2];
};

__kernel void row(const struct arguments p, __global const uchar *x, __global uchar *out) {
    const ulong id = row_id();
    if (id >= p.x_ne[1] * p.x_ne[2] * p.x_ne[3]) {
        return;
    }
    const ulong i1 = id % p.x_ne[1];
    const ulong i2 = id / p.x_ne[1] % p.x_ne[2];
    const ulong i3 = id / (p.x_ne[1] * p.x_ne[2]);
    const ulong x_row = p.x_start + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];
    const ulong out_row = p.out_start + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const float size = (float)p.x_ne[0];
    const float first = as_float((uint)p.parameters[0]), second = as_float((uint)p.parameters[1]);

    float part = 0.0f;
    for (ulong n = lane(); n < p.x_ne[0]; n += lanes()) {
        const float value = load(p.x_type, x + x_row + n * p.x_nb[0]);
        part += addend(value);
    }
    const float sum = sum_of_lanes(part);
    float second_sum = 0.0f;
#if SUMS == 2
    part = 0.0f;
    for (ulong n = lane(); n < p.x_ne[0]; n += lanes()) {
        const float value = load(p.x_type, x + x_row + n * p.x_nb[0]);
        part += second_addend(value, sum, size);
    }
    second_sum = sum_of_lanes(part);
#endif
    for (ulong n = lane(); n < p.out_ne[0]; n += lanes()) {
        const float value = n < p.x_ne[0] ? load(p.x_type, x + x_row + n * p.x_nb[0]) : 0.0f;
        store(p.out_type, out + out_row + n * p.out_nb[0], formula(value, sum, second_sum, size, first, second));
    }
}
