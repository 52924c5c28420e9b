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

#include "blocks.cuh"

#define BLOCK 16

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
    size_t chunk;            // C
    size_t chunks;           // of each sequence
    size_t blocks;           // of each C x C matrix, on and below the diagonal
    size_t gates_are_decays; // 1: g holds e^g itself
    size_t accumulate;       // 1: blocks are added to the zeros, 0: they are put over them
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
extern "C" __global__ void gated_delta_net_chunk_norm(const arguments p, const float *q, const float *k, float *q_norm,
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

// One thread per sequence, head, chunk and gate: the sum over the tokens of the chunk.
extern "C" __global__ void gated_delta_net_chunk_gates(const arguments p, const float *g, float *G) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.chunks * p.gates) {
        return;
    }
    const size_t gate = id % p.gates;
    const size_t chunk = id / p.gates % p.chunks;
    const size_t head = id / (p.gates * p.chunks) % p.heads;
    const size_t sequence = id / (p.gates * p.chunks * p.heads);
    const size_t first = id / p.gates * p.chunk * p.gates + gate;

    float sum = 0.0f;
    for (size_t i = 0; i < p.chunk; i++) {
        const size_t token = chunk * p.chunk + i;
        if (token < p.tokens) {
            const size_t from = p.g_start + gate * p.g_nb[0] + head * p.g_nb[1] + token * p.g_nb[2] + sequence * p.g_nb[3];
            sum += p.gates_are_decays ? logf(g[from / 4]) : g[from / 4];
        }
        G[first + i * p.gates] = sum;
    }
}

// One thread per sequence, head, chunk, row of the chunk and key channel: q from the chunk's first token on, k up to its
// last one.
extern "C" __global__ void gated_delta_net_chunk_scale(const arguments p, const float *q, const float *k,
                                          const float *G, float *q_decayed,
                                          float *k_decayed) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.keys) {
        return;
    }
    const size_t channel = id % p.keys;
    const size_t i = id / p.keys % p.chunk;
    const size_t matrix = id / (p.keys * p.chunk);  // counts chunks of heads of sequences
    const size_t chunk = matrix % p.chunks;
    const size_t head = matrix / p.chunks % p.heads;
    const size_t sequence = matrix / (p.chunks * p.heads);
    const size_t key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    const size_t token = chunk * p.chunk + i;
    const size_t q_at = p.q_start + channel * p.q_nb[0] + key_head * p.q_nb[1] + token * p.q_nb[2] + sequence * p.q_nb[3];
    const size_t k_at = p.k_start + channel * p.k_nb[0] + key_head * p.k_nb[1] + token * p.k_nb[2] + sequence * p.k_nb[3];
    const size_t gate = p.gates > 1 ? channel : 0;
    const float G_i = G[(matrix * p.chunk + i) * p.gates + gate];
    const float G_last = G[(matrix * p.chunk + p.chunk - 1) * p.gates + gate];

    q_decayed[id] = token < p.tokens ? q[q_at / 4] * expf(G_i) : 0.0f;
    k_decayed[id] = token < p.tokens ? k[k_at / 4] * expf(G_last - G_i) : 0.0f;
}

// GDA. One thread per element of decay, C x C for every chunk.
extern "C" __global__ void gated_delta_net_chunk_decay(const arguments p, const float *G, float *decay) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.chunk) {
        return;
    }
    const size_t j = id % p.chunk;
    const size_t i = id / p.chunk % p.chunk;
    const size_t first = id / (p.chunk * p.chunk) * p.chunk;

    decay[id] = i >= j ? expf(G[first + i] - G[first + j]) : 0.0f;
}

