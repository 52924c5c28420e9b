// MLA absorbed, in float32: out = v_scale softmax(scale k_scale (q_absorbed . c_kv + q_pe . k_pe) + mask) c_kv W_UV with
// q_absorbed = q_nope W_UK, by sequence, head and query. All heads share the rows of the cache.
//
// Two parts: query, scores_two_part, softmax, context, out. Concatenated: query, join_queries, join_rows, scores_concat,
// softmax, context, out. Flash: query, join_queries, join_rows, flash, out; its values are the first d_c columns of the
// concatenated rows. Intermediate results are packed. What stands in rows of the cache from kv_len on does not matter.

#include "api.h"
#include "elements.h"
#include "lanes.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, all else in elements; *_nb innermost first.
struct arguments {
    ulong sequences;
    ulong heads;
    ulong queries;
    ulong rows;  // of the cache
    ulong kv_len;
    ulong d_n;
    ulong d_r;
    ulong d_c;
    ulong d_v;
    ulong causal;      // 1: query t stands at position kv_len - queries + t and sees no key after it
    ulong c_kv_type;   // TYPE_*, that of k_pe too
    ulong mask_type;
    float_bits scale;   // scale * k_scale
    float_bits v_scale;
    ulong q_nope_start;
    ulong q_nope_nb[4];
    ulong q_pe_start;
    ulong q_pe_nb[4];
    ulong c_kv_start;
    ulong c_kv_nb[4];
    ulong k_pe_start;
    ulong k_pe_nb[4];
    ulong w_uk_start;
    ulong w_uk_nb[4];
    ulong w_uv_start;
    ulong w_uv_nb[4];
    ulong mask_start;
    ulong mask_nb[4];
    ulong out_start;
    ulong out_nb[4];
};

// What is added to the score of query t and key j: -INFINITY where the query must not see the key.
DEVICE float bias(const struct arguments *p, __global const uchar *mask, ulong j, ulong t, ulong sequence) {
    if (j >= p->kv_len || (p->causal && j + p->queries > p->kv_len + t)) {
        return -INFINITY;
    }
    if (p->mask_type == TYPE_NONE) {
        return 0.0f;
    }
    return load(p->mask_type, mask + p->mask_start + j * p->mask_nb[0] + t * p->mask_nb[1] + sequence * p->mask_nb[3]);
}

// One work-item per element of q_absorbed.
__kernel void mla_absorbed_query(const struct arguments p, __global const float *q_nope, __global const float *w_uk,
                                 __global float *q_absorbed) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.queries * p.d_c) {
        return;
    }
    const ulong i = id % p.d_c;
    const ulong t = id / p.d_c % p.queries;
    const ulong head = id / (p.d_c * p.queries) % p.heads;
    const ulong sequence = id / (p.d_c * p.queries * p.heads);
    const ulong q_row = p.q_nope_start + t * p.q_nope_nb[1] + head * p.q_nope_nb[2] + sequence * p.q_nope_nb[3];
    const ulong w_column = p.w_uk_start + i * p.w_uk_nb[0] + head * p.w_uk_nb[2];

    float sum = 0.0f;
    for (ulong n = 0; n < p.d_n; n++) {
        sum += q_nope[(q_row + n * p.q_nope_nb[0]) / 4] * w_uk[(w_column + n * p.w_uk_nb[1]) / 4];
    }
    q_absorbed[id] = sum;
}

// One work-item per element of query.
__kernel void mla_absorbed_join_queries(const struct arguments p, __global const float *q_absorbed,
                                        __global const float *q_pe, __global float *query) {
    const ulong width = p.d_c + p.d_r;
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.queries * width) {
        return;
    }
    const ulong i = id % width;
    const ulong t = id / width % p.queries;
    const ulong head = id / (width * p.queries) % p.heads;
    const ulong sequence = id / (width * p.queries * p.heads);
    const ulong q_row = p.q_pe_start + t * p.q_pe_nb[1] + head * p.q_pe_nb[2] + sequence * p.q_pe_nb[3];

    query[id] = i < p.d_c ? q_absorbed[id / width * p.d_c + i] : q_pe[(q_row + (i - p.d_c) * p.q_pe_nb[0]) / 4];
}

