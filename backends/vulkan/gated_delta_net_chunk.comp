#version 450
#extension GL_GOOGLE_include_directive : require

// GATED_DELTA_NET in chunks of C tokens, in float32. In a chunk, G_i is the sum of the log gates up to token i, and
//
//     A_ij = beta_i sum_d k_id k_jd e^(G_id - G_jd) for i > j,    Aqk_ij = sum_d q_id k_jd e^(G_id - G_jd) for i >= j,
//     (I + A) w = beta e^G k,    (I + A) u = beta v,    v_new = u - w S,
//     out = scale ((q e^G) S + Aqk v_new),    S <- e^(G_last) S + (k e^(G_last - G))^T v_new
//
// with one gate per head (GDA) or one per key channel (KDA). Only differences G_i - G_j with i >= j are exponentiated:
// they are at most 0, whereas e^-G overflows. There is a part for each step, and what it leaves stays in memory. Tokens
// beyond the last one count as zeros. In the blockwise form only the blocks of 16 x 16 on and below the diagonal of A
// and Aqk are computed, and then placed into matrices of zeros.

const uint NORM = 0;
const uint GATES = 1;
const uint SCALE = 2;
const uint DECAY = 3;
const uint WHOLE = 4;
const uint BLOCKS = 5;
const uint CLEAR = 6;
const uint PLACE = 7;
const uint SOLVE = 8;
const uint STATES = 9;
const uint OUT = 10;

const uint BLOCK = 16;

layout(constant_id = 0) const uint part = 0;

#include "memory.glsl"

// Every *_start and *_nb is in bytes, all else in elements; *_nb innermost first:
// (channel, head, token, sequence), of states (value, key, head, sequence).
layout(std430, binding = 1) restrict readonly buffer Table {
    uint sequences;
    uint tokens;
    uint key_heads;
    uint heads;
    uint keys;         // rows of S
    uint values;       // columns of S
    uint gates;        // 1 or keys
    uint interleaved;  // 1: neighbouring heads share a key head; 0: head h has key head h % key_heads
    float scale;
    float eps;
    uint q_in_start;   // as the case gives it
    uint q_in_nb[4];
    uint k_in_start;
    uint k_in_nb[4];
    uint q_start;  // after the normalisation, if there is one
    uint q_nb[4];
    uint k_start;
    uint k_nb[4];
    uint v_start;
    uint v_nb[4];
    uint g_start;
    uint g_nb[4];
    uint beta_start;
    uint beta_nb[4];
    uint has_state;  // 0: S begins as 0
    uint state_start;
    uint state_nb[4];
    uint out_start;
    uint out_nb[4];
    uint state_out_start;
    uint state_out_nb[4];
    uint chunk_size;        // C
    uint chunks;            // of each sequence
    uint blocks;            // of each C x C matrix, on and below the diagonal
    uint gates_are_decays;  // 1: g holds e^g itself
    uint accumulate;        // 1: blocks are added to the zeros, 0: they are put over them
    uint G_start;           // what begins here on is packed
    uint decay_start;
    uint Akk_blocks_start;
    uint Aqk_blocks_start;
    uint Akk_start;
    uint Aqk_start;
    uint q_decayed_start;
    uint k_decayed_start;
    uint w_start;
    uint u_start;
    uint v_new_start;
    uint states_start;
};

layout(push_constant) uniform Arguments {
    uint items;  // of the part
    uint first;  // the first item of this dispatch, or of STATES the first row (C + keys in each chunk)
    uint end;    // just past the last one
};

uint key_head_of(uint head) {
    return interleaved != 0 ? head / (heads / key_heads) : head % key_heads;
}

// to = x / sqrt(sum of x^2 + eps), where `to` is packed
void normalise(uint from, uint nb0, uint to) {
    float sum = 0.0;
    for (uint i = 0; i < keys; i++) {
        float value = load(from + i * nb0);
        sum += value * value;
    }
    float size = sqrt(sum + eps);
    for (uint i = 0; i < keys; i++) {
        store(to + 4 * i, load(from + i * nb0) / size);
    }
}

