#version 450
#extension GL_GOOGLE_include_directive : require

// MLA absorbed, in float32: out = v_scale softmax(scale k_scale (q_absorbed . c_kv + q_pe . k_pe) + mask) c_kv W_UV with
// q_absorbed = q_nope W_UK, by sequence, head and query. All heads share the rows of the cache.
//
// Two parts: QUERY, SCORES, softmax, CONTEXT, OUT. Concatenated: QUERY, JOIN_QUERIES, JOIN_ROWS, JOINED_SCORES, softmax,
// CONTEXT, OUT. The softmax is TOP, WEIGHTS, TOTAL, DIVIDE. Flash: QUERY, JOIN_QUERIES, JOIN_ROWS, FLASH, OUT; its values
// are the first d_c columns of the concatenated rows. What stands in rows of the cache from kv_len on does not matter.
//
// TOP, TOTAL, CONTEXT and FLASH walk over the cache; a dispatch goes on from what the one before it left.

const uint QUERY = 0;
const uint JOIN_QUERIES = 1;
const uint JOIN_ROWS = 2;
const uint SCORES = 3;
const uint JOINED_SCORES = 4;
const uint TOP = 5;
const uint WEIGHTS = 6;
const uint TOTAL = 7;
const uint DIVIDE = 8;
const uint CONTEXT = 9;
const uint FLASH = 10;
const uint OUT = 11;

const uint TILE = 4;  // keys between two looks at the maximum in FLASH

const uint MINUS_INFINITY = 0xFF800000u;  // as bits: a device need not keep infinities in arithmetic

layout(constant_id = 0) const uint part = 0;

#include "memory.glsl"

// Every *_start and *_nb is in bytes, all else in elements; *_nb innermost first.
layout(std430, binding = 1) restrict readonly buffer Table {
    uint sequences;
    uint heads;
    uint queries;
    uint rows;  // of the cache
    uint kv_len;
    uint d_n;
    uint d_r;
    uint d_c;
    uint d_v;
    uint causal;      // 1: query t stands at position kv_len - queries + t and sees no key after it
    uint c_kv_type;   // TYPE_*, that of k_pe too
    uint mask_type;
    float scale;  // scale * k_scale
    float v_scale;
    uint q_nope_start;
    uint q_nope_nb[4];
    uint q_pe_start;
    uint q_pe_nb[4];
    uint c_kv_start;
    uint c_kv_nb[4];
    uint k_pe_start;
    uint k_pe_nb[4];
    uint w_uk_start;
    uint w_uk_nb[4];
    uint w_uv_start;
    uint w_uv_nb[4];
    uint mask_start;
    uint mask_nb[4];
    uint out_start;
    uint out_nb[4];
    uint q_absorbed_start;  // what begins here on is packed
    uint query_start;
    uint row_start;
    uint scores_start;
    uint weights_start;
    uint top_start;
    uint total_start;
    uint context_start;
};

layout(push_constant) uniform Arguments {
    uint items;  // of the part
    uint first;  // the first item of this dispatch; of a walk over the cache the first key, of FLASH the first tile
    uint end;    // just past the last one
};

uint mask_place(uint j, uint t, uint sequence) {
    return mask_start + j * mask_nb[0] + t * mask_nb[1] + sequence * mask_nb[3];
}

// Whether query t sees key j.
bool sees(uint j, uint t, uint sequence) {
    if (j >= kv_len || (causal != 0 && j + queries > kv_len + t)) {
        return false;
    }
    if (mask_type == TYPE_NONE) {
        return true;
    }
    return floatBitsToUint(load_typed(mask_type, mask_place(j, t, sequence))) != MINUS_INFINITY;
}

// What is added to the score of a key that is seen.
float bias(uint j, uint t, uint sequence) {
    return mask_type == TYPE_NONE ? 0.0 : load_typed(mask_type, mask_place(j, t, sequence));
}

// One item per element of q_absorbed.
void absorb(uint id) {
    uint i = id % d_c;
    uint t = id / d_c % queries;
    uint head = id / (d_c * queries) % heads;
    uint sequence = id / (d_c * queries * heads);
    uint q_row = q_nope_start + t * q_nope_nb[1] + head * q_nope_nb[2] + sequence * q_nope_nb[3];
    uint w_column = w_uk_start + i * w_uk_nb[0] + head * w_uk_nb[2];

    float sum = 0.0;
    for (uint n = 0; n < d_n; n++) {
        sum += load(q_row + n * q_nope_nb[0]) * load(w_column + n * w_uk_nb[1]);
    }
    store(q_absorbed_start + 4 * id, sum);
}

