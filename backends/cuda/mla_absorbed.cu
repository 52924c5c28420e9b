// MLA absorbed, in float32: out = v_scale softmax(scale k_scale (q_absorbed . c_kv + q_pe . k_pe) + mask) c_kv W_UV with
// q_absorbed = q_nope W_UK, by sequence, head and query. All heads share the rows of the cache.
//
// Two parts: query, scores_two_part, softmax, context, out. Concatenated: query, join_queries, join_rows, scores_concat,
// softmax, context, out. Flash: query, join_queries, join_rows, flash, out; its values are the first d_c columns of the
// concatenated rows. Intermediate results are packed. What stands in rows of the cache from kv_len on does not matter.

#include "blocks.cuh"
#include "elements.cuh"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, all else in elements; *_nb innermost first.
struct arguments {
    size_t sequences;
    size_t heads;
    size_t queries;
    size_t rows;  // of the cache
    size_t kv_len;
    size_t d_n;
    size_t d_r;
    size_t d_c;
    size_t d_v;
    size_t causal;      // 1: query t stands at position kv_len - queries + t and sees no key after it
    size_t cache_type;  // of c_kv and k_pe
    size_t mask_type;
    size_t scale;    // the bits of a float, scale * k_scale
    size_t v_scale;  // the bits of a float
    size_t q_nope_start;
    size_t q_nope_nb[4];
    size_t q_pe_start;
    size_t q_pe_nb[4];
    size_t c_kv_start;
    size_t c_kv_nb[4];
    size_t k_pe_start;
    size_t k_pe_nb[4];
    size_t w_uk_start;
    size_t w_uk_nb[4];
    size_t w_uv_start;
    size_t w_uv_nb[4];
    size_t mask_start;
    size_t mask_nb[4];
    size_t out_start;
    size_t out_nb[4];
};

// What is added to the score of query t and key j: MINUS_INFINITY where the query must not see the key.
__device__ float bias(const arguments &p, const unsigned char *mask, size_t j, size_t t, size_t sequence) {
    if (j >= p.kv_len || (p.causal && j + p.queries > p.kv_len + t)) {
        return MINUS_INFINITY;
    }
    if (mask == nullptr) {
        return 0.0f;
    }
    return load(p.mask_type, mask + p.mask_start + j * p.mask_nb[0] + t * p.mask_nb[1] + sequence * p.mask_nb[3]);
}

// One thread per element of q_absorbed.
extern "C" __global__ void mla_absorbed_query(const arguments p, const float *q_nope, const float *w_uk,
                                 float *q_absorbed) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.queries * p.d_c) {
        return;
    }
    const size_t i = id % p.d_c;
    const size_t t = id / p.d_c % p.queries;
    const size_t head = id / (p.d_c * p.queries) % p.heads;
    const size_t sequence = id / (p.d_c * p.queries * p.heads);
    const size_t q_row = p.q_nope_start + t * p.q_nope_nb[1] + head * p.q_nope_nb[2] + sequence * p.q_nope_nb[3];
    const size_t w_column = p.w_uk_start + i * p.w_uk_nb[0] + head * p.w_uk_nb[2];

    float sum = 0.0f;
    for (size_t n = 0; n < p.d_n; n++) {
        sum += q_nope[(q_row + n * p.q_nope_nb[0]) / 4] * w_uk[(w_column + n * p.w_uk_nb[1]) / 4];
    }
    q_absorbed[id] = sum;
}

// One thread per element of query.
extern "C" __global__ void mla_absorbed_join_queries(const arguments p, const float *q_absorbed,
                                        const float *q_pe, float *query) {
    const size_t width = p.d_c + p.d_r;
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.queries * width) {
        return;
    }
    const size_t i = id % width;
    const size_t t = id / width % p.queries;
    const size_t head = id / (width * p.queries) % p.heads;
    const size_t sequence = id / (width * p.queries * p.heads);
    const size_t q_row = p.q_pe_start + t * p.q_pe_nb[1] + head * p.q_pe_nb[2] + sequence * p.q_pe_nb[3];

    query[id] = i < p.d_c ? q_absorbed[id / width * p.d_c + i] : q_pe[(q_row + (i - p.d_c) * p.q_pe_nb[0]) / 4];
}

