#version 450
#extension GL_GOOGLE_include_directive : require

// SOLVE_TRI: A X = B (left) or X A = B for a triangular n x n matrix A, in float32.
//
// One invocation solves one right-hand side by substitution: a column of B where left, else a row. Of A it reads the
// named triangle alone, and not the diagonal where unit. A dispatch finds the unknowns from `first` to before `end` only,
// from those that the dispatches before it left in out.

#include "memory.glsl"

// Every *_start and *_nb is in bytes, b_ne in elements, innermost first (columns, rows).
layout(push_constant) uniform Arguments {
    uint b_ne[4];
    uint a_start;
    uint a_nb[4];
    uint b_start;
    uint b_nb[4];
    uint out_start;
    uint out_nb[4];
    uint left;   // 0 or 1
    uint lower;  // 0 or 1
    uint unit;   // 0 or 1
    uint first;
    uint end;
};

// The coefficient of unknown j in equation i is A[i][j] where left (A X = B), else A[j][i] (X A = B).
float coefficient(uint a_matrix, uint i, uint j) {
    uint row = left != 0 ? i : j;
    uint column = left != 0 ? j : i;
    return load(a_matrix + column * a_nb[0] + row * a_nb[1]);
}

void solve(uint id) {
    uint along = left != 0 ? 1 : 0;   // the axis of B that the unknowns stand along
    uint across = left != 0 ? 0 : 1;  // the axis that counts right-hand sides
    uint n = b_ne[along];
    uint side = id % b_ne[across];
    uint i2 = id / b_ne[across] % b_ne[2];
    uint i3 = id / (b_ne[across] * b_ne[2]);
    uint a_matrix = a_start + i2 * a_nb[2] + i3 * a_nb[3];
    uint b_line = b_start + side * b_nb[across] + i2 * b_nb[2] + i3 * b_nb[3];
    uint out_line = out_start + side * out_nb[across] + i2 * out_nb[2] + i3 * out_nb[3];

    bool forward = left == lower;  // whether unknown 0 is the one that stands alone in its equation
    for (uint known = first; known < end; known++) {
        uint i = forward ? known : n - 1 - known;
        float value = load(b_line + i * b_nb[along]);
        for (uint k = 0; k < known; k++) {
            uint j = forward ? k : n - 1 - k;
            float x = load(out_line + j * out_nb[along]);
            value -= coefficient(a_matrix, i, j) * x;
        }
        if (unit == 0) {
            value /= coefficient(a_matrix, i, i);
        }
        store(out_line + i * out_nb[along], value);
    }
}

void main() {
    uint across = left != 0 ? 0 : 1;
    uint count = b_ne[across] * b_ne[2] * b_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        solve(id);
    }
}
