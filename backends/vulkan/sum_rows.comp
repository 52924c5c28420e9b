#version 450

// SUM_ROWS: the sum of each row, in float32.
//
// One invocation adds the elements of one row one by one: n terms cost n - 1 roundings. A dispatch adds those from
// `first` to before `end` only, to the sum that the dispatch before it left in out.

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
    uint first;
    uint end;
};

void add(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint row = x_start + i1 * x_nb[1] + i2 * x_nb[2] + i3 * x_nb[3];

    float sum = first > 0 ? uintBitsToFloat(words[to / 4]) : 0.0;
    for (uint n = first; n < end; n++) {
        sum += uintBitsToFloat(words[(row + n * x_nb[0]) / 4]);
    }
    words[to / 4] = floatBitsToUint(sum);
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        add(id);
    }
}
