// GATED_DELTA_NET, recurrent, in float32: for every sequence and value head, token by token,
//
//     S <- decay S;  delta = beta (v - S^T k);  S <- S + k delta^T;  out = scale S^T q
//
// with one decay per head (GDA) or one per key channel (KDA). Three kernels: gated_delta_net_norm scales q and k to unit
// length where the case asks for it, gated_delta_net_decay takes the exponential of log gates, gated_delta_net_tokens
// does the rest: a block walks over the tokens with some columns of S, one per thread, that lie in `states`.

#include "blocks.cuh"

#define TILE 32  // keys that stand in shared memory at a time

// Every *_start and *_nb is in bytes from the start of the argument's buffer, all else in elements; *_nb innermost first:
// (channel, head, token, sequence), of states (value, key, head, sequence).
struct arguments {
    size_t sequences;
    size_t tokens;
    size_t key_heads;
    size_t heads;
    size_t keys;         // rows of S
    size_t values;       // columns of S
    size_t gates;        // 1 or keys
    size_t interleaved;  // 1: neighbouring heads share a key head; 0: head h has key head h % key_heads
    size_t scale;        // the bits of a float
    size_t eps;          // the bits of a float
    size_t q_in_start;   // as the case gives it
    size_t q_in_nb[4];
    size_t k_in_start;
    size_t k_in_nb[4];
    size_t q_start;  // after the normalisation, if there is one
    size_t q_nb[4];
    size_t k_start;
    size_t k_nb[4];
    size_t v_start;
    size_t v_nb[4];
    size_t g_start;
    size_t g_nb[4];
    size_t beta_start;
    size_t beta_nb[4];
    size_t has_state;  // 0: S begins as 0
    size_t state_start;
    size_t state_nb[4];
    size_t out_start;
    size_t out_nb[4];
    size_t state_out_start;
    size_t state_out_nb[4];
    size_t decay_start;
    size_t decay_nb[4];
    size_t snapshots;    // how many of the last states go to state_out, the newest first
    size_t kept_states;  // of each sequence: tokens, or 1 if every state overwrites the one before it
};

// out = x / sqrt(sum of x^2 + eps) by all threads of a block, where out is packed.
__device__ void normalise(float eps, size_t keys, const float *x, size_t x_nb0, float *out) {
    float part = 0.0f;
    for (size_t i = threadIdx.x; i < keys; i += blockDim.x) {
        const float value = x[i * x_nb0 / 4];
        part += value * value;
    }
    const float length = sqrtf(block_sum(part) + eps);
    for (size_t i = threadIdx.x; i < keys; i += blockDim.x) {
        out[i] = x[i * x_nb0 / 4] / length;
    }
}

// One block per sequence, token and key head.
extern "C" __global__ void gated_delta_net_norm(const arguments p, const float *q, const float *k, float *q_norm,
                                                float *k_norm) {
    const size_t id = blockIdx.x;
    if (id >= p.sequences * p.tokens * p.key_heads) {
        return;
    }
    const size_t head = id % p.key_heads;
    const size_t token = id / p.key_heads % p.tokens;
    const size_t sequence = id / (p.key_heads * p.tokens);
    const size_t q_row = p.q_in_start + head * p.q_in_nb[1] + token * p.q_in_nb[2] + sequence * p.q_in_nb[3];
    const size_t k_row = p.k_in_start + head * p.k_in_nb[1] + token * p.k_in_nb[2] + sequence * p.k_in_nb[3];

    normalise(__uint_as_float((unsigned int)p.eps), p.keys, q + q_row / 4, p.q_in_nb[0], q_norm + id * p.keys);
    normalise(__uint_as_float((unsigned int)p.eps), p.keys, k + k_row / 4, p.k_in_nb[0], k_norm + id * p.keys);
}

// One thread per gate.
extern "C" __global__ void gated_delta_net_decay(const arguments p, const float *g, float *decay) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.tokens * p.heads * p.gates) {
        return;
    }
    const size_t gate = id % p.gates;
    const size_t head = id / p.gates % p.heads;
    const size_t token = id / (p.gates * p.heads) % p.tokens;
    const size_t sequence = id / (p.gates * p.heads * p.tokens);
    const size_t from = p.g_start + gate * p.g_nb[0] + head * p.g_nb[1] + token * p.g_nb[2] + sequence * p.g_nb[3];

    decay[id] = expf(g[from / 4]);
}

