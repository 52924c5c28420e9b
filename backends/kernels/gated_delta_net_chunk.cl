// GATED_DELTA_NET in chunks of C tokens, in float32. In a chunk, G_i is the sum of the log gates up to token i, and
//
//     A_ij = beta_i sum_d k_id k_jd e^(G_id - G_jd) for i > j,    Aqk_ij = sum_d q_id k_jd e^(G_id - G_jd) for i >= j,
//     (I + A) w = beta e^G k,    (I + A) u = beta v,    v_new = u - w S,
//     out = scale ((q e^G) S + Aqk v_new),    S <- e^(G_last) S + (k e^(G_last - G))^T v_new
//
// with one gate per head (GDA) or one per key channel (KDA). Only differences G_i - G_j with i >= j are exponentiated:
// they are at most 0, whereas e^-G overflows. There is a kernel for each step, and what it leaves is a buffer of its
// own. Tokens beyond the last one count as zeros. In the blockwise form only the blocks of 16 x 16 on and below the
// diagonal of A and Aqk are computed, and then placed into matrices of zeros.

#include "api.h"
#include "lanes.h"
#include "delta_net.h"

#define BLOCK 16

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
    ulong chunk;            // C
    ulong chunks;           // of each sequence
    ulong blocks;           // of each C x C matrix, on and below the diagonal
    ulong gates_are_decays; // 1: g holds e^g itself
    ulong accumulate;       // 1: blocks are added to the zeros, 0: they are put over them
};

// One row per sequence, token and key head.
__kernel void gated_delta_net_chunk_norm(const struct arguments p, __global const float *q, __global const float *k,
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

// One work-item per sequence, head, chunk and gate: the sum over the tokens of the chunk.
__kernel void gated_delta_net_chunk_gates(const struct arguments p, __global const float *g, __global float *G) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * p.gates) {
        return;
    }
    const ulong gate = id % p.gates;
    const ulong chunk = id / p.gates % p.chunks;
    const ulong head = id / (p.gates * p.chunks) % p.heads;
    const ulong sequence = id / (p.gates * p.chunks * p.heads);
    const ulong first = id / p.gates * p.chunk * p.gates + gate;

    float sum = 0.0f;
    for (ulong i = 0; i < p.chunk; i++) {
        const ulong token = chunk * p.chunk + i;
        if (token < p.tokens) {
            const ulong from =
                p.g_start + gate * p.g_nb[0] + head * p.g_nb[1] + token * p.g_nb[2] + sequence * p.g_nb[3];
            sum += p.gates_are_decays ? log(g[from / 4]) : g[from / 4];
        }
        G[first + i * p.gates] = sum;
    }
}

// One work-item per sequence, head, chunk, row of the chunk and key channel: q from the chunk's first token on, k up to
// its last one.
__kernel void gated_delta_net_chunk_scale(const struct arguments p, __global const float *q, __global const float *k,
                                          __global const float *G, __global float *q_decayed,
                                          __global float *k_decayed) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.keys) {
        return;
    }
    const ulong channel = id % p.keys;
    const ulong i = id / p.keys % p.chunk;
    const ulong matrix = id / (p.keys * p.chunk);  // counts chunks of heads of sequences
    const ulong chunk = matrix % p.chunks;
    const ulong head = matrix / p.chunks % p.heads;
    const ulong sequence = matrix / (p.chunks * p.heads);
    const ulong key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    const ulong token = chunk * p.chunk + i;
    const ulong q_at =
        p.q_start + channel * p.q_nb[0] + key_head * p.q_nb[1] + token * p.q_nb[2] + sequence * p.q_nb[3];
    const ulong k_at =
        p.k_start + channel * p.k_nb[0] + key_head * p.k_nb[1] + token * p.k_nb[2] + sequence * p.k_nb[3];
    const ulong gate = p.gates > 1 ? channel : 0;
    const float G_i = G[(matrix * p.chunk + i) * p.gates + gate];
    const float G_last = G[(matrix * p.chunk + p.chunk - 1) * p.gates + gate];

    q_decayed[id] = token < p.tokens ? q[q_at / 4] * exp(G_i) : 0.0f;
    k_decayed[id] = token < p.tokens ? k[k_at / 4] * exp(G_last - G_i) : 0.0f;
}

