// CUMSUM: out_i = sum of x_j over j <= i (exclusive: j < i) along one axis, from the far end where reverse; float32.
//
// On OpenCL one work-item walks one line along the axis and adds the elements one by one: m terms cost m - 1 roundings.
// On CUDA a block takes a line: ../cuda/cumsum.cu.

#include "api.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, x_ne in elements; innermost first.
struct arguments {
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
    ulong out_start;
    ulong out_nb[4];
    ulong axis;       // 0 is the innermost
    ulong exclusive;  // 0 or 1
    ulong reverse;    // 0 or 1
};

#ifdef __OPENCL_VERSION__
__kernel void cumsum(const struct arguments p, __global const float *x, __global float *out) {
    ulong lines_ne[4];  // there is a line for every place along the other axes
    for (int k = 0; k < 4; k++) {
        lines_ne[k] = k == p.axis ? 1 : p.x_ne[k];
    }
    const ulong id = get_global_id(0);
    if (id >= lines_ne[0] * lines_ne[1] * lines_ne[2] * lines_ne[3]) {
        return;
    }
    const ulong i0 = id % lines_ne[0];
    const ulong i1 = id / lines_ne[0] % lines_ne[1];
    const ulong i2 = id / (lines_ne[0] * lines_ne[1]) % lines_ne[2];
    const ulong i3 = id / (lines_ne[0] * lines_ne[1] * lines_ne[2]);
    const ulong x_line = p.x_start + i0 * p.x_nb[0] + i1 * p.x_nb[1] + i2 * p.x_nb[2] + i3 * p.x_nb[3];
    const ulong out_line = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];

    const ulong length = p.x_ne[p.axis], x_step = p.x_nb[p.axis], out_step = p.out_nb[p.axis];

    float sum = 0.0f;
    for (ulong n = 0; n < length; n++) {
        const ulong i = p.reverse ? length - 1 - n : n;
        const ulong from = x_line + i * x_step;
        const ulong to = out_line + i * out_step;
        const float before = sum;
        sum += x[from / 4];
        out[to / 4] = p.exclusive ? before : sum;
    }
}
#endif
