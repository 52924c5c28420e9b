#version 450
#extension GL_GOOGLE_include_directive : require

// SET: out = a; out.view(nb1, nb2, nb3, offset) = b. Elements of 2 or 4 bytes are moved as bits.
//
// Two dispatches, for the strides of the view need not nest and so the view cannot be inverted: COPY takes every
// element of a to out, WRITE then puts every element of b over the one it meets. In place, WRITE alone runs.

const uint COPY = 0;
const uint WRITE = 1;

layout(constant_id = 0) const uint part = 0;

#include "memory.glsl"

// Every *_start, *_nb and view_* is in bytes, every *_ne in elements, innermost first.
layout(push_constant) uniform Arguments {
    uint a_ne[4];
    uint a_start;
    uint a_nb[4];
    uint out_start;
    uint out_nb[4];
    uint b_ne[4];
    uint b_start;
    uint b_nb[4];
    uint view_start;
    uint view_nb[4];
    uint itemsize;  // 2 or 4
};

void copy(uint id) {
    uint i0 = id % a_ne[0];
    uint i1 = id / a_ne[0] % a_ne[1];
    uint i2 = id / (a_ne[0] * a_ne[1]) % a_ne[2];
    uint i3 = id / (a_ne[0] * a_ne[1] * a_ne[2]);
    uint from = a_start + i0 * a_nb[0] + i1 * a_nb[1] + i2 * a_nb[2] + i3 * a_nb[3];
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];

    store_bits(to, itemsize, load_bits(from, itemsize));
}

void write(uint id) {
    uint i0 = id % b_ne[0];
    uint i1 = id / b_ne[0] % b_ne[1];
    uint i2 = id / (b_ne[0] * b_ne[1]) % b_ne[2];
    uint i3 = id / (b_ne[0] * b_ne[1] * b_ne[2]);
    uint from = b_start + i0 * b_nb[0] + i1 * b_nb[1] + i2 * b_nb[2] + i3 * b_nb[3];

    // The view counts bytes as if a were packed; its flat index names the element of out, wherever that lies.
    uint flat_index = (view_start + i0 * view_nb[0] + i1 * view_nb[1] + i2 * view_nb[2] + i3 * view_nb[3]) / itemsize;
    uint j0 = flat_index % a_ne[0];
    uint j1 = flat_index / a_ne[0] % a_ne[1];
    uint j2 = flat_index / (a_ne[0] * a_ne[1]) % a_ne[2];
    uint j3 = flat_index / (a_ne[0] * a_ne[1] * a_ne[2]);
    uint to = out_start + j0 * out_nb[0] + j1 * out_nb[1] + j2 * out_nb[2] + j3 * out_nb[3];

    store_bits(to, itemsize, load_bits(from, itemsize));
}

void main() {
    uint a_count = a_ne[0] * a_ne[1] * a_ne[2] * a_ne[3];
    uint b_count = b_ne[0] * b_ne[1] * b_ne[2] * b_ne[3];
    uint count = part == COPY ? a_count : b_count;
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        if (part == COPY) {
            copy(id);
        } else {
            write(id);
        }
    }
}
