// CPY: the elements of x, in flat order, in another shape and type, rounded to nearest even.
//
// One work-item moves one element. Where the type stays it is moved as bits; else it goes through float32, which holds
// every f16 and bf16.

#define F32 0
#define F16 1
#define BF16 2
#define I32 3

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
    ulong x_type;    // F32, F16, BF16 or I32
    ulong out_type;
};

float load(ulong type, __global const uchar *from) {
    if (type == F16) {
        return vload_half(0, (__global const half *)from);
    }
    if (type == BF16) {
        return as_float((uint)*(__global const ushort *)from << 16);
    }
    return *(__global const float *)from;
}

// The upper half of a float, rounded by what stands in the lower one: adding to the bits carries into the exponent, and
// past the largest number to infinity.
ushort bf16_of(float value) {
    const uint bits = as_uint(value);
    if (isnan(value)) {
        return (ushort)(bits >> 16 | 0x40);  // quiet, so that a payload in the lower half alone is not lost
    }
    return (ushort)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void store(ulong type, __global uchar *to, float value) {
    if (type == F16) {
        vstore_half_rte(value, 0, (__global half *)to);
    } else if (type == BF16) {
        *(__global ushort *)to = bf16_of(value);
    } else {
        *(__global float *)to = value;
    }
}

__kernel void cpy(const struct arguments p, __global const uchar *x, __global uchar *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const ulong i0 = id % p.out_ne[0];
    const ulong i1 = id / p.out_ne[0] % p.out_ne[1];
    const ulong i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const ulong i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const ulong to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const ulong j0 = id % p.x_ne[0];
    const ulong j1 = id / p.x_ne[0] % p.x_ne[1];
    const ulong j2 = id / (p.x_ne[0] * p.x_ne[1]) % p.x_ne[2];
    const ulong j3 = id / (p.x_ne[0] * p.x_ne[1] * p.x_ne[2]);
    const ulong from = p.x_start + j0 * p.x_nb[0] + j1 * p.x_nb[1] + j2 * p.x_nb[2] + j3 * p.x_nb[3];

    if (p.x_type != p.out_type) {
        store(p.out_type, out + to, load(p.x_type, x + from));
    } else if (p.x_type == F16 || p.x_type == BF16) {
        *(__global ushort *)(out + to) = *(__global const ushort *)(x + from);
    } else {
        *(__global uint *)(out + to) = *(__global const uint *)(x + from);
    }
}
