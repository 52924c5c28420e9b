// SUM_ROWS: the sum of each row, in float32.
//
// One work-item adds the elements of one row one by one: n terms cost n - 1 roundings.

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
};

__kernel void sum_rows(const struct arguments p, __global const float *x, __global float *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const ulong i0 = id % p.out_ne[0];
    const ulong i1 = id / p.out_ne[0] % p.out_ne[1];
    const ulong i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const ulong i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const ulong to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const ulong row = p.x_start + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];

    float sum = 0.0f;
    for (ulong n = 0; n < p.x_ne[0]; n++) {
        sum += x[(row + n * p.x_nb[0]) / 4];
    }
    out[to / 4] = sum;
}
