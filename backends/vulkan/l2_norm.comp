#version 450

// L2_NORM: rows over max(norm, eps), or over sqrt(sum of squares + eps), in float32.
//
// Two kinds of dispatches: SQUARES sums the squares of each row, those from `first` to before `end`, into `squares` (a
// float32 for each row); DIVIDE then writes every element.

const uint SQUARES = 0;
const uint DIVIDE = 1;

layout(local_size_x = 64) in;

// All memory of the case; every *_start and *_nb below is in bytes, every *_ne in elements, innermost first.
layout(std430, binding = 0) buffer Memory { uint words[]; };

layout(push_constant) uniform Arguments {
    uint out_ne[4];
    uint out_start;
    uint out_nb[4];
    uint x_ne[4];
    uint x_start;
    uint x_nb[4];
    uint part;     // SQUARES or DIVIDE
    uint squares;  // where the sums stand
    uint eps;      // the bits of a float32
    uint added;    // 0: eps is the least divisor; 1: eps is added to the sum of squares
    uint first;
    uint end;
};

void add_squares(uint row) {
    uint i1 = row % x_ne[1];
    uint i2 = row / x_ne[1] % x_ne[2];
    uint i3 = row / (x_ne[1] * x_ne[2]);
    uint from = x_start + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];

    float sum = first > 0 ? uintBitsToFloat(words[squares / 4 + row]) : 0.0;
    for (uint n = first; n < end; n++) {
        float value = uintBitsToFloat(words[(from + n * x_nb[0]) / 4]);
        sum += value * value;
    }
    words[squares / 4 + row] = floatBitsToUint(sum);
}

void divide(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint from = x_start + i0 * x_nb[0] + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];
    uint row = id / x_ne[0];

    float sum = uintBitsToFloat(words[squares / 4 + row]);
    float least = uintBitsToFloat(eps);
    float divisor = added != 0 ? sqrt(sum + least) : max(sqrt(sum), least);
    words[to / 4] = floatBitsToUint(uintBitsToFloat(words[from / 4]) / divisor);
}

void main() {
    uint rows = x_ne[1] * x_ne[2] * x_ne[3];
    uint count = part == SQUARES ? rows : rows * x_ne[0];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        if (part == SQUARES) {
            add_squares(id);
        } else {
            divide(id);
        }
    }
}
