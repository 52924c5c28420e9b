#version 450
#extension GL_GOOGLE_include_directive : require

// CPY: the elements of x, in flat order, in another shape and type, rounded to nearest even.
//
// Where the type stays an element is moved as bits; else it goes through float32, which holds every f16 and bf16. Types
// are converted by whole-number arithmetic on their bits, for Vulkan promises neither a rounding mode nor denormals of
// its own conversions.

layout(constant_id = 0) const uint part = 0;

const uint STRIDED = 0;
const uint PACKED = 1;

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

uint size_of(uint type) {
    return type == TYPE_F16 || type == TYPE_BF16 ? 2 : 4;
}

void copy(uint from, uint to) {
    if (x_type == out_type) {
        store_bits(to, size_of(x_type), load_bits(from, size_of(x_type)));
    } else {
        store_typed(out_type, to, load_typed(x_type, from));
    }
}

void strided(uint id) {
    uvec4 i = indices_of(id, out_ne[0], out_ne[1], out_ne[2]);
    uint to = out_start + i[0] * out_nb[0] + i[1] * out_nb[1] + i[2] * out_nb[2] + i[3] * out_nb[3];
    uvec4 j = indices_of(id, x_ne[0], x_ne[1], x_ne[2]);
    uint from = x_start + j[0] * x_nb[0] + j[1] * x_nb[1] + j[2] * x_nb[2] + j[3] * x_nb[3];

    copy(from, to);
}

// The same where both are packed: there is nothing to divide.
void side_by_side(uint id) {
    copy(x_start + id * size_of(x_type), out_start + id * size_of(out_type));
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        if (part == PACKED) {
            side_by_side(id);
        } else {
            strided(id);
        }
    }
}