// One item per sequence, token and key head.
void norm(uint id) {
    uint head = id % key_heads;
    uint token = id / key_heads % tokens;
    uint sequence = id / (key_heads * tokens);
    uint q_row = q_in_start + head * q_in_nb[1] + token * q_in_nb[2] + sequence * q_in_nb[3];
    uint k_row = k_in_start + head * k_in_nb[1] + token * k_in_nb[2] + sequence * k_in_nb[3];

    normalise(q_row, q_in_nb[0], q_start + 4 * id * keys);
    normalise(k_row, k_in_nb[0], k_start + 4 * id * keys);
}

// Where G of a row of a chunk stands; `matrix` counts chunks of heads of sequences, here and below.
uint G_at(uint matrix, uint i, uint channel) {
    return G_start + 4 * ((matrix * chunk_size + i) * gates + (gates > 1 ? channel : 0));
}

// One item per sequence, head, chunk and gate: the sum over the tokens of the chunk.
void sum_gates(uint id) {
    uint gate = id % gates;
    uint matrix = id / gates;
    uint chunk = matrix % chunks;
    uint head = matrix / chunks % heads;
    uint sequence = matrix / (chunks * heads);

    float sum = 0.0;
    for (uint i = 0; i < chunk_size; i++) {
        uint token = chunk * chunk_size + i;
        if (token < tokens) {
            float g = load(g_start + gate * g_nb[0] + head * g_nb[1] + token * g_nb[2] + sequence * g_nb[3]);
            sum += gates_are_decays != 0 ? log(g) : g;
        }
        store(G_at(matrix, i, gate), sum);
    }
}

// One item per sequence, head, chunk, row of the chunk and key channel: q from the chunk's first token on, k up to its
// last one.
void scale_rows(uint id) {
    uint channel = id % keys;
    uint i = id / keys % chunk_size;
    uint matrix = id / (keys * chunk_size);
    uint chunk = matrix % chunks;
    uint head = matrix / chunks % heads;
    uint sequence = matrix / (chunks * heads);
    uint key_head = key_head_of(head);
    uint token = chunk * chunk_size + i;

    float q = 0.0;
    float k = 0.0;
    if (token < tokens) {
        float G_i = load(G_at(matrix, i, channel));
        float G_last = load(G_at(matrix, chunk_size - 1, channel));
        q = load(q_start + channel * q_nb[0] + key_head * q_nb[1] + token * q_nb[2] + sequence * q_nb[3]) * exp(G_i);
        k = load(k_start + channel * k_nb[0] + key_head * k_nb[1] + token * k_nb[2] + sequence * k_nb[3]) *
            exp(G_last - G_i);
    }
    store(q_decayed_start + 4 * id, q);
    store(k_decayed_start + 4 * id, k);
}

// GDA. One item per element of decay, C x C for every chunk.
void decay(uint id) {
    uint j = id % chunk_size;
    uint i = id / chunk_size % chunk_size;
    uint matrix = id / (chunk_size * chunk_size);

    store(decay_start + 4 * id, i >= j ? exp(load(G_at(matrix, i, 0)) - load(G_at(matrix, j, 0))) : 0.0);
}

// Element (i, j) of A and Aqk.
void products(uint matrix, uint i, uint j, out float akk, out float aqk) {
    uint chunk = matrix % chunks;
    uint head = matrix / chunks % heads;
    uint sequence = matrix / (chunks * heads);
    uint key_head = key_head_of(head);
    uint i_token = chunk * chunk_size + i;
    uint j_token = chunk * chunk_size + j;

    akk = 0.0;
    aqk = 0.0;
    if (j > i || i_token >= tokens) {
        return;
    }
    uint q_i = q_start + key_head * q_nb[1] + i_token * q_nb[2] + sequence * q_nb[3];
    uint k_i = k_start + key_head * k_nb[1] + i_token * k_nb[2] + sequence * k_nb[3];
    uint k_j = k_start + key_head * k_nb[1] + j_token * k_nb[2] + sequence * k_nb[3];
    uint beta_i = beta_start + head * beta_nb[1] + i_token * beta_nb[2] + sequence * beta_nb[3];

    float kk = 0.0;
    float qk = 0.0;
    for (uint d = 0; d < keys; d++) {
        float key = load(k_j + d * k_nb[0]);
        if (gates > 1) {
            key *= exp(load(G_at(matrix, i, d)) - load(G_at(matrix, j, d)));
        }
        kk += load(k_i + d * k_nb[0]) * key;
        qk += load(q_i + d * q_nb[0]) * key;
    }
    if (gates == 1) {
        float factor = load(decay_start + 4 * ((matrix * chunk_size + i) * chunk_size + j));
        kk *= factor;
        qk *= factor;
    }
    akk = j < i ? load(beta_i) * kk : 0.0;
    aqk = qk;
}