// Element (i, j) of A and Aqk, where `matrix` counts chunks of heads of sequences.
__device__ void products(const arguments &p, size_t matrix, size_t i, size_t j, const float *q, const float *k,
              const float *beta, const float *G, const float *decay, float *akk, float *aqk) {
    const size_t chunk = matrix % p.chunks;
    const size_t head = matrix / p.chunks % p.heads;
    const size_t sequence = matrix / (p.chunks * p.heads);
    const size_t key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    const size_t i_token = chunk * p.chunk + i;
    const size_t j_token = chunk * p.chunk + j;

    *akk = 0.0f;
    *aqk = 0.0f;
    if (j > i || i_token >= p.tokens) {
        return;
    }
    const size_t q_i = p.q_start + key_head * p.q_nb[1] + i_token * p.q_nb[2] + sequence * p.q_nb[3];
    const size_t k_i = p.k_start + key_head * p.k_nb[1] + i_token * p.k_nb[2] + sequence * p.k_nb[3];
    const size_t k_j = p.k_start + key_head * p.k_nb[1] + j_token * p.k_nb[2] + sequence * p.k_nb[3];
    const size_t G_i = (matrix * p.chunk + i) * p.gates;
    const size_t G_j = (matrix * p.chunk + j) * p.gates;
    const size_t beta_i = p.beta_start + head * p.beta_nb[1] + i_token * p.beta_nb[2] + sequence * p.beta_nb[3];

    float kk = 0.0f;
    float qk = 0.0f;
    for (size_t d = 0; d < p.keys; d++) {
        float key = k[(k_j + d * p.k_nb[0]) / 4];
        if (p.gates > 1) {
            key *= expf(G[G_i + d] - G[G_j + d]);
        }
        kk += k[(k_i + d * p.k_nb[0]) / 4] * key;
        qk += q[(q_i + d * p.q_nb[0]) / 4] * key;
    }
    if (p.gates == 1) {
        const float factor = decay[(matrix * p.chunk + i) * p.chunk + j];
        kk *= factor;
        qk *= factor;
    }
    *akk = j < i ? beta[beta_i / 4] * kk : 0.0f;
    *aqk = qk;
}

// The whole form. One thread per element of A, C x C for every chunk.
extern "C" __global__ void gated_delta_net_chunk_whole(const arguments p, const float *q, const float *k,
                                          const float *beta, const float *G,
                                          const float *decay, float *Akk, float *Aqk) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.chunk) {
        return;
    }
    const size_t j = id % p.chunk;
    const size_t i = id / p.chunk % p.chunk;
    const size_t matrix = id / (p.chunk * p.chunk);

    float akk, aqk;
    products(p, matrix, i, j, q, k, beta, G, decay, &akk, &aqk);
    Akk[id] = akk;
    Aqk[id] = aqk;
}

// The place of a block on or below the diagonal; they are counted row by row.
__device__ void place_of_block(size_t block, size_t *row, size_t *column) {
    *row = 0;
    while (block > *row) {
        *row += 1;
        block -= *row;
    }
    *column = block;
}

// The blockwise form. One block of 16 x 16 threads per block of every chunk, a thread per element: what the rows of the
// block need of q, k and G, and what its columns need, stands in shared memory, 16 key channels at a time.
extern "C" __global__ void gated_delta_net_chunk_blocks(const arguments p, const float *q, const float *k,
                                                        const float *beta, const float *G, const float *decay,
                                                        float *Akk_blocks, float *Aqk_blocks) {
    __shared__ float q_i[BLOCK][BLOCK], k_i[BLOCK][BLOCK], G_i[BLOCK][BLOCK];  // row, channel
    __shared__ float k_j[BLOCK][BLOCK], G_j[BLOCK][BLOCK];                     // column, channel

    if (blockIdx.x >= p.sequences * p.heads * p.chunks * p.blocks) {
        return;
    }
    const unsigned int x = threadIdx.x, y = threadIdx.y;
    const size_t matrix = blockIdx.x / p.blocks;
    const size_t chunk = matrix % p.chunks;
    const size_t head = matrix / p.chunks % p.heads;
    const size_t sequence = matrix / (p.chunks * p.heads);
    const size_t key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    size_t row, column;
    place_of_block(blockIdx.x % p.blocks, &row, &column);

    // This thread computes element (i, j), and fetches channel x for row and column number y of the block.
    const size_t i = row * BLOCK + y, j = column * BLOCK + x;
    const size_t fetched_i = row * BLOCK + y, fetched_j = column * BLOCK + y;
    const size_t i_token = chunk * p.chunk + fetched_i, j_token = chunk * p.chunk + fetched_j;
    const size_t q_row = p.q_start + key_head * p.q_nb[1] + i_token * p.q_nb[2] + sequence * p.q_nb[3];
    const size_t k_row = p.k_start + key_head * p.k_nb[1] + i_token * p.k_nb[2] + sequence * p.k_nb[3];
    const size_t k_column = p.k_start + key_head * p.k_nb[1] + j_token * p.k_nb[2] + sequence * p.k_nb[3];
    const size_t beta_at = p.beta_start + head * p.beta_nb[1] + i_token * p.beta_nb[2] + sequence * p.beta_nb[3];

    float kk = 0.0f;
    float qk = 0.0f;
    for (size_t tile = 0; tile < p.keys; tile += BLOCK) {
        const size_t d = tile + x;
        const bool i_there = d < p.keys && i_token < p.tokens;
        const bool j_there = d < p.keys && j_token < p.tokens;
        q_i[y][x] = i_there ? q[(q_row + d * p.q_nb[0]) / 4] : 0.0f;
        k_i[y][x] = i_there ? k[(k_row + d * p.k_nb[0]) / 4] : 0.0f;
        k_j[y][x] = j_there ? k[(k_column + d * p.k_nb[0]) / 4] : 0.0f;
        if (p.gates > 1) {
            G_i[y][x] = i_there ? G[(matrix * p.chunk + fetched_i) * p.gates + d] : 0.0f;
            G_j[y][x] = j_there ? G[(matrix * p.chunk + fetched_j) * p.gates + d] : 0.0f;
        }
        __syncthreads();
        if (j <= i && i_token < p.tokens) {  // beyond, G_i - G_j may be above 0
            for (unsigned int n = 0; n < BLOCK; n++) {
                const float key = p.gates > 1 ? k_j[x][n] * expf(G_i[y][n] - G_j[x][n]) : k_j[x][n];
                kk += k_i[y][n] * key;
                qk += q_i[y][n] * key;
            }
        }
        __syncthreads();  // all are done with the tile
    }
    if (j > i || i_token >= p.tokens) {
        kk = 0.0f;
        qk = 0.0f;
    } else {
        const float factor = p.gates > 1 ? 1.0f : decay[(matrix * p.chunk + i) * p.chunk + j];
        kk = j < i ? beta[beta_at / 4] * (kk * factor) : 0.0f;
        qk *= factor;
    }
    const size_t to = (blockIdx.x * BLOCK + y) * BLOCK + x;
    Akk_blocks[to] = kk;
    Aqk_blocks[to] = qk;
}