// One block per sequence, head and as many columns of S as it has threads.
extern "C" __global__ void gated_delta_net_tokens(const arguments p, const float *q, const float *k, const float *v,
                                                  const float *decay, const float *beta, const float *state,
                                                  float *delta, float *states, float *out, float *state_out) {
    __shared__ float key[TILE], query[TILE], factor[TILE];

    const unsigned int thread = threadIdx.x;
    const size_t parts = (p.values + blockDim.x - 1) / blockDim.x;  // of the columns, a block for each
    if (blockIdx.x >= p.sequences * p.heads * parts) {
        return;
    }
    const size_t column = blockIdx.x % parts * blockDim.x + thread;
    const size_t head = blockIdx.x / parts % p.heads;
    const size_t sequence = blockIdx.x / (parts * p.heads);
    const size_t key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    const bool there = column < p.values;  // a thread without a column helps to fill the shared memory
    const size_t initial = p.state_start + column * p.state_nb[0] + head * p.state_nb[2] + sequence * p.state_nb[3];

    for (size_t token = 0; token < p.tokens; token++) {
        const size_t q_row = p.q_start + key_head * p.q_nb[1] + token * p.q_nb[2] + sequence * p.q_nb[3];
        const size_t k_row = p.k_start + key_head * p.k_nb[1] + token * p.k_nb[2] + sequence * p.k_nb[3];
        const size_t decay_row = p.decay_start + head * p.decay_nb[1] + token * p.decay_nb[2] + sequence * p.decay_nb[3];
        const size_t v_at = p.v_start + column * p.v_nb[0] + head * p.v_nb[1] + token * p.v_nb[2] + sequence * p.v_nb[3];
        const size_t beta_at = p.beta_start + head * p.beta_nb[1] + token * p.beta_nb[2] + sequence * p.beta_nb[3];
        const size_t out_at =
            p.out_start + column * p.out_nb[0] + head * p.out_nb[1] + token * p.out_nb[2] + sequence * p.out_nb[3];
        const size_t flat = ((sequence * p.tokens + token) * p.heads + head) * p.values + column;
        const size_t age = p.tokens - 1 - token;
        const size_t snapshot = p.state_out_start + column * p.state_out_nb[0] + head * p.state_out_nb[2] +
                                (age * p.sequences + sequence) * p.state_out_nb[3];

        // The column in `states`, as it was and as it will be; its elements are `values` apart.
        const size_t last_token = token == 0 ? 0 : token - 1;
        const size_t last_state = sequence * p.kept_states + last_token % p.kept_states;
        const size_t this_state = sequence * p.kept_states + token % p.kept_states;
        const float *last = states + (last_state * p.heads + head) * p.keys * p.values + column;
        float *S = states + (this_state * p.heads + head) * p.keys * p.values + column;

        float recalled = 0.0f;
        for (size_t tile = 0; tile < p.keys; tile += TILE) {
            const size_t count = p.keys - tile < TILE ? p.keys - tile : TILE;
            __syncthreads();  // all are done with the tile before
            if (thread < count) {
                key[thread] = k[(k_row + (tile + thread) * p.k_nb[0]) / 4];
                factor[thread] = decay[(decay_row + (tile + thread) * p.decay_nb[0]) / 4];
            }
            __syncthreads();
            for (size_t i = 0; there && i < count; i++) {
                float before = 0.0f;
                if (token > 0) {
                    before = last[(tile + i) * p.values];
                } else if (p.has_state) {
                    before = state[(initial + (tile + i) * p.state_nb[1]) / 4];
                }
                const float decayed = factor[i] * before;
                S[(tile + i) * p.values] = decayed;
                recalled += decayed * key[i];
            }
        }
        float change = 0.0f;
        if (there) {
            change = beta[beta_at / 4] * (v[v_at / 4] - recalled);
            delta[flat] = change;
        }

        float sum = 0.0f;
        for (size_t tile = 0; tile < p.keys; tile += TILE) {
            const size_t count = p.keys - tile < TILE ? p.keys - tile : TILE;
            __syncthreads();
            if (thread < count) {
                key[thread] = k[(k_row + (tile + thread) * p.k_nb[0]) / 4];
                query[thread] = q[(q_row + (tile + thread) * p.q_nb[0]) / 4];
            }
            __syncthreads();
            for (size_t i = 0; there && i < count; i++) {
                const float updated = S[(tile + i) * p.values] + key[i] * change;
                S[(tile + i) * p.values] = updated;
                sum += updated * query[i];
                if (age < p.snapshots) {
                    state_out[(snapshot + (tile + i) * p.state_out_nb[1]) / 4] = updated;
                }
            }
        }
        if (there) {
            out[out_at / 4] = __uint_as_float((unsigned int)p.scale) * sum;
        }
    }
}