// The whole form. One item per element of A, C x C for every chunk.
void whole(uint id) {
    uint j = id % chunk_size;
    uint i = id / chunk_size % chunk_size;
    uint matrix = id / (chunk_size * chunk_size);

    float akk, aqk;
    products(matrix, i, j, akk, aqk);
    store(Akk_start + 4 * id, akk);
    store(Aqk_start + 4 * id, aqk);
}

// The place of a block on or below the diagonal; they are counted row by row.
void place_of_block(uint block, out uint row, out uint column) {
    row = 0;
    while (block > row) {
        row++;
        block -= row;
    }
    column = block;
}

// The blockwise form. One item per element of a block, 16 x 16 for every block of every chunk.
void blockwise(uint id) {
    uint j = id % BLOCK;
    uint i = id / BLOCK % BLOCK;
    uint block = id / (BLOCK * BLOCK) % blocks;
    uint matrix = id / (BLOCK * BLOCK * blocks);

    uint row, column;
    float akk, aqk;
    place_of_block(block, row, column);
    products(matrix, row * BLOCK + i, column * BLOCK + j, akk, aqk);
    store(Akk_blocks_start + 4 * id, akk);
    store(Aqk_blocks_start + 4 * id, aqk);
}

// The blockwise form. One item per element of A, C x C for every chunk.
void clear(uint id) {
    store(Akk_start + 4 * id, 0.0);
    store(Aqk_start + 4 * id, 0.0);
}

// The blockwise form. One item per element of a block.
void place(uint id) {
    uint j = id % BLOCK;
    uint i = id / BLOCK % BLOCK;
    uint block = id / (BLOCK * BLOCK) % blocks;
    uint matrix = id / (BLOCK * BLOCK * blocks);

    uint row, column;
    place_of_block(block, row, column);
    uint to = 4 * ((matrix * chunk_size + row * BLOCK + i) * chunk_size + column * BLOCK + j);
    float akk = load(Akk_blocks_start + 4 * id);
    float aqk = load(Aqk_blocks_start + 4 * id);

    store(Akk_start + to, accumulate != 0 ? load(Akk_start + to) + akk : akk);
    store(Aqk_start + to, accumulate != 0 ? load(Aqk_start + to) + aqk : aqk);
}

// One item per sequence, head, chunk and column of w or u: the triangular solve, from the first token down.
void solve(uint id) {
    uint matrix = id / (keys + values);
    uint chunk = matrix % chunks;
    uint head = matrix / chunks % heads;
    uint sequence = matrix / (chunks * heads);
    uint key_head = key_head_of(head);
    bool is_w = id % (keys + values) < keys;
    uint column = is_w ? id % (keys + values) : id % (keys + values) - keys;
    uint width = is_w ? keys : values;
    uint row = 4 * width;  // from one element of the column to the next
    uint x = (is_w ? w_start : u_start) + 4 * (matrix * chunk_size * width + column);

    for (uint i = 0; i < chunk_size; i++) {
        uint token = chunk * chunk_size + i;
        uint k_at = k_start + column * k_nb[0] + key_head * k_nb[1] + token * k_nb[2] + sequence * k_nb[3];
        uint v_at = v_start + column * v_nb[0] + head * v_nb[1] + token * v_nb[2] + sequence * v_nb[3];
        uint beta_at = beta_start + head * beta_nb[1] + token * beta_nb[2] + sequence * beta_nb[3];

        float value = 0.0;
        if (token < tokens && is_w) {
            value = load(beta_at) * exp(load(G_at(matrix, i, column))) * load(k_at);
        } else if (token < tokens) {
            value = load(beta_at) * load(v_at);
        }
        for (uint j = 0; token < tokens && j < i; j++) {
            value -= load(Akk_start + 4 * ((matrix * chunk_size + i) * chunk_size + j)) * load(x + j * row);
        }
        store(x + i * row, value);
    }
}

