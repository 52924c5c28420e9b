#version 450
#extension GL_GOOGLE_include_directive : require

// Elementwise ops: every element of out is what the formula of the op's row in families.py makes of one element of x, or
// of one of x and one of y, which is repeated over x. In float32, rounded once to the type of out.

#include "memory.glsl"
#include "formula.h"

// Every *_start and *_nb is in bytes, every *_ne in elements, innermost first.
layout(push_constant) uniform Arguments {
    uint out_ne[4];
    uint out_start;
    uint out_nb[4];
    uint out_type;  // TYPE_*
    uint x_start;   // x has the shape of out
    uint x_nb[4];
    uint x_type;
    uint y_ne[4];
    uint y_start;
    uint y_nb[4];
    uint y_type;
    float parameters[2];
};

void compute(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint x_at = x_start + i0 * x_nb[0] + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];

    float x = load_typed(x_type, x_at);
    float y = 0.0;
    if (y_type != TYPE_NONE) {
        uint y_at = y_start + i0 % y_ne[0] * y_nb[0] + i1 % y_ne[1] * y_nb[1] + i2 % y_ne[2] * y_nb[2] +
                    i3 % y_ne[3] * y_nb[3];
        y = load_typed(y_type, y_at);
    }
    store_typed(out_type, to, formula(x, y, parameters[0], parameters[1]));
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        compute(id);
    }
}
