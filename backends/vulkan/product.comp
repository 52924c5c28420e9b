#version 450

// The product of two n x n matrices of float32, c = a b: what an op that multiplies is measured by, for Vulkan has no
// library that multiplies. Rows lie one after another, and n is a multiple of 4.
//
// One invocation computes 4 x 4 elements, whose sums it keeps in registers: plain, and far from what a library reaches.
// The loop makes n turns in all; llvmpipe ends any loop after 65,535.

layout(local_size_x = 64) in;

layout(std430, binding = 0) readonly buffer A { float a[]; };
layout(std430, binding = 1) readonly buffer B { vec4 b[]; };
layout(std430, binding = 2) writeonly buffer C { vec4 c[]; };

layout(constant_id = 0) const uint n = 4;

void main() {
    uint id = gl_GlobalInvocationID.x;
    uint wide = n / 4;  // vectors in a row
    if (id >= wide * wide) {
        return;
    }
    uint column = id % wide;
    uint row = id / wide * 4;

    vec4 sums0 = vec4(0.0), sums1 = vec4(0.0), sums2 = vec4(0.0), sums3 = vec4(0.0);
    for (uint k = 0; k < n; k++) {
        vec4 its = b[k * wide + column];
        sums0 += a[row * n + k] * its;
        sums1 += a[(row + 1) * n + k] * its;
        sums2 += a[(row + 2) * n + k] * its;
        sums3 += a[(row + 3) * n + k] * its;
    }
    c[row * wide + column] = sums0;
    c[(row + 1) * wide + column] = sums1;
    c[(row + 2) * wide + column] = sums2;
    c[(row + 3) * wide + column] = sums3;
}