// One work-item per element of row.
__kernel void mla_absorbed_join_rows(const struct arguments p, __global const uchar *c_kv, __global const uchar *k_pe,
                                     __global float *row) {
    const ulong width = p.d_c + p.d_r;
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.rows * width) {
        return;
    }
    const ulong i = id % width;
    const ulong j = id / width % p.rows;
    const ulong sequence = id / (width * p.rows);
    const ulong c_row = p.c_kv_start + j * p.c_kv_nb[1] + sequence * p.c_kv_nb[3];
    const ulong k_row = p.k_pe_start + j * p.k_pe_nb[1] + sequence * p.k_pe_nb[3];

    row[id] = i < p.d_c ? load(p.c_kv_type, c_kv + c_row + i * p.c_kv_nb[0])
                        : load(p.c_kv_type, k_pe + k_row + (i - p.d_c) * p.k_pe_nb[0]);
}

// One work-item per element of scores.
__kernel void mla_absorbed_scores_two_part(const struct arguments p, __global const float *q_absorbed,
                                           __global const float *q_pe, __global const uchar *c_kv,
                                           __global const uchar *k_pe, __global const uchar *mask,
                                           __global float *scores) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.queries * p.rows) {
        return;
    }
    const ulong j = id % p.rows;
    const ulong t = id / p.rows % p.queries;
    const ulong head = id / (p.rows * p.queries) % p.heads;
    const ulong sequence = id / (p.rows * p.queries * p.heads);
    const ulong absorbed_row = id / p.rows * p.d_c;
    const ulong q_row = p.q_pe_start + t * p.q_pe_nb[1] + head * p.q_pe_nb[2] + sequence * p.q_pe_nb[3];
    const ulong c_row = p.c_kv_start + j * p.c_kv_nb[1] + sequence * p.c_kv_nb[3];
    const ulong k_row = p.k_pe_start + j * p.k_pe_nb[1] + sequence * p.k_pe_nb[3];

    const float add = bias(&p, mask, j, t, sequence);
    if (add == -INFINITY) {
        scores[id] = -INFINITY;
        return;
    }
    float latent = 0.0f;
    for (ulong i = 0; i < p.d_c; i++) {
        latent += q_absorbed[absorbed_row + i] * load(p.c_kv_type, c_kv + c_row + i * p.c_kv_nb[0]);
    }
    float rotary = 0.0f;
    for (ulong i = 0; i < p.d_r; i++) {
        rotary += q_pe[(q_row + i * p.q_pe_nb[0]) / 4] * load(p.c_kv_type, k_pe + k_row + i * p.k_pe_nb[0]);
    }
    scores[id] = (latent + rotary) * as_float((uint)p.scale) + add;
}

// The score of concatenated rows, before the mask.
DEVICE float joined_score(const struct arguments *p, __global const float *query, __global const float *row) {
    float sum = 0.0f;
    for (ulong i = 0; i < p->d_c + p->d_r; i++) {
        sum += query[i] * row[i];
    }
    return sum * as_float((uint)p->scale);
}

// One work-item per element of scores.
__kernel void mla_absorbed_scores_concat(const struct arguments p, __global const float *query,
                                         __global const float *row, __global const uchar *mask,
                                         __global float *scores) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.queries * p.rows) {
        return;
    }
    const ulong width = p.d_c + p.d_r;
    const ulong j = id % p.rows;
    const ulong t = id / p.rows % p.queries;
    const ulong sequence = id / (p.rows * p.queries * p.heads);

    const float add = bias(&p, mask, j, t, sequence);
    if (add == -INFINITY) {
        scores[id] = -INFINITY;
        return;
    }
    scores[id] = joined_score(&p, query + id / p.rows * width, row + (sequence * p.rows + j) * width) + add;
}

// One row per query: the weights of its scores, all 0 where it sees no key.
__kernel void mla_absorbed_softmax(const struct arguments p, __global const float *scores, __global float *top,
                                   __global float *total, __global float *weights) {
    const ulong id = row_id();
    if (id >= p.sequences * p.heads * p.queries) {
        return;
    }
    const ulong first = id * p.rows;

    float part = -INFINITY;
    for (ulong j = lane(); j < p.rows; j += lanes()) {
        part = fmax(part, scores[first + j]);
    }
    const float highest = max_of_lanes(part);
    part = 0.0f;
    for (ulong j = lane(); j < p.rows; j += lanes()) {
        const float weight = scores[first + j] == -INFINITY ? 0.0f : exp(scores[first + j] - highest);
        weights[first + j] = weight;
        part += weight;
    }
    const float denominator = sum_of_lanes(part);
    for (ulong j = lane(); j < p.rows; j += lanes()) {
        weights[first + j] = highest == -INFINITY ? 0.0f : weights[first + j] / denominator;
    }
    if (lane() == 0) {
        top[id] = highest;
        total[id] = denominator;
    }
}

