#version 450
#extension GL_GOOGLE_include_directive : require

// CUMSUM: out_i = sum of x_j over j <= i (exclusive: j < i) along one axis, from the far end where reverse; float32.
//
// One invocation walks one line along the axis and adds the elements one by one: m terms cost m - 1 roundings. A dispatch
// walks from place `first` to before `end` only, and goes on from the sum that the dispatch before it left in out.

#include "memory.glsl"

// Every *_start and *_nb is in bytes, x_ne in elements, innermost first.
layout(push_constant) uniform Arguments {
    uint x_ne[4];
    uint x_start;
    uint x_nb[4];
    uint out_start;
    uint out_nb[4];
    uint axis;       // 0 is the innermost
    uint exclusive;  // 0 or 1
    uint reverse;    // 0 or 1
    uint first;
    uint end;
};

uint place(uint n) {
    return reverse != 0 ? x_ne[axis] - 1 - n : n;
}

void walk(uint id, uint lines_ne[4]) {
    uint i0 = id % lines_ne[0];
    uint i1 = id / lines_ne[0] % lines_ne[1];
    uint i2 = id / (lines_ne[0] * lines_ne[1]) % lines_ne[2];
    uint i3 = id / (lines_ne[0] * lines_ne[1] * lines_ne[2]);
    uint x_line = x_start + i0 * x_nb[0] + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];
    uint out_line = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];

    float sum = 0.0;
    if (first > 0) {
        uint last = place(first - 1);
        sum = load(out_line + last * out_nb[axis]);
        if (exclusive != 0) {
            sum += load(x_line + last * x_nb[axis]);
        }
    }
    for (uint n = first; n < end; n++) {
        uint from = x_line + place(n) * x_nb[axis];
        uint to = out_line + place(n) * out_nb[axis];
        float before = sum;
        sum += load(from);
        store(to, exclusive != 0 ? before : sum);
    }
}

void main() {
    uint lines_ne[4] = x_ne;  // there is a line for every place along the other axes
    lines_ne[axis] = 1;
    uint count = lines_ne[0] * lines_ne[1] * lines_ne[2] * lines_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        walk(id, lines_ne);
    }
}
