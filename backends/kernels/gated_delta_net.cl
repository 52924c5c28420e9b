// GATED_DELTA_NET, recurrent, in float32: for every sequence and value head, token by token,
//
//     S <- decay S;  delta = beta (v - S^T k);  S <- S + k delta^T;  out = scale S^T q
//
// with one decay per head (GDA) or one per key channel (KDA). Three kernels: gated_delta_net_norm scales q and k to
// unit length where the case asks for it, gated_delta_net_decay takes the exponential of log gates,
// gated_delta_net_tokens does the rest. On OpenCL one work-item walks over the tokens with one column of S, which lies
// in `states`; on CUDA a block takes some columns: ../cuda/gated_delta_net.cu.

#include "api.h"
#include "lanes.h"
#include "delta_net.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, all else in elements; *_nb innermost
// first: (channel, head, token, sequence), of states (value, key, head, sequence).
struct arguments {
    ulong sequences;
    ulong tokens;
    ulong key_heads;
    ulong heads;
    ulong keys;         // rows of S
    ulong values;       // columns of S
    ulong gates;        // 1 or keys
    ulong interleaved;  // 1: neighbouring heads share a key head; 0: head h has key head h % key_heads
    float_bits scale;
    float_bits eps;
    ulong q_in_start;   // as the case gives it
    ulong q_in_nb[4];
    ulong k_in_start;
    ulong k_in_nb[4];
    ulong q_start;  // after the normalisation, if there is one
    ulong q_nb[4];
    ulong k_start;
    ulong k_nb[4];
    ulong v_start;
    ulong v_nb[4];
    ulong g_start;
    ulong g_nb[4];
    ulong beta_start;
    ulong beta_nb[4];
    ulong has_state;  // 0: S begins as 0
    ulong state_start;
    ulong state_nb[4];
    ulong out_start;
    ulong out_nb[4];
    ulong state_out_start;
    ulong state_out_nb[4];
    ulong decay_start;
    ulong decay_nb[4];
    ulong snapshots;    // how many of the last states go to state_out, the newest first
    ulong kept_states;  // of each sequence: tokens, or 1 if every state overwrites the one before it
};

// One row per sequence, token and key head.
__kernel void gated_delta_net_norm(const struct arguments p, __global const float *q, __global const float *k,
                                   __global float *q_norm, __global float *k_norm) {
    const ulong id = row_id();
    if (id >= p.sequences * p.tokens * p.key_heads) {
        return;
    }
    const ulong head = id % p.key_heads;
    const ulong token = id / p.key_heads % p.tokens;
    const ulong sequence = id / (p.key_heads * p.tokens);
    const ulong q_row = p.q_in_start + head * p.q_in_nb[1] + token * p.q_in_nb[2] + sequence * p.q_in_nb[3];
    const ulong k_row = p.k_in_start + head * p.k_in_nb[1] + token * p.k_in_nb[2] + sequence * p.k_in_nb[3];

    normalise(as_float((uint)p.eps), p.keys, q + q_row / 4, p.q_in_nb[0], q_norm + id * p.keys);
    normalise(as_float((uint)p.eps), p.keys, k + k_row / 4, p.k_in_nb[0], k_norm + id * p.keys);
}

// One work-item per gate.
__kernel void gated_delta_net_decay(const struct arguments p, __global const float *g, __global float *decay) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.tokens * p.heads * p.gates) {
        return;
    }
    const ulong gate = id % p.gates;
    const ulong head = id / p.gates % p.heads;
    const ulong token = id / (p.gates * p.heads) % p.tokens;
    const ulong sequence = id / (p.gates * p.heads * p.tokens);
    const ulong from = p.g_start + gate * p.g_nb[0] + head * p.g_nb[1] + token * p.g_nb[2] + sequence * p.g_nb[3];

    decay[id] = exp(g[from / 4]);
}

#ifdef __OPENCL_VERSION__
// One work-item per sequence, head and column of S.
__kernel void gated_delta_net_tokens(const struct arguments p, __global const float *q, __global const float *k,
                                     __global const float *v, __global const float *decay, __global const float *beta,
                                     __global const float *state, __global float *delta, __global float *states,
                                     __global float *out, __global float *state_out) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.values) {
        return;
    }
    const ulong column = id % p.values;
    const ulong head = id / p.values % p.heads;
    const ulong sequence = id / (p.values * p.heads);
    const ulong key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;

    for (ulong token = 0; token < p.tokens; token++) {
        const ulong q_row = p.q_start + key_head * p.q_nb[1] + token * p.q_nb[2] + sequence * p.q_nb[3];
        const ulong k_row = p.k_start + key_head * p.k_nb[1] + token * p.k_nb[2] + sequence * p.k_nb[3];
        const ulong decay_row = p.decay_start + head * p.decay_nb[1] + token * p.decay_nb[2] + sequence * p.decay_nb[3];
        const ulong v_at = p.v_start + column * p.v_nb[0] + head * p.v_nb[1] + token * p.v_nb[2] + sequence * p.v_nb[3];
        const ulong beta_at = p.beta_start + head * p.beta_nb[1] + token * p.beta_nb[2] + sequence * p.beta_nb[3];
        const ulong out_at =
            p.out_start + column * p.out_nb[0] + head * p.out_nb[1] + token * p.out_nb[2] + sequence * p.out_nb[3];
        const ulong initial = p.state_start + column * p.state_nb[0] + head * p.state_nb[2] + sequence * p.state_nb[3];
        const ulong flat = ((sequence * p.tokens + token) * p.heads + head) * p.values + column;

        // The column in `states`, as it was and as it will be; its elements are `values` apart.
        const ulong last_token = token == 0 ? 0 : token - 1;
        const ulong last_state = sequence * p.kept_states + last_token % p.kept_states;
        const ulong this_state = sequence * p.kept_states + token % p.kept_states;
        __global const float *last = states + (last_state * p.heads + head) * p.keys * p.values + column;
        __global float *S = states + (this_state * p.heads + head) * p.keys * p.values + column;

        float recalled = 0.0f;
        for (ulong i = 0; i < p.keys; i++) {
            float before = 0.0f;
            if (token > 0) {
                before = last[i * p.values];
            } else if (p.has_state) {
                before = state[(initial + i * p.state_nb[1]) / 4];
            }
            S[i * p.values] = decay[(decay_row + i * p.decay_nb[0]) / 4] * before;
            recalled += S[i * p.values] * k[(k_row + i * p.k_nb[0]) / 4];
        }
        const float change = beta[beta_at / 4] * (v[v_at / 4] - recalled);
        delta[flat] = change;

        float sum = 0.0f;
        for (ulong i = 0; i < p.keys; i++) {
            S[i * p.values] += k[(k_row + i * p.k_nb[0]) / 4] * change;
            sum += S[i * p.values] * q[(q_row + i * p.q_nb[0]) / 4];
        }
        out[out_at / 4] = as_float((uint)p.scale) * sum;

        const ulong age = p.tokens - 1 - token;
        if (age < p.snapshots) {
            const ulong snapshot = p.state_out_start + column * p.state_out_nb[0] + head * p.state_out_nb[2] +
                                   (age * p.sequences + sequence) * p.state_out_nb[3];
            for (ulong i = 0; i < p.keys; i++) {
                state_out[(snapshot + i * p.state_out_nb[1]) / 4] = S[i * p.values];
            }
        }
    }
}
#endif
