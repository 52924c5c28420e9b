// CONT: out = x, whatever the strides of either. Elements of 2 or 4 bytes are moved as bits.
//
// One work-item moves one element.

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
    ulong itemsize;  // 2 or 4
};

__kernel void cont(const struct arguments p, __global const uchar *x, __global uchar *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const ulong i0 = id % p.out_ne[0];
    const ulong i1 = id / p.out_ne[0] % p.out_ne[1];
    const ulong i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const ulong i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const ulong to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const ulong from = p.x_start + i0 * p.x_nb[0] + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];

    if (p.itemsize == 2) {
        *(__global ushort *)(out + to) = *(__global const ushort *)(x + from);
    } else {
        *(__global uint *)(out + to) = *(__global const uint *)(x + from);
    }
}