// The blockwise form. One thread per element of A, C x C for every chunk.
extern "C" __global__ void gated_delta_net_chunk_clear(const arguments p, float *Akk, float *Aqk) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.chunks * p.chunk * p.chunk) {
        return;
    }
    Akk[id] = 0.0f;
    Aqk[id] = 0.0f;
}

// The blockwise form. One thread per element of a block.
extern "C" __global__ void gated_delta_net_chunk_place(const arguments p, const float *Akk_blocks,
                                          const float *Aqk_blocks, float *Akk, float *Aqk) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.chunks * p.blocks * BLOCK * BLOCK) {
        return;
    }
    const size_t j = id % BLOCK;
    const size_t i = id / BLOCK % BLOCK;
    const size_t block = id / (BLOCK * BLOCK) % p.blocks;
    const size_t matrix = id / (BLOCK * BLOCK * p.blocks);

    size_t row, column;
    place_of_block(block, &row, &column);
    const size_t to = (matrix * p.chunk + row * BLOCK + i) * p.chunk + column * BLOCK + j;

    Akk[to] = p.accumulate ? Akk[to] + Akk_blocks[id] : Akk_blocks[id];
    Aqk[to] = p.accumulate ? Aqk[to] + Aqk_blocks[id] : Aqk_blocks[id];
}

// One thread per sequence, head, chunk and column of w or u: the triangular solve, from the first token down.
extern "C" __global__ void gated_delta_net_chunk_solve(const arguments p, const float *k, const float *v,
                                          const float *beta, const float *G,
                                          const float *Akk, float *w, float *u) {
    const size_t columns = p.keys + p.values;
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.chunks * columns) {
        return;
    }
    const size_t matrix = id / columns;
    const size_t chunk = matrix % p.chunks;
    const size_t head = matrix / p.chunks % p.heads;
    const size_t sequence = matrix / (p.chunks * p.heads);
    const size_t key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    const bool is_w = id % columns < p.keys;
    const size_t column = is_w ? id % columns : id % columns - p.keys;
    const size_t width = is_w ? p.keys : p.values;
    const size_t gate = p.gates > 1 ? column : 0;
    float *x = (is_w ? w : u) + matrix * p.chunk * width + column;  // its elements are `width` apart

    for (size_t i = 0; i < p.chunk; i++) {
        const size_t token = chunk * p.chunk + i;
        const size_t k_at = p.k_start + column * p.k_nb[0] + key_head * p.k_nb[1] + token * p.k_nb[2] + sequence * p.k_nb[3];
        const size_t v_at = p.v_start + column * p.v_nb[0] + head * p.v_nb[1] + token * p.v_nb[2] + sequence * p.v_nb[3];
        const size_t beta_at = p.beta_start + head * p.beta_nb[1] + token * p.beta_nb[2] + sequence * p.beta_nb[3];

        float value = 0.0f;
        if (token < p.tokens && is_w) {
            value = beta[beta_at / 4] * expf(G[(matrix * p.chunk + i) * p.gates + gate]) * k[k_at / 4];
        } else if (token < p.tokens) {
            value = beta[beta_at / 4] * v[v_at / 4];
        }
        for (size_t j = 0; j < i; j++) {
            value -= Akk[(matrix * p.chunk + i) * p.chunk + j] * x[j * width];
        }
        x[i * width] = value;
    }
}

