// SOLVE_TRI: A X = B (left) or X A = B for a triangular n x n matrix A, in float32.
//
// One work-item solves one right-hand side by substitution: a column of B where left, else a row. Of A it reads the
// named triangle alone, and not the diagonal where unit.

#include "api.h"

// Every *_start and *_nb is in bytes from the start of the argument's buffer, b_ne in elements; innermost first
// (columns, rows).
struct arguments {
    ulong b_ne[4];
    ulong a_start;
    ulong a_nb[4];
    ulong b_start;
    ulong b_nb[4];
    ulong out_start;
    ulong out_nb[4];
    ulong left;   // 0 or 1
    ulong lower;  // 0 or 1
    ulong unit;   // 0 or 1
};

__kernel void solve_tri(const struct arguments p, __global const float *a, __global const float *b, __global float *out) {
    const int along = p.left ? 1 : 0;   // the axis of B that the unknowns stand along
    const int across = p.left ? 0 : 1;  // the axis that counts right-hand sides
    const ulong id = get_global_id(0);
    if (id >= p.b_ne[across] * p.b_ne[2] * p.b_ne[3]) {
        return;
    }
    const ulong n = p.b_ne[along];
    const ulong side = id % p.b_ne[across];
    const ulong i2 = id / p.b_ne[across] % p.b_ne[2];
    const ulong i3 = id / (p.b_ne[across] * p.b_ne[2]);
    const ulong a_matrix = p.a_start + i2 * p.a_nb[2] + i3 * p.a_nb[3];
    const ulong b_line = p.b_start + side * p.b_nb[across] + i2 * p.b_nb[2] + i3 * p.b_nb[3];
    const ulong out_line = p.out_start + side * p.out_nb[across] + i2 * p.out_nb[2] + i3 * p.out_nb[3];

    // The coefficient of unknown j in equation i is A[i][j] where left (A X = B), else A[j][i] (X A = B).
    const ulong equation_nb = p.left ? p.a_nb[1] : p.a_nb[0];
    const ulong unknown_nb = p.left ? p.a_nb[0] : p.a_nb[1];

    const bool forward = p.left == p.lower;  // whether unknown 0 is the one that stands alone in its equation
    for (ulong known = 0; known < n; known++) {
        const ulong i = forward ? known : n - 1 - known;
        float value = b[(b_line + i * p.b_nb[along]) / 4];
        for (ulong k = 0; k < known; k++) {
            const ulong j = forward ? k : n - 1 - k;
            const float coefficient = a[(a_matrix + i * equation_nb + j * unknown_nb) / 4];
            value -= coefficient * out[(out_line + j * p.out_nb[along]) / 4];
        }
        if (!p.unit) {
            value /= a[(a_matrix + i * equation_nb + i * unknown_nb) / 4];
        }
        out[(out_line + i * p.out_nb[along]) / 4] = value;
    }
}
