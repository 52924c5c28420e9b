// SOLVE_TRI: A X = B (left) or X A = B for a triangular n x n matrix A, in float32.
//
// One thread solves one right-hand side by substitution: a column of B where left, else a row. Of A it reads the named
// triangle alone, and not the diagonal where unit.

// Every *_start and *_nb is in bytes from the start of the argument's buffer, b_ne in elements; innermost first
// (columns, rows).
struct arguments {
    size_t b_ne[4];
    size_t a_start;
    size_t a_nb[4];
    size_t b_start;
    size_t b_nb[4];
    size_t out_start;
    size_t out_nb[4];
    size_t left;   // 0 or 1
    size_t lower;  // 0 or 1
    size_t unit;   // 0 or 1
};

extern "C" __global__ void solve_tri(const arguments p, const float *a, const float *b, float *out) {
    const size_t n = p.left ? p.b_ne[1] : p.b_ne[0];      // unknowns
    const size_t sides = p.left ? p.b_ne[0] : p.b_ne[1];  // right-hand sides
    const size_t id = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= sides * p.b_ne[2] * p.b_ne[3]) {
        return;
    }
    const size_t side = id % sides;
    const size_t i2 = id / sides % p.b_ne[2];
    const size_t i3 = id / (sides * p.b_ne[2]);

    // The coefficient of unknown j in equation i is A[i][j] where left (A X = B), else A[j][i] (X A = B).
    const size_t equation_nb = p.left ? p.a_nb[1] : p.a_nb[0];
    const size_t unknown_nb = p.left ? p.a_nb[0] : p.a_nb[1];
    const size_t b_nb = p.left ? p.b_nb[1] : p.b_nb[0];  // from one unknown to the next
    const size_t out_nb = p.left ? p.out_nb[1] : p.out_nb[0];
    const size_t a_matrix = p.a_start + i2 * p.a_nb[2] + i3 * p.a_nb[3];
    const size_t b_line = p.b_start + side * (p.left ? p.b_nb[0] : p.b_nb[1]) + i2 * p.b_nb[2] + i3 * p.b_nb[3];
    const size_t out_line =
        p.out_start + side * (p.left ? p.out_nb[0] : p.out_nb[1]) + i2 * p.out_nb[2] + i3 * p.out_nb[3];

    const bool forward = p.left == p.lower;  // whether unknown 0 is the one that stands alone in its equation
    for (size_t known = 0; known < n; known++) {
        const size_t i = forward ? known : n - 1 - known;
        float value = b[(b_line + i * b_nb) / 4];
        for (size_t k = 0; k < known; k++) {
            const size_t j = forward ? k : n - 1 - k;
            const float coefficient = a[(a_matrix + i * equation_nb + j * unknown_nb) / 4];
            value -= coefficient * out[(out_line + j * out_nb) / 4];
        }
        if (!p.unit) {
            value /= a[(a_matrix + i * equation_nb + i * unknown_nb) / 4];
        }
        out[(out_line + i * out_nb) / 4] = value;
    }
}