// GDA. One work-item per element of decay, C x C for every chunk.
__kernel void gated_delta_net_chunk_decay(const struct arguments p, __global const float *G, __global float *decay) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.chunk) {
        return;
    }
    const ulong j = id % p.chunk;
    const ulong i = id / p.chunk % p.chunk;
    const ulong first = id / (p.chunk * p.chunk) * p.chunk;

    decay[id] = i >= j ? exp(G[first + i] - G[first + j]) : 0.0f;
}

// Element (i, j) of A and Aqk, where `matrix` counts chunks of heads of sequences.
DEVICE void products(const struct arguments *p, ulong matrix, ulong i, ulong j, __global const float *q, __global const float *k,
              __global const float *beta, __global const float *G, __global const float *decay, float *akk,
              float *aqk) {
    const ulong chunk = matrix % p->chunks;
    const ulong head = matrix / p->chunks % p->heads;
    const ulong sequence = matrix / (p->chunks * p->heads);
    const ulong key_head = p->interleaved ? head / (p->heads / p->key_heads) : head % p->key_heads;
    const ulong i_token = chunk * p->chunk + i;
    const ulong j_token = chunk * p->chunk + j;

    *akk = 0.0f;
    *aqk = 0.0f;
    if (j > i || i_token >= p->tokens) {
        return;
    }
    const ulong q_i = p->q_start + key_head * p->q_nb[1] + i_token * p->q_nb[2] + sequence * p->q_nb[3];
    const ulong k_i = p->k_start + key_head * p->k_nb[1] + i_token * p->k_nb[2] + sequence * p->k_nb[3];
    const ulong k_j = p->k_start + key_head * p->k_nb[1] + j_token * p->k_nb[2] + sequence * p->k_nb[3];
    const ulong G_i = (matrix * p->chunk + i) * p->gates;
    const ulong G_j = (matrix * p->chunk + j) * p->gates;
    const ulong beta_i = p->beta_start + head * p->beta_nb[1] + i_token * p->beta_nb[2] + sequence * p->beta_nb[3];

    float kk = 0.0f;
    float qk = 0.0f;
    for (ulong d = 0; d < p->keys; d++) {
        float key = k[(k_j + d * p->k_nb[0]) / 4];
        if (p->gates > 1) {
            key *= exp(G[G_i + d] - G[G_j + d]);
        }
        kk += k[(k_i + d * p->k_nb[0]) / 4] * key;
        qk += q[(q_i + d * p->q_nb[0]) / 4] * key;
    }
    if (p->gates == 1) {
        const float factor = decay[(matrix * p->chunk + i) * p->chunk + j];
        kk *= factor;
        qk *= factor;
    }
    *akk = j < i ? beta[beta_i / 4] * kk : 0.0f;
    *aqk = qk;
}

// The whole form. One work-item per element of A, C x C for every chunk.
__kernel void gated_delta_net_chunk_whole(const struct arguments p, __global const float *q, __global const float *k,
                                          __global const float *beta, __global const float *G,
                                          __global const float *decay, __global float *Akk, __global float *Aqk) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.chunk) {
        return;
    }
    const ulong j = id % p.chunk;
    const ulong i = id / p.chunk % p.chunk;
    const ulong matrix = id / (p.chunk * p.chunk);

    float akk, aqk;
    products(&p, matrix, i, j, q, k, beta, G, decay, &akk, &aqk);
    Akk[id] = akk;
    Aqk[id] = aqk;
}

// The place of a block on or below the diagonal; they are counted row by row.
DEVICE void place_of_block(ulong block, ulong *row, ulong *column) {
    *row = 0;
    while (block > *row) {
        *row += 1;
        block -= *row;
    }
    *column = block;
}