// One thread per element of row.
extern "C" __global__ void mla_absorbed_join_rows(const arguments p, const unsigned char *c_kv, const unsigned char *k_pe,
                                     float *row) {
    const size_t width = p.d_c + p.d_r;
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.rows * width) {
        return;
    }
    const size_t i = id % width;
    const size_t j = id / width % p.rows;
    const size_t sequence = id / (width * p.rows);
    const size_t c_row = p.c_kv_start + j * p.c_kv_nb[1] + sequence * p.c_kv_nb[3];
    const size_t k_row = p.k_pe_start + j * p.k_pe_nb[1] + sequence * p.k_pe_nb[3];

    row[id] = i < p.d_c ? load(p.cache_type, c_kv + c_row + i * p.c_kv_nb[0])
                        : load(p.cache_type, k_pe + k_row + (i - p.d_c) * p.k_pe_nb[0]);
}

// One thread per element of scores.
extern "C" __global__ void mla_absorbed_scores_two_part(const arguments p, const float *q_absorbed,
                                           const float *q_pe, const unsigned char *c_kv,
                                           const unsigned char *k_pe, const unsigned char *mask,
                                           float *scores) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.queries * p.rows) {
        return;
    }
    const size_t j = id % p.rows;
    const size_t t = id / p.rows % p.queries;
    const size_t head = id / (p.rows * p.queries) % p.heads;
    const size_t sequence = id / (p.rows * p.queries * p.heads);
    const size_t absorbed_row = id / p.rows * p.d_c;
    const size_t q_row = p.q_pe_start + t * p.q_pe_nb[1] + head * p.q_pe_nb[2] + sequence * p.q_pe_nb[3];
    const size_t c_row = p.c_kv_start + j * p.c_kv_nb[1] + sequence * p.c_kv_nb[3];
    const size_t k_row = p.k_pe_start + j * p.k_pe_nb[1] + sequence * p.k_pe_nb[3];

    const float add = bias(p, mask, j, t, sequence);
    if (add == MINUS_INFINITY) {
        scores[id] = MINUS_INFINITY;
        return;
    }
    float latent = 0.0f;
    for (size_t i = 0; i < p.d_c; i++) {
        latent += q_absorbed[absorbed_row + i] * load(p.cache_type, c_kv + c_row + i * p.c_kv_nb[0]);
    }
    float rotary = 0.0f;
    for (size_t i = 0; i < p.d_r; i++) {
        rotary += q_pe[(q_row + i * p.q_pe_nb[0]) / 4] * load(p.cache_type, k_pe + k_row + i * p.k_pe_nb[0]);
    }
    scores[id] = (latent + rotary) * __uint_as_float((unsigned int)p.scale) + add;
}

// The score of concatenated rows, before the mask.
__device__ float joined_score(const arguments &p, const float *query, const float *row) {
    float sum = 0.0f;
    for (size_t i = 0; i < p.d_c + p.d_r; i++) {
        sum += query[i] * row[i];
    }
    return sum * __uint_as_float((unsigned int)p.scale);
}

// One thread per element of scores.
extern "C" __global__ void mla_absorbed_scores_concat(const arguments p, const float *query,
                                         const float *row, const unsigned char *mask,
                                         float *scores) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.queries * p.rows) {
        return;
    }
    const size_t width = p.d_c + p.d_r;
    const size_t j = id % p.rows;
    const size_t t = id / p.rows % p.queries;
    const size_t sequence = id / (p.rows * p.queries * p.heads);

    const float add = bias(p, mask, j, t, sequence);
    if (add == MINUS_INFINITY) {
        scores[id] = MINUS_INFINITY;
        return;
    }
    scores[id] = joined_score(p, query + id / p.rows * width, row + (sequence * p.rows + j) * width) + add;
}