// One item per sequence, head and column of S, and per row: chunk by chunk, C rows of v_new from the state before the
// chunk, then the rows of the state after it, one for each key channel.
void states(uint id, uint row) {
    uint column = id % values;
    uint head = id / values % heads;
    uint sequence = id / (values * heads);
    uint chunk = row / (chunk_size + keys);
    uint place = row % (chunk_size + keys);
    uint matrix = (sequence * heads + head) * chunks + chunk;
    uint initial = state_start + column * state_nb[0] + head * state_nb[2] + sequence * state_nb[3];
    uint final = state_out_start + column * state_out_nb[0] + head * state_out_nb[2] + sequence * state_out_nb[3];
    uint after = states_start + 4 * (matrix * keys * values + column);
    uint before = chunk > 0 ? after - 4 * keys * values : initial;
    uint before_nb = chunk > 0 ? 4 * values : state_nb[1];
    bool is_zero = chunk == 0 && has_state == 0;
    uint there = min(chunk_size, tokens - chunk * chunk_size);  // tokens of the chunk

    if (place >= there && place < chunk_size) {
        store(v_new_start + 4 * ((matrix * chunk_size + place) * values + column), 0.0);
    } else if (place < chunk_size) {
        uint at = matrix * chunk_size + place;
        float sum = load(u_start + 4 * (at * values + column));
        for (uint d = 0; d < keys; d++) {
            float S = is_zero ? 0.0 : load(before + d * before_nb);
            sum -= load(w_start + 4 * (at * keys + d)) * S;
        }
        store(v_new_start + 4 * (at * values + column), sum);
    } else {
        uint d = place - chunk_size;
        float S = is_zero ? 0.0 : load(before + d * before_nb);
        float sum = exp(load(G_at(matrix, chunk_size - 1, d))) * S;
        for (uint i = 0; i < there; i++) {
            uint at = matrix * chunk_size + i;
            sum += load(k_decayed_start + 4 * (at * keys + d)) * load(v_new_start + 4 * (at * values + column));
        }
        store(after + 4 * d * values, sum);
        if (chunk == chunks - 1) {
            store(final + d * state_out_nb[1], sum);
        }
    }
}

// One item per element of out.
void attend(uint id) {
    uint column = id % values;
    uint head = id / values % heads;
    uint token = id / (values * heads) % tokens;
    uint sequence = id / (values * heads * tokens);
    uint chunk = token / chunk_size;
    uint i = token % chunk_size;
    uint matrix = (sequence * heads + head) * chunks + chunk;
    uint initial = state_start + column * state_nb[0] + head * state_nb[2] + sequence * state_nb[3];
    uint to = out_start + column * out_nb[0] + head * out_nb[1] + token * out_nb[2] + sequence * out_nb[3];

    float sum = 0.0;
    for (uint d = 0; d < keys; d++) {
        float before = 0.0;
        if (chunk > 0) {
            before = load(states_start + 4 * (((matrix - 1) * keys + d) * values + column));
        } else if (has_state != 0) {
            before = load(initial + d * state_nb[1]);
        }
        sum += load(q_decayed_start + 4 * ((matrix * chunk_size + i) * keys + d)) * before;
    }
    for (uint j = 0; j <= i; j++) {
        float weight = load(Aqk_start + 4 * ((matrix * chunk_size + i) * chunk_size + j));
        sum += weight * load(v_new_start + 4 * ((matrix * chunk_size + j) * values + column));
    }
    store(to, scale * sum);
}

void main() {
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    uint begin = gl_GlobalInvocationID.x;

    if (part == STATES) {
        for (uint id = begin; id < items; id += invocations) {
            for (uint row = first; row < end; row++) {
                states(id, row);
            }
        }
        return;
    }
    for (uint id = first + begin; id < min(end, items); id += invocations) {
        switch (part) {
            case NORM: norm(id); break;
            case GATES: sum_gates(id); break;
            case SCALE: scale_rows(id); break;
            case DECAY: decay(id); break;
            case WHOLE: whole(id); break;
            case BLOCKS: blockwise(id); break;
            case CLEAR: clear(id); break;
            case PLACE: place(id); break;
            case SOLVE: solve(id); break;
            case OUT: attend(id); break;
        }
    }
}
