#version 450
#extension GL_GOOGLE_include_directive : require

// GATED_DELTA_NET, recurrent, in float32: for every sequence and value head, token by token,
//
//     S <- decay S;  delta = beta (v - S^T k);  S <- S + k delta^T;  out = scale S^T q
//
// with one decay per head (GDA) or one per key channel (KDA). A part for each step: NORM scales q and k to unit length
// where the case asks for it, DECAY takes the exponential of log gates, TOKENS does the rest: one invocation walks over
// the tokens with one column of S, which lies in `states`.

const uint NORM = 0;
const uint DECAY = 1;
const uint TOKENS = 2;

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
    uint decay_start;
    uint decay_nb[4];
    uint snapshots;    // how many of the last states go to state_out, the newest first
    uint kept_states;  // of each sequence: tokens, or 1 if every state overwrites the one before it
    uint delta_start;  // what begins here on is packed
    uint states_start;
};

layout(push_constant) uniform Arguments {
    uint items;  // of the part
    uint first;  // the first item of this dispatch, or of TOKENS the first token
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

// One item per gate.
void decay(uint id) {
    uint gate = id % gates;
    uint head = id / gates % heads;
    uint token = id / (gates * heads) % tokens;
    uint sequence = id / (gates * heads * tokens);
    uint from = g_start + gate * g_nb[0] + head * g_nb[1] + token * g_nb[2] + sequence * g_nb[3];

    store(decay_start + 4 * id, exp(load(from)));
}

// One item per sequence, head and column of S.
void update(uint id, uint token) {
    uint column = id % values;
    uint head = id / values % heads;
    uint sequence = id / (values * heads);
    uint key_head = key_head_of(head);
    uint q_row = q_start + key_head * q_nb[1] + token * q_nb[2] + sequence * q_nb[3];
    uint k_row = k_start + key_head * k_nb[1] + token * k_nb[2] + sequence * k_nb[3];
    uint decay_row = decay_start + head * decay_nb[1] + token * decay_nb[2] + sequence * decay_nb[3];
    uint v_at = v_start + column * v_nb[0] + head * v_nb[1] + token * v_nb[2] + sequence * v_nb[3];
    uint beta_at = beta_start + head * beta_nb[1] + token * beta_nb[2] + sequence * beta_nb[3];
    uint out_at = out_start + column * out_nb[0] + head * out_nb[1] + token * out_nb[2] + sequence * out_nb[3];
    uint initial = state_start + column * state_nb[0] + head * state_nb[2] + sequence * state_nb[3];
    uint flat_index = ((sequence * tokens + token) * heads + head) * values + column;

    // The column in `states`, as it was and as it will be; its elements are `row` bytes apart.
    uint row = 4 * values;
    uint last_token = token == 0 ? 0 : token - 1;
    uint last_state = sequence * kept_states + last_token % kept_states;
    uint this_state = sequence * kept_states + token % kept_states;
    uint last = states_start + 4 * ((last_state * heads + head) * keys * values + column);
    uint S = states_start + 4 * ((this_state * heads + head) * keys * values + column);

    float recalled = 0.0;
    for (uint i = 0; i < keys; i++) {
        float before = 0.0;
        if (token > 0) {
            before = load(last + i * row);
        } else if (has_state != 0) {
            before = load(initial + i * state_nb[1]);
        }
        float decayed = load(decay_row + i * decay_nb[0]) * before;
        store(S + i * row, decayed);
        recalled += decayed * load(k_row + i * k_nb[0]);
    }
    float change = load(beta_at) * (load(v_at) - recalled);
    store(delta_start + 4 * flat_index, change);

    float sum = 0.0;
    for (uint i = 0; i < keys; i++) {
        float after = load(S + i * row) + load(k_row + i * k_nb[0]) * change;
        store(S + i * row, after);
        sum += after * load(q_row + i * q_nb[0]);
    }
    store(out_at, scale * sum);

    uint age = tokens - 1 - token;
    if (age < snapshots) {
        uint snapshot = state_out_start + column * state_out_nb[0] + head * state_out_nb[2] +
                        (age * sequences + sequence) * state_out_nb[3];
        for (uint i = 0; i < keys; i++) {
            store(snapshot + i * state_out_nb[1], load(S + i * row));
        }
    }
}

void main() {
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    uint begin = gl_GlobalInvocationID.x;

    if (part == TOKENS) {
        for (uint id = begin; id < items; id += invocations) {
            for (uint token = first; token < end; token++) {
                update(id, token);
            }
        }
        return;
    }
    for (uint id = first + begin; id < min(end, items); id += invocations) {
        if (part == NORM) {
            norm(id);
        } else {
            decay(id);
        }
    }
}