// One block per query: the weights of its row of scores, all 0 where it sees no key.
extern "C" __global__ void mla_absorbed_softmax(const arguments p, const float *scores, float *weights) {
    const size_t id = blockIdx.x;
    if (id >= p.sequences * p.heads * p.queries) {
        return;
    }
    const size_t first = id * p.rows;

    float part = MINUS_INFINITY;
    for (size_t j = threadIdx.x; j < p.rows; j += blockDim.x) {
        part = fmaxf(part, scores[first + j]);
    }
    const float top = block_max(part);
    part = 0.0f;
    for (size_t j = threadIdx.x; j < p.rows; j += blockDim.x) {
        const float weight = scores[first + j] == MINUS_INFINITY ? 0.0f : expf(scores[first + j] - top);
        weights[first + j] = weight;
        part += weight;
    }
    const float total = block_sum(part);
    for (size_t j = threadIdx.x; j < p.rows; j += blockDim.x) {
        weights[first + j] = top == MINUS_INFINITY ? 0.0f : weights[first + j] / total;
    }
}

// One thread per element of context.
extern "C" __global__ void mla_absorbed_context(const arguments p, const float *weights, const unsigned char *c_kv,
                                   float *context) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.heads * p.queries * p.d_c) {
        return;
    }
    const size_t i = id % p.d_c;
    const size_t query = id / p.d_c;
    const size_t sequence = query / (p.queries * p.heads);
    const size_t c_column = p.c_kv_start + i * p.c_kv_nb[0] + sequence * p.c_kv_nb[3];

    float sum = 0.0f;
    for (size_t j = 0; j < p.kv_len; j++) {
        sum += weights[query * p.rows + j] * load(p.cache_type, c_kv + c_column + j * p.c_kv_nb[1]);
    }
    context[id] = sum * __uint_as_float((unsigned int)p.v_scale);
}

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

    float highest = MINUS_INFINITY;
    float denominator = 0.0f;
    for (size_t i = thread; i < p.d_c; i += tile) {
        sums[i] = 0.0f;
    }
    for (size_t first = 0; first < p.kv_len; first += tile) {
        const size_t count = p.kv_len - first < tile ? p.kv_len - first : tile;
        const float *rows = row + (sequence * p.rows + first) * width;
        float score = MINUS_INFINITY;
        if (thread < count) {
            score = bias(p, mask, first + thread, t, sequence);
            if (score != MINUS_INFINITY) {
                score += joined_score(p, query + id * width, rows + thread * width);
            }
        }
        const float higher = fmaxf(highest, block_max(score));
        if (higher == MINUS_INFINITY) {
            continue;  // no key has been seen so far, by any thread
        }
        const float factor = highest == MINUS_INFINITY ? 0.0f : expf(highest - higher);
        weights[thread] = score == MINUS_INFINITY ? 0.0f : expf(score - higher);
        denominator = denominator * factor + block_sum(weights[thread]);
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
        sums[i] = highest == MINUS_INFINITY ? 0.0f : sums[i] / denominator * __uint_as_float((unsigned int)p.v_scale);
    }
}

// One thread per element of out.
extern "C" __global__ void mla_absorbed_out(const arguments p, const float *context, const float *w_uv,
                               float *out) {
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= p.sequences * p.queries * p.heads * p.d_v) {
        return;
    }
    const size_t i0 = id % p.d_v;
    const size_t head = id / p.d_v % p.heads;
    const size_t t = id / (p.d_v * p.heads) % p.queries;
    const size_t sequence = id / (p.d_v * p.heads * p.queries);
    const size_t context_row = ((sequence * p.heads + head) * p.queries + t) * p.d_c;
    const size_t w_column = p.w_uv_start + i0 * p.w_uv_nb[0] + head * p.w_uv_nb[2];
    const size_t to = p.out_start + i0 * p.out_nb[0] + head * p.out_nb[1] + t * p.out_nb[2] + sequence * p.out_nb[3];

    float sum = 0.0f;
    for (size_t i = 0; i < p.d_c; i++) {
        sum += context[context_row + i] * w_uv[(w_column + i * p.w_uv_nb[1]) / 4];
    }
    out[to / 4] = sum;
}