// One work-item per element of context.
__kernel void mla_absorbed_context(const struct arguments p, __global const float *weights, __global const uchar *c_kv,
                                   __global float *context) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.queries * p.d_c) {
        return;
    }
    const ulong i = id % p.d_c;
    const ulong query = id / p.d_c;
    const ulong sequence = query / (p.queries * p.heads);
    const ulong c_column = p.c_kv_start + i * p.c_kv_nb[0] + sequence * p.c_kv_nb[3];

    float sum = 0.0f;
    for (ulong j = 0; j < p.kv_len; j++) {
        sum += weights[query * p.rows + j] * load(p.c_kv_type, c_kv + c_column + j * p.c_kv_nb[1]);
    }
    context[id] = sum * as_float((uint)p.v_scale);
}

#ifdef __OPENCL_VERSION__
// One work-item per query, with online softmax: TILE keys at a time; when their scores raise the maximum, what has been
// summed so far is scaled down. On CUDA a block takes a query: ../cuda/mla_absorbed.cu.
__kernel void mla_absorbed_flash(const struct arguments p, __global const float *query, __global const float *row,
                                 __global const uchar *mask, __global float *top, __global float *total,
                                 __global float *context) {
    enum { TILE = 16 };
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.heads * p.queries) {
        return;
    }
    const ulong width = p.d_c + p.d_r;
    const ulong t = id % p.queries;
    const ulong sequence = id / (p.queries * p.heads);
    __global float *sums = context + id * p.d_c;

    float highest = -INFINITY;
    float denominator = 0.0f;
    for (ulong i = 0; i < p.d_c; i++) {
        sums[i] = 0.0f;
    }
    for (ulong first = 0; first < p.kv_len; first += TILE) {
        const ulong count = min((ulong)TILE, p.kv_len - first);
        float scores[TILE];
        float higher = highest;
        for (ulong k = 0; k < count; k++) {
            const float add = bias(&p, mask, first + k, t, sequence);
            scores[k] = add;
            if (add != -INFINITY) {
                scores[k] += joined_score(&p, query + id * width, row + (sequence * p.rows + first + k) * width);
            }
            higher = fmax(higher, scores[k]);
        }
        if (higher == -INFINITY) {
            continue;  // no key has been seen so far
        }
        if (higher > highest) {
            const float factor = highest == -INFINITY ? 0.0f : exp(highest - higher);
            denominator *= factor;
            for (ulong i = 0; i < p.d_c; i++) {
                sums[i] *= factor;
            }
            highest = higher;
        }
        for (ulong k = 0; k < count; k++) {
            if (scores[k] == -INFINITY) {
                continue;
            }
            const float weight = exp(scores[k] - highest);
            __global const float *values = row + (sequence * p.rows + first + k) * width;
            denominator += weight;
            for (ulong i = 0; i < p.d_c; i++) {
                sums[i] += weight * values[i];
            }
        }
    }
    top[id] = highest;
    total[id] = denominator;
    for (ulong i = 0; i < p.d_c; i++) {
        sums[i] = highest == -INFINITY ? 0.0f : sums[i] / denominator * as_float((uint)p.v_scale);
    }
}
#endif

// One work-item per element of out.
__kernel void mla_absorbed_out(const struct arguments p, __global const float *context, __global const float *w_uv,
                               __global float *out) {
    const ulong id = get_global_id(0);
    if (id >= p.sequences * p.queries * p.heads * p.d_v) {
        return;
    }
    const ulong i0 = id % p.d_v;
    const ulong head = id / p.d_v % p.heads;
    const ulong t = id / (p.d_v * p.heads) % p.queries;
    const ulong sequence = id / (p.d_v * p.heads * p.queries);
    const ulong context_row = ((sequence * p.heads + head) * p.queries + t) * p.d_c;
    const ulong w_column = p.w_uv_start + i0 * p.w_uv_nb[0] + head * p.w_uv_nb[2];
    const ulong to = p.out_start + i0 * p.out_nb[0] + head * p.out_nb[1] + t * p.out_nb[2] + sequence * p.out_nb[3];

    float sum = 0.0f;
    for (ulong i = 0; i < p.d_c; i++) {
        sum += context[context_row + i] * w_uv[(w_column + i * p.w_uv_nb[1]) / 4];
    }
    out[to / 4] = sum;
}
