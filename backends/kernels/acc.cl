// ACC: out = a; out.view(nb1, nb2, nb3, offset) += b, in float32.
//
// Two launches, for the strides of the view need not nest and so the view cannot be inverted: acc_copy takes every
// element of a to out, acc_view then adds every element of b to the one it meets. In place, acc_view alone runs.

#include "api.h"
#include "places.h"

// Every *_start, *_nb and view_* is in bytes (from the start of the argument's buffer; of a packed a for the view),
// every *_ne in elements; innermost first.
struct arguments {
    ulong a_ne[4];
    ulong a_start;
    ulong a_nb[4];
    ulong out_start;
    ulong out_nb[4];
    ulong b_ne[4];
    ulong b_start;
    ulong b_nb[4];
    ulong view_start;
    ulong view_nb[4];
};

__kernel void acc_copy(const struct arguments p, __global const uint *a, __global uint *out) {
    const ulong id = get_global_id(0);
    if (id >= p.a_ne[0] * p.a_ne[1] * p.a_ne[2] * p.a_ne[3]) {
        return;
    }
    const struct indices i = indices_of(id, p.a_ne[0], p.a_ne[1], p.a_ne[2]);
    const ulong from = p.a_start + i.i0 * p.a_nb[0] + i.i1 * p.a_nb[1] + i.i2 * p.a_nb[2] + i.i3 * p.a_nb[3];
    const ulong to = p.out_start + i.i0 * p.out_nb[0] + i.i1 * p.out_nb[1] + i.i2 * p.out_nb[2] + i.i3 * p.out_nb[3];

    out[to / 4] = a[from / 4];  // as bits: a copy keeps NaN payloads and denormals
}

// The same where both are packed: there is nothing to divide.
__kernel void acc_copy_packed(const struct arguments p, __global const uint *a, __global uint *out) {
    const ulong id = get_global_id(0);
    if (id >= p.a_ne[0] * p.a_ne[1] * p.a_ne[2] * p.a_ne[3]) {
        return;
    }
    out[p.out_start / 4 + id] = a[p.a_start / 4 + id];
}

__kernel void acc_view(const struct arguments p, __global const float *b, __global float *out) {
    const ulong id = get_global_id(0);
    if (id >= p.b_ne[0] * p.b_ne[1] * p.b_ne[2] * p.b_ne[3]) {
        return;
    }
    const struct indices i = indices_of(id, p.b_ne[0], p.b_ne[1], p.b_ne[2]);
    const ulong from = p.b_start + i.i0 * p.b_nb[0] + i.i1 * p.b_nb[1] + i.i2 * p.b_nb[2] + i.i3 * p.b_nb[3];

    // The view counts bytes as if a were packed; its flat index names the element of out, wherever that lies.
    const ulong flat_index =
        (p.view_start + i.i0 * p.view_nb[0] + i.i1 * p.view_nb[1] + i.i2 * p.view_nb[2] + i.i3 * p.view_nb[3]) / 4;
    const struct indices j = indices_of(flat_index, p.a_ne[0], p.a_ne[1], p.a_ne[2]);
    const ulong to = p.out_start + j.i0 * p.out_nb[0] + j.i1 * p.out_nb[1] + j.i2 * p.out_nb[2] + j.i3 * p.out_nb[3];

    out[to / 4] += b[from / 4];
}
