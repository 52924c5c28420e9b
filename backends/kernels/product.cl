// The product of two n x n matrices of float32, c = a b: what an op that multiplies is measured by where no library of
// the device's multiplies. Rows lie one after another, and n is a multiple of 4.
//
// One work-item computes 4 x 4 elements, whose sums it keeps in registers: plain, and far from what a library reaches.

#include "api.h"

__kernel void product(const ulong n, __global const float *a, __global const float *b, __global float *c) {
    const ulong id = get_global_id(0);
    if (id >= n / 4 * (n / 4)) {
        return;
    }
    const ulong column = id % (n / 4) * 4;
    const ulong row = id / (n / 4) * 4;

    float sums[4][4] = {{0.0f}};
    for (ulong k = 0; k < n; k++) {
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++) {
                sums[i][j] += a[(row + i) * n + k] * b[k * n + column + j];
            }
        }
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            c[(row + i) * n + column + j] = sums[i][j];
        }
    }
}
