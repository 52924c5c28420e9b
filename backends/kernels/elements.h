// Elements of every type, at a byte of a buffer.

enum { TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_I32, TYPE_NONE };  // as fields.py numbers them

// Bits, so that a copy keeps NaN payloads and denormals; `itemsize` is 2 or 4.
DEVICE void move(ulong itemsize, __global uchar *to, __global const uchar *from) {
    if (itemsize == 2) {
        *(__global ushort *)to = *(__global const ushort *)from;
    } else {
        *(__global uint *)to = *(__global const uint *)from;
    }
}

DEVICE void clear(ulong itemsize, __global uchar *to) {
    if (itemsize == 2) {
        *(__global ushort *)to = 0;
    } else {
        *(__global uint *)to = 0;
    }
}

#ifdef __OPENCL_VERSION__
float load_half(__global const uchar *from) {
    return vload_half(0, (__global const half *)from);
}

void store_half(__global uchar *to, float value) {
    vstore_half_rte(value, 0, (__global half *)to);
}
#else
DEVICE float load_half(const uchar *from) {
    const uint bits = *(const ushort *)from;
    const uint sign = (bits & 0x8000u) << 16;
    const uint magnitude = bits & 0x7FFFu;
    if (magnitude >= 0x7C00) {  // infinity or NaN
        return as_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    }
    if (magnitude < 0x400) {  // a denormal counts units of 2^-24
        const float value = (float)magnitude * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    return as_float(sign | ((magnitude << 13) + 0x38000000));  // exponents are biased by 15 and by 127
}

// The nearest half, ties to even. Adding to the bits carries into the exponent.
DEVICE ushort half_of(float value) {
    const uint bits = as_uint(value);
    const uint sign = bits >> 16 & 0x8000;
    const uint magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) {
        return (ushort)(sign | 0x7E00);  // NaN
    }
    if (magnitude >= 0x477FF000) {  // from 65520 on
        return (ushort)(sign | 0x7C00);
    }
    if (magnitude >= 0x38800000) {  // from 2^-14 on: a normal number
        const uint normal = magnitude - 0x38000000;
        return (ushort)(sign | (normal + 0xFFF + (normal >> 13 & 1)) >> 13);
    }
    const uint shift = 126 - (magnitude >> 23);  // to units of 2^-24
    if (shift > 24) {
        return (ushort)sign;
    }
    const uint digits = (magnitude & 0x7FFFFF) | 0x800000;
    const uint units = digits >> shift;
    const uint rest = digits & ((1u << shift) - 1);
    const uint middle = 1u << (shift - 1);
    const bool up = rest > middle || (rest == middle && (units & 1));
    return (ushort)(sign | (units + up));
}

DEVICE void store_half(uchar *to, float value) {
    *(ushort *)to = half_of(value);
}
#endif

// The upper half of a float, rounded to nearest even by what stands in the lower one: adding to the bits carries into
// the exponent, and past the largest number to infinity.
DEVICE ushort bf16_of(float value) {
    const uint bits = as_uint(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) {
        return (ushort)(bits >> 16 | 0x40);  // quiet, so that a payload in the lower half alone is not lost
    }
    return (ushort)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

DEVICE float load(ulong type, __global const uchar *from) {
    if (type == TYPE_F16) {
        return load_half(from);
    }
    if (type == TYPE_BF16) {
        return as_float((uint)*(__global const ushort *)from << 16);
    }
    return *(__global const float *)from;
}

DEVICE void store(ulong type, __global uchar *to, float value) {
    if (type == TYPE_F16) {
        store_half(to, value);
    } else if (type == TYPE_BF16) {
        *(__global ushort *)to = bf16_of(value);
    } else {
        *(__global float *)to = value;
    }
}
