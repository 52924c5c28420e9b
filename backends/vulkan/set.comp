#version 450
#extension GL_GOOGLE_include_directive : require

// SET: out = a; out.view(nb1, nb2, nb3, offset) = b. Elements of 2 or 4 bytes are moved as bits.
//
// Two dispatches, for the strides of the view need not nest and so the view cannot be inverted: COPY takes every
// element of a to out, WRITE then puts every element of b over the one it meets. In place, WRITE alone runs.

const uint COPY = 0;
const uint WRITE = 1;
const uint COPY_PACKED = 2;

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
    uvec4 i = indices_of(id, a_ne[0], a_ne[1], a_ne[2]);
    uint from = a_start + i[0] * a_nb[0] + i[1] * a_nb[1] + i[2] * a_nb[2] + i[3] * a_nb[3];
    uint to = out_start + i[0] * out_nb[0] + i[1] * out_nb[1] + i[2] * out_nb[2] + i[3] * out_nb[3];

    store_bits(to, itemsize, load_bits(from, itemsize));
}

// The same where both are packed: there is nothing to divide.
void copy_packed(uint id) {
    store_bits(out_start + id * itemsize, itemsize, load_bits(a_start + id * itemsize, itemsize));
}

void write(uint id) {
    uvec4 i = indices_of(id, b_ne[0], b_ne[1], b_ne[2]);
    uint from = b_start + i[0] * b_nb[0] + i[1] * b_nb[1] + i[2] * b_nb[2] + i[3] * b_nb[3];

    // The view counts bytes as if a were packed; its flat index names the element of out, wherever that lies.
    uint flat_index =
        (view_start + i[0] * view_nb[0] + i[1] * view_nb[1] + i[2] * view_nb[2] + i[3] * view_nb[3]) / itemsize;
    uvec4 j = indices_of(flat_index, a_ne[0], a_ne[1], a_ne[2]);
    uint to = out_start + j[0] * out_nb[0] + j[1] * out_nb[1] + j[2] * out_nb[2] + j[3] * out_nb[3];

    store_bits(to, itemsize, load_bits(from, itemsize));
}

void main() {
    uint a_count = a_ne[0] * a_ne[1] * a_ne[2] * a_ne[3];
    uint b_count = b_ne[0] * b_ne[1] * b_ne[2] * b_ne[3];
    uint count = part == WRITE ? b_count : a_count;
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        if (part == COPY) {
            copy(id);
        } else if (part == COPY_PACKED) {
            copy_packed(id);
        } else {
            write(id);
        }
    }
}