// One thread per sequence, head and column of S: chunk by chunk v_new from the state before, then the state after.
extern "C" __global__ void gated_delta_net_chunk_states(const arguments p, const float *state,
                                           const float *k_decayed, const float *G,
                                           const float *w, const float *u, float *v_new,
                                           float *states, float *state_out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.values) {
        return;
    }
    const size_t column = id % p.values;
    const size_t head = id / p.values % p.heads;
    const size_t sequence = id / (p.values * p.heads);
    const size_t initial = p.state_start + column * p.state_nb[0] + head * p.state_nb[2] + sequence * p.state_nb[3];
    const size_t final =
        p.state_out_start + column * p.state_out_nb[0] + head * p.state_out_nb[2] + sequence * p.state_out_nb[3];

    for (size_t chunk = 0; chunk < p.chunks; chunk++) {
        const size_t matrix = (sequence * p.heads + head) * p.chunks + chunk;
        const size_t G_last = (matrix * p.chunk + p.chunk - 1) * p.gates;
        float *S = states + matrix * p.keys * p.values + column;  // its elements are `values` apart
        float *new_column = v_new + matrix * p.chunk * p.values + column;

        for (size_t d = 0; d < p.keys; d++) {  // S is the state before
            if (chunk > 0) {
                S[d * p.values] = S[d * p.values - p.keys * p.values];
            } else if (p.has_state) {
                S[d * p.values] = state[(initial + d * p.state_nb[1]) / 4];
            } else {
                S[d * p.values] = 0.0f;
            }
        }
        for (size_t i = 0; i < p.chunk; i++) {
            float sum = u[(matrix * p.chunk + i) * p.values + column];
            for (size_t d = 0; d < p.keys; d++) {
                sum -= w[(matrix * p.chunk + i) * p.keys + d] * S[d * p.values];
            }
            new_column[i * p.values] = sum;
        }
        for (size_t d = 0; d < p.keys; d++) {  // S is the state after
            const size_t gate = p.gates > 1 ? d : 0;
            float sum = expf(G[G_last + gate]) * S[d * p.values];
            for (size_t i = 0; i < p.chunk; i++) {
                sum += k_decayed[(matrix * p.chunk + i) * p.keys + d] * new_column[i * p.values];
            }
            S[d * p.values] = sum;
            if (chunk == p.chunks - 1) {
                state_out[(final + d * p.state_out_nb[1]) / 4] = sum;
            }
        }
    }
}

// One thread per element of out.
extern "C" __global__ void gated_delta_net_chunk_out(const arguments p, const float *state,
                                        const float *q_decayed, const float *Aqk,
                                        const float *v_new, const float *states,
                                        float *out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.tokens * p.heads * p.values) {
        return;
    }
    const size_t column = id % p.values;
    const size_t head = id / p.values % p.heads;
    const size_t token = id / (p.values * p.heads) % p.tokens;
    const size_t sequence = id / (p.values * p.heads * p.tokens);
    const size_t chunk = token / p.chunk;
    const size_t i = token % p.chunk;
    const size_t matrix = (sequence * p.heads + head) * p.chunks + chunk;
    const size_t initial = p.state_start + column * p.state_nb[0] + head * p.state_nb[2] + sequence * p.state_nb[3];
    const size_t to = p.out_start + column * p.out_nb[0] + head * p.out_nb[1] + token * p.out_nb[2] + sequence * p.out_nb[3];

    float sum = 0.0f;
    for (size_t d = 0; d < p.keys; d++) {
        float before = 0.0f;
        if (chunk > 0) {
            before = states[((matrix - 1) * p.keys + d) * p.values + column];
        } else if (p.has_state) {
            before = state[(initial + d * p.state_nb[1]) / 4];
        }
        sum += q_decayed[(matrix * p.chunk + i) * p.keys + d] * before;
    }
    for (size_t j = 0; j <= i; j++) {
        sum += Aqk[(matrix * p.chunk + i) * p.chunk + j] * v_new[(matrix * p.chunk + j) * p.values + column];
    }
    out[to / 4] = __uint_as_float((unsigned int)p.scale) * sum;
}
