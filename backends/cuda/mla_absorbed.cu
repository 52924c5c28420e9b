// MLA absorbed, where CUDA has a kernel of its own: in flash attention the threads of a block share the weights of a
// tile of keys, in shared memory and between barriers. All else is in kernels/mla_absorbed.cl.

#include "mla_absorbed.cl"

// One block per query, with online softmax: as many keys at a time as it has threads, at most 64; when their scores raise
// the maximum, what has been summed so far is scaled down. A thread takes one key, and then some columns of the context.
extern "C" __global__ void mla_absorbed_flash(const arguments p, const float *query, const float *row,
                                              const unsigned char *mask, float *top, float *total, float *context) {
    __shared__ float weights[64];

    const size_t id = blockIdx.x;
    if (id >= p.sequences * p.heads * p.queries) {
        return;
    }
    const unsigned int thread = threadIdx.x, tile = blockDim.x;
    const size_t width = p.d_c + p.d_r;
    const size_t t = id % p.queries;
    const size_t sequence = id / (p.queries * p.heads);
    float *sums = context + id * p.d_c;

    float highest = -INFINITY;
    float denominator = 0.0f;
    for (size_t i = thread; i < p.d_c; i += tile) {
        sums[i] = 0.0f;
    }
    for (size_t first = 0; first < p.kv_len; first += tile) {
        const size_t count = p.kv_len - first < tile ? p.kv_len - first : tile;
        const float *rows = row + (sequence * p.rows + first) * width;
        float score = -INFINITY;
        if (thread < count) {
            score = bias(&p, mask, first + thread, t, sequence);
            if (score != -INFINITY) {
                score += joined_score(&p, query + id * width, rows + thread * width);
            }
        }
        const float higher = fmaxf(highest, max_of_lanes(score));
        if (higher == -INFINITY) {
            continue;  // no key has been seen so far, by any thread
        }
        const float factor = highest == -INFINITY ? 0.0f : exp(highest - higher);
        weights[thread] = score == -INFINITY ? 0.0f : exp(score - higher);
        denominator = denominator * factor + sum_of_lanes(weights[thread]);
        for (size_t i = thread; i < p.d_c; i += tile) {
            float sum = sums[i] * factor;
            for (size_t n = 0; n < count; n++) {
                if (weights[n] != 0.0f) {
                    sum += weights[n] * rows[n * width + i];
                }
            }
            sums[i] = sum;
        }
        __syncthreads();  // all have read the weights
        highest = higher;
    }
    if (thread == 0) {
        top[id] = highest;
        total[id] = denominator;
    }
    for (size_t i = thread; i < p.d_c; i += tile) {
        sums[i] = highest == -INFINITY ? 0.0f : sums[i] / denominator * as_float((uint)p.v_scale);
    }
}