#ifdef __OPENCL_VERSION__
// The blockwise form. One work-item per element of a block, 16 x 16 for every block of every chunk. On CUDA a block of
// threads takes a block: ../cuda/gated_delta_net_chunk.cu.
__kernel void gated_delta_net_chunk_blocks(const struct arguments p, __global const float *q, __global const float *k,
                                           __global const float *beta, __global const float *G,
                                           __global const float *decay, __global float *Akk_blocks,
                                           __global float *Aqk_blocks) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * p.blocks * BLOCK * BLOCK) {
        return;
    }
    const ulong j = id % BLOCK;
    const ulong i = id / BLOCK % BLOCK;
    const ulong block = id / (BLOCK * BLOCK) % p.blocks;
    const ulong matrix = id / (BLOCK * BLOCK * p.blocks);

    ulong row, column;
    float akk, aqk;
    place_of_block(block, &row, &column);
    products(&p, matrix, row * BLOCK + i, column * BLOCK + j, q, k, beta, G, decay, &akk, &aqk);
    Akk_blocks[id] = akk;
    Aqk_blocks[id] = aqk;
}
#endif

// The blockwise form. One work-item per element of A, C x C for every chunk.
__kernel void gated_delta_net_chunk_clear(const struct arguments p, __global float *Akk, __global float *Aqk) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.chunk) {
        return;
    }
    Akk[id] = 0.0f;
    Aqk[id] = 0.0f;
}

// The blockwise form. One work-item per element of a block.
__kernel void gated_delta_net_chunk_place(const struct arguments p, __global const float *Akk_blocks,
                                          __global const float *Aqk_blocks, __global float *Akk, __global float *Aqk) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * p.blocks * BLOCK * BLOCK) {
        return;
    }
    const ulong j = id % BLOCK;
    const ulong i = id / BLOCK % BLOCK;
    const ulong block = id / (BLOCK * BLOCK) % p.blocks;
    const ulong matrix = id / (BLOCK * BLOCK * p.blocks);

    ulong row, column;
    place_of_block(block, &row, &column);
    const ulong to = (matrix * p.chunk + row * BLOCK + i) * p.chunk + column * BLOCK + j;

    Akk[to] = p.accumulate ? Akk[to] + Akk_blocks[id] : Akk_blocks[id];
    Aqk[to] = p.accumulate ? Aqk[to] + Aqk_blocks[id] : Aqk_blocks[id];
}

// One work-item per sequence, head, chunk and column of w or u: the triangular solve, from the first token down.
__kernel void gated_delta_net_chunk_solve(const struct arguments p, __global const float *k, __global const float *v,
                                          __global const float *beta, __global const float *G,
                                          __global const float *Akk, __global float *w, __global float *u) {
    const ulong columns = p.keys + p.values;
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.chunks * columns) {
        return;
    }
    const ulong matrix = id / columns;
    const ulong chunk = matrix % p.chunks;
    const ulong head = matrix / p.chunks % p.heads;
    const ulong sequence = matrix / (p.chunks * p.heads);
    const ulong key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    const bool is_w = id % columns < p.keys;
    const ulong column = is_w ? id % columns : id % columns - p.keys;
    const ulong width = is_w ? p.keys : p.values;
    const ulong gate = p.gates > 1 ? column : 0;
    __global float *x = (is_w ? w : u) + matrix * p.chunk * width + column;  // its elements are `width` apart

    for (ulong i = 0; i < p.chunk; i++) {
        const ulong token = chunk * p.chunk + i;
        const ulong k_at =
            p.k_start + column * p.k_nb[0] + key_head * p.k_nb[1] + token * p.k_nb[2] + sequence * p.k_nb[3];
        const ulong v_at = p.v_start + column * p.v_nb[0] + head * p.v_nb[1] + token * p.v_nb[2] + sequence * p.v_nb[3];
        const ulong beta_at = p.beta_start + head * p.beta_nb[1] + token * p.beta_nb[2] + sequence * p.beta_nb[3];

        float value = 0.0f;
        if (token < p.tokens && is_w) {
            value = beta[beta_at / 4] * exp(G[(matrix * p.chunk + i) * p.gates + gate]) * k[k_at / 4];
        } else if (token < p.tokens) {
            value = beta[beta_at / 4] * v[v_at / 4];
        }
        for (ulong j = 0; token < p.tokens && j < i; j++) {
            value -= Akk[(matrix * p.chunk + i) * p.chunk + j] * x[j * width];
        }
        x[i * width] = value;
    }
}