// One item per element of query.
void join_queries(uint id) {
    uint width = d_c + d_r;
    uint i = id % width;
    uint t = id / width % queries;
    uint head = id / (width * queries) % heads;
    uint sequence = id / (width * queries * heads);
    uint absorbed_row = q_absorbed_start + 4 * (id / width * d_c);
    uint q_row = q_pe_start + t * q_pe_nb[1] + head * q_pe_nb[2] + sequence * q_pe_nb[3];

    store(query_start + 4 * id, i < d_c ? load(absorbed_row + 4 * i) : load(q_row + (i - d_c) * q_pe_nb[0]));
}

// One item per element of row.
void join_rows(uint id) {
    uint width = d_c + d_r;
    uint i = id % width;
    uint j = id / width % rows;
    uint sequence = id / (width * rows);
    uint c_row = c_kv_start + j * c_kv_nb[1] + sequence * c_kv_nb[3];
    uint k_row = k_pe_start + j * k_pe_nb[1] + sequence * k_pe_nb[3];
    uint from = i < d_c ? c_row + i * c_kv_nb[0] : k_row + (i - d_c) * k_pe_nb[0];

    if (j < kv_len) {
        store(row_start + 4 * id, load_typed(c_kv_type, from));
    }
}

// The products of concatenated rows, summed and scaled.
float joined_score(uint query, uint sequence, uint j) {
    uint width = d_c + d_r;
    float sum = 0.0;
    for (uint i = 0; i < width; i++) {
        sum += load(query_start + 4 * (query * width + i)) * load(row_start + 4 * ((sequence * rows + j) * width + i));
    }
    return sum * scale;
}

// The products of the latent part and of the rotary part, each summed on its own, then added and scaled.
float score_of_parts(uint query, uint j, uint t, uint head, uint sequence) {
    uint absorbed_row = q_absorbed_start + 4 * query * d_c;
    uint q_row = q_pe_start + t * q_pe_nb[1] + head * q_pe_nb[2] + sequence * q_pe_nb[3];
    uint c_row = c_kv_start + j * c_kv_nb[1] + sequence * c_kv_nb[3];
    uint k_row = k_pe_start + j * k_pe_nb[1] + sequence * k_pe_nb[3];

    float latent = 0.0;
    for (uint i = 0; i < d_c; i++) {
        latent += load(absorbed_row + 4 * i) * load_typed(c_kv_type, c_row + i * c_kv_nb[0]);
    }
    float rotary = 0.0;
    for (uint i = 0; i < d_r; i++) {
        rotary += load(q_row + i * q_pe_nb[0]) * load_typed(c_kv_type, k_row + i * k_pe_nb[0]);
    }
    return (latent + rotary) * scale;
}

// One item per element of scores.
void score(uint id) {
    uint j = id % rows;
    uint query = id / rows;
    uint t = query % queries;
    uint head = query / queries % heads;
    uint sequence = query / (queries * heads);

    if (!sees(j, t, sequence)) {
        words[scores_start / 4 + id] = MINUS_INFINITY;
        return;
    }
    float products = part == SCORES ? score_of_parts(query, j, t, head, sequence) : joined_score(query, sequence, j);
    store(scores_start + 4 * id, products + bias(j, t, sequence));
}

bool is_masked(uint id) {
    return words[scores_start / 4 + id] == MINUS_INFINITY;
}

// One item per query: the highest of its scores.
void find_top(uint id) {
    uint highest = first == 0 ? MINUS_INFINITY : words[top_start / 4 + id];
    for (uint j = first; j < end; j++) {
        if (!is_masked(id * rows + j)) {
            float value = load(scores_start + 4 * (id * rows + j));
            if (highest == MINUS_INFINITY || value > uintBitsToFloat(highest)) {
                highest = floatBitsToUint(value);
            }
        }
    }
    words[top_start / 4 + id] = highest;
}

// One item per element of weights.
void weigh(uint id) {
    float top = load(top_start + 4 * (id / rows));
    store(weights_start + 4 * id, is_masked(id) ? 0.0 : exp(load(scores_start + 4 * id) - top));
}

// One item per query: the sum of its weights.
void add_weights(uint id) {
    float total = first == 0 ? 0.0 : load(total_start + 4 * id);
    for (uint j = first; j < end; j++) {
        total += load(weights_start + 4 * (id * rows + j));
    }
    store(total_start + 4 * id, total);
}

// One item per element of weights, which stays 0 where the query does not see the key.
void divide(uint id) {
    if (!is_masked(id)) {
        store(weights_start + 4 * id, load(weights_start + 4 * id) / load(total_start + 4 * (id / rows)));
    }
}

