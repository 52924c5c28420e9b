#version 450
#extension GL_GOOGLE_include_directive : require

// SSM_CONV: out[s,t,i] = sum over the taps j of x[s,i,t+j] * c[i,j], in float32.
//
// One invocation computes one element. Axes innermost first: out (channel, token, sequence), x (token, channel,
// sequence), c (tap, channel). A dispatch takes the taps from `first` to before `end` only, and adds to the sum that the
// dispatch before it left in out.

#include "memory.glsl"

// Every *_start and *_nb is in bytes, every *_ne in elements, innermost first.
layout(push_constant) uniform Arguments {
    uint out_ne[4];
    uint out_start;
    uint out_nb[4];
    uint x_ne[4];
    uint x_start;
    uint x_nb[4];
    uint c_ne[4];
    uint c_start;
    uint c_nb[4];
    uint first;
    uint end;
};

void convolve(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint window = x_start + i1 * x_nb[0] + i0 * x_nb[1] + i2 * x_nb[2];  // starts at token i1
    uint filter_start = c_start + i0 * c_nb[1];

    float sum = first > 0 ? load(to) : 0.0;
    for (uint j = first; j < end; j++) {
        float value = load(window + j * x_nb[0]);
        sum += value * load(filter_start + j * c_nb[0]);
    }
    store(to, sum);
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        convolve(id);
    }
}
