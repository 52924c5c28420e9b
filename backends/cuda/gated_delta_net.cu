// GATED_DELTA_NET, recurrent, where CUDA has a kernel of its own: the threads of a block share what they read of k, q
// and the decays, in shared memory and between barriers. All else is in kernels/gated_delta_net.cl.

#include "gated_delta_net.cl"

#define TILE 32  // keys that stand in shared memory at a time

// One block per sequence, head and as many columns of S as it has threads. It walks over the tokens with these columns,
// one per thread, that lie in `states`.
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
            for (size_t i = thread; i < count; i += blockDim.x) {
                key[i] = k[(k_row + (tile + i) * p.k_nb[0]) / 4];
                factor[i] = decay[(decay_row + (tile + i) * p.decay_nb[0]) / 4];
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
            for (size_t i = thread; i < count; i += blockDim.x) {
                key[i] = k[(k_row + (tile + i) * p.k_nb[0]) / 4];
                query[i] = q[(q_row + (tile + i) * p.q_nb[0]) / 4];
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
            out[out_at / 4] = as_float((uint)p.scale) * sum;
        }
    }
}
