// Elements of every type, at a byte of a buffer.

enum { TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_I32 };  // as arguments.py numbers them

// Bits, so that a copy keeps NaN payloads and denormals; `itemsize` is 2 or 4.
__device__ void move(size_t itemsize, unsigned char *to, const unsigned char *from) {
    if (itemsize == 2) {
        *(unsigned short *)to = *(const unsigned short *)from;
    } else {
        *(unsigned int *)to = *(const unsigned int *)from;
    }
}

__device__ void clear(size_t itemsize, unsigned char *to) {
    if (itemsize == 2) {
        *(unsigned short *)to = 0;
    } else {
        *(unsigned int *)to = 0;
    }
}

__device__ float float_of_half(unsigned short half) {
    const unsigned int sign = (half & 0x8000u) << 16;
    const unsigned int magnitude = half & 0x7FFFu;
    if (magnitude >= 0x7C00) {  // infinity or NaN
        return __uint_as_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    }
    if (magnitude < 0x400) {  // a denormal counts units of 2^-24
        const float value = (float)magnitude * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    return __uint_as_float(sign | ((magnitude << 13) + 0x38000000));  // exponents are biased by 15 and by 127
}

// The nearest half, ties to even. Adding to the bits carries into the exponent.
__device__ unsigned short half_of(float value) {
    const unsigned int bits = __float_as_uint(value);
    const unsigned int sign = bits >> 16 & 0x8000;
    const unsigned int magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) {
        return (unsigned short)(sign | 0x7E00);  // NaN
    }
    if (magnitude >= 0x477FF000) {  // from 65520 on
        return (unsigned short)(sign | 0x7C00);
    }
    if (magnitude >= 0x38800000) {  // from 2^-14 on: a normal number
        const unsigned int normal = magnitude - 0x38000000;
        return (unsigned short)(sign | (normal + 0xFFF + (normal >> 13 & 1)) >> 13);
    }
    const unsigned int shift = 126 - (magnitude >> 23);  // to units of 2^-24
    if (shift > 24) {
        return (unsigned short)sign;
    }
    const unsigned int digits = (magnitude & 0x7FFFFF) | 0x800000;
    const unsigned int units = digits >> shift;
    const unsigned int rest = digits & ((1u << shift) - 1);
    const unsigned int middle = 1u << (shift - 1);
    const bool up = rest > middle || (rest == middle && (units & 1));
    return (unsigned short)(sign | (units + up));
}

// The upper half of a float, rounded to nearest even by what stands in the lower one.
__device__ unsigned short bf16_of(float value) {
    const unsigned int bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) {
        return (unsigned short)(bits >> 16 | 0x40);  // quiet, so that a payload in the lower half alone is not lost
    }
    return (unsigned short)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

__device__ float load(size_t type, const unsigned char *from) {
    if (type == TYPE_F16) {
        return float_of_half(*(const unsigned short *)from);
    }
    if (type == TYPE_BF16) {
        return __uint_as_float((unsigned int)*(const unsigned short *)from << 16);
    }
    return *(const float *)from;
}

__device__ void store(size_t type, unsigned char *to, float value) {
    if (type == TYPE_F16) {
        *(unsigned short *)to = half_of(value);
    } else if (type == TYPE_BF16) {
        *(unsigned short *)to = bf16_of(value);
    } else {
        *(float *)to = value;
    }
}
