#version 450
#extension GL_GOOGLE_include_directive : require

// CPY: the elements of x, in flat order, in another shape and type, rounded to nearest even.
//
// Where the type stays an element is moved as bits; else it goes through float32, which holds every f16 and bf16. Types
// are converted by whole-number arithmetic on their bits, for Vulkan promises neither a rounding mode nor denormals of
// its own conversions.

#include "memory.glsl"

// Every *_start and *_nb is in bytes, every *_ne in elements, innermost first.
layout(push_constant) uniform Arguments {
    uint out_ne[4];
    uint out_start;
    uint out_nb[4];
    uint x_ne[4];
    uint x_start;
    uint x_nb[4];
    uint x_type;  // TYPE_*
    uint out_type;
};

void move(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint j0 = id % x_ne[0];
    uint j1 = id / x_ne[0] % x_ne[1];
    uint j2 = id / (x_ne[0] * x_ne[1]) % x_ne[2];
    uint j3 = id / (x_ne[0] * x_ne[1] * x_ne[2]);
    uint from = x_start + j0 * x_nb[0] + j1 * x_nb[1] + j2 * x_nb[2] + j3 * x_nb[3];

    if (x_type == out_type) {
        uint itemsize = x_type == TYPE_F16 || x_type == TYPE_BF16 ? 2 : 4;
        store_bits(to, itemsize, load_bits(from, itemsize));
    } else {
        store_typed(out_type, to, load_typed(x_type, from));
    }
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        move(id);
    }
}