// One item per element of context.
void add_values(uint id) {
    uint i = id % d_c;
    uint query = id / d_c;
    uint sequence = query / (queries * heads);
    uint c_column = c_kv_start + i * c_kv_nb[0] + sequence * c_kv_nb[3];

    float sum = first == 0 ? 0.0 : load(context_start + 4 * id);
    for (uint j = first; j < end; j++) {
        sum += load(weights_start + 4 * (query * rows + j)) * load_typed(c_kv_type, c_column + j * c_kv_nb[1]);
    }
    store(context_start + 4 * id, end == kv_len ? sum * v_scale : sum);
}

// One item per query, with online softmax: TILE keys at a time; when their scores raise the maximum, what has been
// summed so far is scaled down.
void flash(uint id) {
    uint width = d_c + d_r;
    uint t = id % queries;
    uint sequence = id / (queries * heads);
    uint tiles = (kv_len + TILE - 1) / TILE;
    uint sums = context_start + 4 * id * d_c;

    bool any = false;  // whether a key has been seen so far
    float highest = 0.0;
    float denominator = 0.0;
    if (first == 0) {
        for (uint i = 0; i < d_c; i++) {
            store(sums + 4 * i, 0.0);
        }
    } else {
        any = words[top_start / 4 + id] != MINUS_INFINITY;
        highest = any ? load(top_start + 4 * id) : 0.0;
        denominator = load(total_start + 4 * id);
    }
    for (uint tile = first; tile < end; tile++) {
        float scores[TILE];
        bool seen[TILE];
        bool any_before = any;
        float before = highest;
        for (uint k = 0; k < TILE; k++) {
            uint j = tile * TILE + k;
            seen[k] = sees(j, t, sequence);
            scores[k] = seen[k] ? joined_score(id, sequence, j) + bias(j, t, sequence) : 0.0;
            if (seen[k]) {
                highest = any ? max(highest, scores[k]) : scores[k];
                any = true;
            }
        }
        if (any_before && highest > before) {
            float factor = exp(before - highest);
            denominator *= factor;
            for (uint i = 0; i < d_c; i++) {
                store(sums + 4 * i, load(sums + 4 * i) * factor);
            }
        }
        for (uint k = 0; k < TILE; k++) {
            if (seen[k]) {
                float weight = exp(scores[k] - highest);
                uint values = row_start + 4 * (sequence * rows + tile * TILE + k) * width;
                denominator += weight;
                for (uint i = 0; i < d_c; i++) {
                    store(sums + 4 * i, load(sums + 4 * i) + weight * load(values + 4 * i));
                }
            }
        }
    }
    words[top_start / 4 + id] = any ? floatBitsToUint(highest) : MINUS_INFINITY;
    store(total_start + 4 * id, denominator);
    if (end == tiles && any) {
        for (uint i = 0; i < d_c; i++) {
            store(sums + 4 * i, load(sums + 4 * i) / denominator * v_scale);
        }
    }
}

// One item per element of out.
void decompress(uint id) {
    uint i0 = id % d_v;
    uint head = id / d_v % heads;
    uint t = id / (d_v * heads) % queries;
    uint sequence = id / (d_v * heads * queries);
    uint context_row = context_start + 4 * ((sequence * heads + head) * queries + t) * d_c;
    uint w_column = w_uv_start + i0 * w_uv_nb[0] + head * w_uv_nb[2];
    uint to = out_start + i0 * out_nb[0] + head * out_nb[1] + t * out_nb[2] + sequence * out_nb[3];

    float sum = 0.0;
    for (uint i = 0; i < d_c; i++) {
        sum += load(context_row + 4 * i) * load(w_column + i * w_uv_nb[1]);
    }
    store(to, sum);
}

void main() {
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    bool walks = part == TOP || part == TOTAL || part == CONTEXT || part == FLASH;
    uint from = walks ? 0 : first;
    uint to = walks ? items : end;

    for (uint id = from + gl_GlobalInvocationID.x; id < to; id += invocations) {
        switch (part) {
            case QUERY: absorb(id); break;
            case JOIN_QUERIES: join_queries(id); break;
            case JOIN_ROWS: join_rows(id); break;
            case SCORES: score(id); break;
            case JOINED_SCORES: score(id); break;
            case TOP: find_top(id); break;
            case WEIGHTS: weigh(id); break;
            case TOTAL: add_weights(id); break;
            case DIVIDE: divide(id); break;
            case CONTEXT: add_values(id); break;
            case FLASH: flash(id); break;
            case OUT: decompress(id); break;
        }
    }
}
