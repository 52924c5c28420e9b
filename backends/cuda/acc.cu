// ACC: out = a; out.view(nb1, nb2, nb3, offset) += b, in float32.
//
// Two kernels, for the strides of the view need not nest and so the view cannot be inverted: acc_copy takes every
// element of a to out, acc_view then adds every element of b to the one it meets. In place, acc_view alone runs.

// Every *_start, *_nb and view_* is in bytes (from the start of the argument's buffer; of a packed a for the view),
// every *_ne in elements; innermost first.
struct arguments {
    size_t a_ne[4];
    size_t a_start;
    size_t a_nb[4];
    size_t out_start;
    size_t out_nb[4];
    size_t b_ne[4];
    size_t b_start;
    size_t b_nb[4];
    size_t view_start;
    size_t view_nb[4];
};

extern "C" __global__ void acc_copy(const arguments p, const unsigned int *a, unsigned int *out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.a_ne[0] * p.a_ne[1] * p.a_ne[2] * p.a_ne[3]) {
        return;
    }
    const size_t i0 = id % p.a_ne[0];
    const size_t i1 = id / p.a_ne[0] % p.a_ne[1];
    const size_t i2 = id / (p.a_ne[0] * p.a_ne[1]) % p.a_ne[2];
    const size_t i3 = id / (p.a_ne[0] * p.a_ne[1] * p.a_ne[2]);
    const size_t from = p.a_start + i0 * p.a_nb[0] + i1 * p.a_nb[1] + i2 * p.a_nb[2] + i3 * p.a_nb[3];
    const size_t to = p.out_start + i0 * p.out_nb[0] + i1 * p.out_nb[1] + i2 * p.out_nb[2] + i3 * p.out_nb[3];

    out[to / 4] = a[from / 4];  // as bits: a copy keeps NaN payloads and denormals
}

extern "C" __global__ void acc_view(const arguments p, const float *b, float *out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.b_ne[0] * p.b_ne[1] * p.b_ne[2] * p.b_ne[3]) {
        return;
    }
    const size_t i0 = id % p.b_ne[0];
    const size_t i1 = id / p.b_ne[0] % p.b_ne[1];
    const size_t i2 = id / (p.b_ne[0] * p.b_ne[1]) % p.b_ne[2];
    const size_t i3 = id / (p.b_ne[0] * p.b_ne[1] * p.b_ne[2]);
    const size_t from = p.b_start + i0 * p.b_nb[0] + i1 * p.b_nb[1] + i2 * p.b_nb[2] + i3 * p.b_nb[3];

    // The view counts bytes as if a were packed; its flat index names the element of out, wherever that lies.
    const size_t flat_index =
        (p.view_start + i0 * p.view_nb[0] + i1 * p.view_nb[1] + i2 * p.view_nb[2] + i3 * p.view_nb[3]) / 4;
    const size_t j0 = flat_index % p.a_ne[0];
    const size_t j1 = flat_index / p.a_ne[0] % p.a_ne[1];
    const size_t j2 = flat_index / (p.a_ne[0] * p.a_ne[1]) % p.a_ne[2];
    const size_t j3 = flat_index / (p.a_ne[0] * p.a_ne[1] * p.a_ne[2]);
    const size_t to = p.out_start + j0 * p.out_nb[0] + j1 * p.out_nb[1] + j2 * p.out_nb[2] + j3 * p.out_nb[3];

    out[to / 4] += b[from / 4];
}
