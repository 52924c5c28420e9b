// SSM_CONV: out[s,t,i] = sum over the taps j of x[s,i,t+j] * c[i,j], in float32.
//
// One work-item computes one element. Axes innermost first: out (channel, token, sequence), x (token, channel,
// sequence), c (tap, channel).

#include "api.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    ulong out_ne[4];
    ulong out_start;
    ulong out_nb[4];
    ulong x_ne[4];
    ulong x_start;
    ulong x_nb[4];
    ulong c_ne[4];
    ulong c_start;
    ulong c_nb[4];
};

__kernel void ssm_conv(const struct arguments p, __global const float *x, __global const float *c, __global float *out) {
    const ulong id = get_global_id(0);
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const ulong i0 = id % p.out_ne[0];
    const ulong i1 = id / p.out_ne[0] % p.out_ne[1];
    const ulong i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const ulong i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const ulong to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const ulong window = p.x_start + i1 * p.x_nb[0] + i0 * p.x_nb[1] + i2 * p.x_nb[2];  // starts at token i1
    const ulong filter = p.c_start + i0 * p.c_nb[1];

    float sum = 0.0f;
    for (ulong j = 0; j < p.c_ne[0]; j++) {
        sum += x[(window + j * p.x_nb[0]) / 4] * c[(filter + j * p.c_nb[0]) / 4];
    }
    out[to / 4] = sum;
}
