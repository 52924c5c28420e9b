#version 450
#extension GL_GOOGLE_include_directive : require

// Ops that move elements: out is x, which begins `before` elements further on along each axis, where the op's row in
// families.py says so; zeros fill the rest. Elements of 2 or 4 bytes are moved as bits.

#include "memory.glsl"
#include "formula.h"

// Every *_start and *_nb is in bytes, every *_ne in elements, innermost first.
layout(push_constant) uniform Arguments {
    uint out_ne[4];
    uint out_start;
    uint out_nb[4];
    uint x_ne[4];  // an axis along which x is repeated has the size of out, and no stride
    uint x_start;
    uint x_nb[4];
    uint itemsize;  // 2 or 4
    uint before[4];
    uint parameters[2];
};

void write(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint j0 = i0 - before[0];  // before x this wraps round to more than any size
    uint j1 = i1 - before[1];
    uint j2 = i2 - before[2];
    uint j3 = i3 - before[3];
    uint from = x_start + j0 * x_nb[0] + j1 * x_nb[1] + j2 * x_nb[2] + j3 * x_nb[3];

    bool inside = j0 < x_ne[0] && j1 < x_ne[1] && j2 < x_ne[2] && j3 < x_ne[3];
    inside = inside && formula(i0, i1, parameters[0], parameters[1]);
    store_bits(to, itemsize, inside ? load_bits(from, itemsize) : 0);
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        write(id);
    }
}
