#version 450

// CPY: the elements of x, in flat order, in another shape and type, rounded to nearest even.
//
// Where the type stays an element is moved as bits; else it goes through float32, which holds every f16 and bf16. Types
// are converted by whole-number arithmetic on their bits, for Vulkan promises neither a rounding mode nor denormals of
// its own conversions.

const uint F32 = 0;
const uint F16 = 1;
const uint BF16 = 2;
const uint I32 = 3;

layout(local_size_x = 64) in;

// All memory of the case; every *_start and *_nb below is in bytes, every *_ne in elements, innermost first.
layout(std430, binding = 0) buffer Memory { uint words[]; };

layout(push_constant) uniform Arguments {
    uint out_ne[4];
    uint out_start;
    uint out_nb[4];
    uint x_ne[4];
    uint x_start;
    uint x_nb[4];
    uint x_type;  // F32, F16, BF16 or I32
    uint out_type;
};

uint load(uint from) {
    uint word = words[from / 4];
    if (x_type == F32 || x_type == I32) {
        return word;
    }
    return from % 4 == 0 ? word & 0xFFFFu : word >> 16;
}

// A half word is written without its other half, which may belong to another invocation or to nobody (a guard): no
// invocation but this one changes these 16 bits, so that clearing and setting them need not be one step.
void store(uint to, uint bits) {
    if (out_type == F32 || out_type == I32) {
        words[to / 4] = bits;
        return;
    }
    uint shift = to % 4 == 0 ? 0 : 16;
    atomicAnd(words[to / 4], ~(0xFFFFu << shift));
    atomicOr(words[to / 4], bits << shift);
}

// The bits of a float32 that holds the value of an f16.
uint f32_of_f16(uint bits) {
    uint sign = (bits & 0x8000u) << 16;
    uint exponent = bits >> 10 & 31;
    uint fraction = bits & 0x3FFu;
    if (exponent == 31) {
        return sign | 0x7F800000u | fraction << 13;
    }
    if (exponent == 0 && fraction != 0) {  // a denormal, which is normal in float32
        uint shift = 10 - findMSB(fraction);
        return sign | (113 - shift) << 23 | (fraction << shift & 0x3FFu) << 13;
    }
    return exponent == 0 ? sign : sign | (exponent + 112) << 23 | fraction << 13;
}

// The f16 next to a float32, of two equally near ones the even one.
uint f16_of_f32(uint bits) {
    uint sign = bits >> 16 & 0x8000u;
    uint size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) {
        return sign | 0x7E00u;  // NaN
    }
    if (size >= 0x477FF000u) {  // 65520, halfway from the largest number to the next power of two
        return sign | 0x7C00u;
    }
    if (size >= 0x38800000u) {  // 2^-14, the smallest normal number
        uint moved = size - 0x38000000u;
        return sign | (moved + 0xFFFu + (moved >> 13 & 1)) >> 13;
    }
    if (size < 0x33000000u) {  // below half of the smallest denormal
        return sign;
    }
    uint significand = size & 0x7FFFFFu | 0x800000u;
    uint shift = 126 - (size >> 23);  // from 14 to 24
    uint rest = significand & (1u << shift) - 1;
    uint below = significand >> shift;
    uint tie = 1u << shift - 1;
    return sign | below + (rest > tie || rest == tie && (below & 1) != 0 ? 1 : 0);
}

// The upper half of a float32, rounded by what stands in the lower one: adding to the bits carries into the exponent,
// and past the largest number to infinity.
uint bf16_of_f32(uint bits) {
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        return bits >> 16 | 0x40u;  // quiet, so that a payload in the lower half alone is not lost
    }
    return (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
}

uint converted(uint bits) {
    uint wide = x_type == F16 ? f32_of_f16(bits) : x_type == BF16 ? bits << 16 : bits;
    return out_type == F16 ? f16_of_f32(wide) : out_type == BF16 ? bf16_of_f32(wide) : wide;
}

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

    store(to, x_type == out_type ? load(from) : converted(load(from)));
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        move(id);
    }
}