// One work-item per sequence, head and column of S: chunk by chunk v_new from the state before, then the state after.
__kernel void gated_delta_net_chunk_states(const struct arguments p, __global const float *state,
                                           __global const float *k_decayed, __global const float *G,
                                           __global const float *w, __global const float *u, __global float *v_new,
                                           __global float *states, __global float *state_out) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.values) {
        return;
    }
    const ulong column = id % p.values;
    const ulong head = id / p.values % p.heads;
    const ulong sequence = id / (p.values * p.heads);
    const ulong initial = p.state_start + column * p.state_nb[0] + head * p.state_nb[2] + sequence * p.state_nb[3];
    const ulong final =
        p.state_out_start + column * p.state_out_nb[0] + head * p.state_out_nb[2] + sequence * p.state_out_nb[3];

    for (ulong chunk = 0; chunk < p.chunks; chunk++) {
        const ulong matrix = (sequence * p.heads + head) * p.chunks + chunk;
        const ulong left = p.tokens - chunk * p.chunk;
        const ulong there = left < p.chunk ? left : p.chunk;  // tokens of the chunk
        const ulong G_last = (matrix * p.chunk + p.chunk - 1) * p.gates;
        __global float *S = states + matrix * p.keys * p.values + column;  // its elements are `values` apart
        __global float *new_column = v_new + matrix * p.chunk * p.values + column;

        for (ulong d = 0; d < p.keys; d++) {  // S is the state before
            if (chunk > 0) {
                S[d * p.values] = S[d * p.values - p.keys * p.values];
            } else if (p.has_state) {
                S[d * p.values] = state[(initial + d * p.state_nb[1]) / 4];
            } else {
                S[d * p.values] = 0.0f;
            }
        }
        for (ulong i = 0; i < p.chunk; i++) {
            float sum = i < there ? u[(matrix * p.chunk + i) * p.values + column] : 0.0f;
            for (ulong d = 0; i < there && d < p.keys; d++) {
                sum -= w[(matrix * p.chunk + i) * p.keys + d] * S[d * p.values];
            }
            new_column[i * p.values] = sum;
        }
        for (ulong d = 0; d < p.keys; d++) {  // S is the state after
            const ulong gate = p.gates > 1 ? d : 0;
            float sum = exp(G[G_last + gate]) * S[d * p.values];
            for (ulong i = 0; i < there; i++) {
                sum += k_decayed[(matrix * p.chunk + i) * p.keys + d] * new_column[i * p.values];
            }
            S[d * p.values] = sum;
            if (chunk == p.chunks - 1) {
                state_out[(final + d * p.state_out_nb[1]) / 4] = sum;
            }
        }
    }
}

// One work-item per element of out.
__kernel void gated_delta_net_chunk_out(const struct arguments p, __global const float *state,
                                        __global const float *q_decayed, __global const float *Aqk,
                                        __global const float *v_new, __global const float *states,
                                        __global float *out) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.tokens * p.heads * p.values) {
        return;
    }
    const ulong column = id % p.values;
    const ulong head = id / p.values % p.heads;
    const ulong token = id / (p.values * p.heads) % p.tokens;
    const ulong sequence = id / (p.values * p.heads * p.tokens);
    const ulong chunk = token / p.chunk;
    const ulong i = token % p.chunk;
    const ulong matrix = (sequence * p.heads + head) * p.chunks + chunk;
    const ulong initial = p.state_start + column * p.state_nb[0] + head * p.state_nb[2] + sequence * p.state_nb[3];
    const ulong to =
        p.out_start + column * p.out_nb[0] + head * p.out_nb[1] + token * p.out_nb[2] + sequence * p.out_nb[3];

    float sum = 0.0f;
    for (ulong d = 0; d < p.keys; d++) {
        float before = 0.0f;
        if (chunk > 0) {
            before = states[((matrix - 1) * p.keys + d) * p.values + column];
        } else if (p.has_state) {
            before = state[(initial + d * p.state_nb[1]) / 4];
        }
        sum += q_decayed[(matrix * p.chunk + i) * p.keys + d] * before;
    }
    for (ulong j = 0; j <= i; j++) {
        sum += Aqk[(matrix * p.chunk + i) * p.chunk + j] * v_new[(matrix * p.chunk + j) * p.values + column];
    }
    out[to / 4] = as_float((uint)p.scale) * sum;
}
