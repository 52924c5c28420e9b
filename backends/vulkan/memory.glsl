// All memory of the case, as words, and what a shader takes from it and leaves in it. Every place is in bytes.

layout(local_size_x = 64) in;

layout(std430, binding = 0) restrict buffer Memory { uint words[]; };

const uint TYPE_F32 = 0;  // as fields.py numbers them
const uint TYPE_F16 = 1;
const uint TYPE_BF16 = 2;
const uint TYPE_I32 = 3;
const uint TYPE_NONE = 4;

// ---- places ---------------------------------------------------------------------------------------------------------

// The four indices of an element from its flat one, innermost first.
uvec4 indices_of(uint id, uint ne0, uint ne1, uint ne2) {
    uint row = id / ne0;
    uint matrix = row / ne1;
    return uvec4(id % ne0, row % ne1, matrix % ne2, matrix / ne2);
}

// ---- bits: elements of 2 or 4 bytes -------------------------------------------------------------------------------

uint load_bits(uint from, uint itemsize) {
    uint word = words[from / 4];
    if (itemsize == 4) {
        return word;
    }
    return from % 4 == 0 ? word & 0xFFFFu : word >> 16;
}

// A half word is written without its other half, which may belong to another invocation or to nobody (a guard): no
// invocation but this one changes these 16 bits, so that clearing and setting them need not be one step.
void store_bits(uint to, uint itemsize, uint bits) {
    if (itemsize == 4) {
        words[to / 4] = bits;
        return;
    }
    uint shift = to % 4 == 0 ? 0 : 16;
    atomicAnd(words[to / 4], ~(0xFFFFu << shift));
    atomicOr(words[to / 4], bits << shift);
}

// ---- float32 ------------------------------------------------------------------------------------------------------

// Macros, so that the validation layer names the line of the shader that reads or writes.
#define load(from) uintBitsToFloat(words[(from) / 4])
#define store(to, value) words[(to) / 4] = floatBitsToUint(value)

// ---- every type, by way of float32, which holds every f16 and bf16 ------------------------------------------------
//
// Types are converted by whole-number arithmetic on their bits, for Vulkan promises neither a rounding mode nor
// denormals of its own conversions.

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

float load_typed(uint type, uint from) {
    if (type == TYPE_F32) {
        return load(from);
    }
    uint bits = load_bits(from, 2);
    return uintBitsToFloat(type == TYPE_F16 ? f32_of_f16(bits) : bits << 16);
}

void store_typed(uint type, uint to, float value) {
    if (type == TYPE_F32) {
        store(to, value);
        return;
    }
    uint bits = floatBitsToUint(value);
    store_bits(to, 2, type == TYPE_F16 ? f16_of_f32(bits) : bf16_of_f32(bits));
}
