// Elementwise ops: every element of out is what the formula of the op's row in families.py makes of one element of x, or
// of one of x and one of y, which is repeated over x. In float32, rounded once to the type of out.
//
// One work-item computes one element.

#include "api.h"
#include "elements.h"
#include "formula.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong out_type;  // TYPE_*
    ulong x_start;   // x has the shape of out
    ulong x_nb[4];
    ulong x_type;
    ulong y_ne[4];
    ulong y_start;
    ulong y_nb[4];
    ulong y_type;
    float_bits parameters[2];
};

__kernel void elementwise(const struct arguments p, __global const uchar *x, __global const uchar *y,
                          __global uchar *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const ulong i0 = id % p.out_ne[0];
    const ulong i1 = id / p.out_ne[0] % p.out_ne[1];
    const ulong i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const ulong i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const ulong to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const ulong x_at = p.x_start + i0 * p.x_nb[0] + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];

    const float x_value = load(p.x_type, x + x_at);
    float y_value = 0.0f;
    if (p.y_type != TYPE_NONE) {
        const ulong y_at = p.y_start + i0 % p.y_ne[0] * p.y_nb[0] + i1 % p.y_ne[1] * p.y_nb[1] +
                           i2 % p.y_ne[2] * p.y_nb[2] + i3 % p.y_ne[3] * p.y_nb[3];
        y_value = load(p.y_type, y + y_at);
    }
    const float first = as_float((uint)p.parameters[0]), second = as_float((uint)p.parameters[1]);
    store(p.out_type, out + to, formula(x_value, y_value, first, second));
}
