#version 450
#extension GL_GOOGLE_include_directive : require

// Row ops: sums over a row of x, and from them every element of the row of out, or its only one. What is summed, and
// what becomes of it, says the op's row in families.py. In float32, rounded once to the type of out.
//
// One invocation adds the elements of one row one by one: n terms cost n - 1 roundings. A dispatch of SUM adds those
// from `first` to before `end` only, to what the dispatch before it left in `sums` (a float32 for each row); SECOND_SUM
// does the same for the second sum. OUT then writes every element; where a row of out has one, the last SUM does.

const uint SUM = 0;
const uint SECOND_SUM = 1;
const uint OUT = 2;

layout(constant_id = 0) const uint part = 0;

#include "memory.glsl"
#include "formula.h"

// Every *_start and *_nb is in bytes, every *_ne in elements, innermost first.
layout(push_constant) uniform Arguments {
    uint out_ne[4];
    uint out_start;
    uint out_nb[4];
    uint out_type;  // TYPE_*
    uint x_ne[4];
    uint x_start;
    uint x_nb[4];
    uint x_type;
    float parameters[2];
    uint sums_start;
    uint second_sums_start;
    uint first;
    uint end;
};

void add(uint id) {
    uint i1 = id % x_ne[1];
    uint i2 = id / x_ne[1] % x_ne[2];
    uint i3 = id / (x_ne[1] * x_ne[2]);
    uint x_row = x_start + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];
    uint out_row = out_start + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];

    float sum = first > 0 ? load(sums_start + 4 * id) : 0.0;
    for (uint n = first; n < end; n++) {
        sum += addend(load_typed(x_type, x_row + n * x_nb[0]));
    }
    if (REDUCES == 1 && end == x_ne[0]) {
        store_typed(out_type, out_row, formula(0.0, sum, 0.0, float(x_ne[0]), parameters[0], parameters[1]));
    } else {
        store(sums_start + 4 * id, sum);
    }
}

void add_again(uint id) {
    uint i1 = id % x_ne[1];
    uint i2 = id / x_ne[1] % x_ne[2];
    uint i3 = id / (x_ne[1] * x_ne[2]);
    uint x_row = x_start + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];

    float sum = load(sums_start + 4 * id);
    float second_sum = first > 0 ? load(second_sums_start + 4 * id) : 0.0;
    for (uint n = first; n < end; n++) {
        second_sum += second_addend(load_typed(x_type, x_row + n * x_nb[0]), sum, float(x_ne[0]));
    }
    store(second_sums_start + 4 * id, second_sum);
}

void write(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint from = x_start + i0 * x_nb[0] + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];
    uint row = id / out_ne[0];

    float sum = load(sums_start + 4 * row);
    float second_sum = SUMS == 2 ? load(second_sums_start + 4 * row) : 0.0;
    float x = load_typed(x_type, from);
    store_typed(out_type, to, formula(x, sum, second_sum, float(x_ne[0]), parameters[0], parameters[1]));
}

void main() {
    uint rows = x_ne[1] * x_ne[2] * x_ne[3];
    uint count = part == OUT ? rows * out_ne[0] : rows;
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        if (part == SUM) {
            add(id);
        } else if (part == SECOND_SUM) {
            add_again(id);
        } else {
            write(id);
        }
    }
}
