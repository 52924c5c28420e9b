// SSM_CONV: out[s,t,i] = sum over the taps j of x[s,i,t+j] * c[i,j], in float32.
//
// One thread computes one element. Axes innermost first: out (channel, token, sequence), x (token, channel,
// sequence), c (tap, channel).

// Every *_start and *_nb is in bytes from the start of the argument's buffer, every *_ne in elements; innermost first.
struct arguments {
    size_t out_ne[4];
    size_t out_start;
    size_t out_nb[4];
    size_t x_ne[4];
    size_t x_start;
    size_t x_nb[4];
    size_t taps;
    size_t c_start;
    size_t c_nb[4];
};

extern "C" __global__ void ssm_conv(const arguments p, const float *x, const float *c, float *out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {
        return;
    }
    const size_t i0 = id % p.out_ne[0];
    const size_t i1 = id / p.out_ne[0] % p.out_ne[1];
    const size_t i2 = id / (p.out_ne[0] * p.out_ne[1]) % p.out_ne[2];
    const size_t i3 = id / (p.out_ne[0] * p.out_ne[1] * p.out_ne[2]);
    const size_t to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];
    const size_t window = p.x_start + i1 * p.x_nb[0] + i0 * p.x_nb[1] + i2 * p.x_nb[2];  // starts at token i1
    const size_t filter = p.c_start + i0 * p.c_nb[1];

    float sum = 0.0f;
    for (size_t j = 0; j < p.taps; j++) {
        sum += x[(window + j * p.x_nb[0]) / 4] * c[(filter + j * p.c_nb[0]) / 4];
    }
    out[to / 4] = sum;
}
