// L2_NORM: rows over max(norm, eps), or over sqrt(sum of squares + eps), in float32.
//
// One work-item computes one row.

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
    ulong eps;    // the bits of a float32
    ulong added;  // 0: eps is the least divisor; 1: eps is added to the sum of squares
};

__kernel void l2_norm(const struct arguments p, __global const float *x, __global float *out) {
    const ulong id = get_global_id(0);
    if (id >= p.x_ne[1] * p.x_ne[2] * p.x_ne[3]) {
        return;
    }
    const ulong i1 = id % p.x_ne[1];
    const ulong i2 = id / p.x_ne[1] % p.x_ne[2];
    const ulong i3 = id / (p.x_ne[1] * p.x_ne[2]);
    const ulong x_row = p.x_start + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];
    const ulong out_row = p.out_start + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const float eps = as_float((uint)p.eps);

    float squares = 0.0f;
    for (ulong n = 0; n < p.x_ne[0]; n++) {
        const float value = x[(x_row + n * p.x_nb[0]) / 4];
        squares += value * value;
    }
    const float divisor = p.added ? sqrt(squares + eps) : max(sqrt(squares), eps);
    for (ulong n = 0; n < p.x_ne[0]; n++) {
        out[(out_row + n * p.out_nb[0]) / 4] = x[(x_row + n * p.x_nb[0]) / 4] / divisor;
    }
}
