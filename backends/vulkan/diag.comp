#version 450

// DIAG: square matrices with the rows of x as their diagonals. Elements of 2 or 4 bytes are moved as bits.

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
    uint itemsize;  // 2 or 4
};

uint load(uint from) {
    uint word = words[from / 4];
    if (itemsize == 4) {
        return word;
    }
    return from % 4 == 0 ? word & 0xFFFFu : word >> 16;
}

// A half word is written without its other half, which may belong to another invocation or to nobody (a guard): no
// invocation but this one changes these 16 bits, so that clearing and setting them need not be one step.
void store(uint to, uint bits) {
    if (itemsize == 4) {
        words[to / 4] = bits;
        return;
    }
    uint shift = to % 4 == 0 ? 0 : 16;
    atomicAnd(words[to / 4], ~(0xFFFFu << shift));
    atomicOr(words[to / 4], bits << shift);
}

void write(uint id) {
    uint i0 = id % out_ne[0];
    uint i1 = id / out_ne[0] % out_ne[1];
    uint i2 = id / (out_ne[0] * out_ne[1]) % out_ne[2];
    uint i3 = id / (out_ne[0] * out_ne[1] * out_ne[2]);
    uint to = out_start + i0 * out_nb[0] + i1 * out_nb[1] + i2 * out_nb[2] + i3 * out_nb[3];
    uint from = x_start + i0 * x_nb[0] + i2 * x_nb[2] + i3 * x_nb[3];  // x has one row

    store(to, i0 == i1 ? load(from) : 0);
}

void main() {
    uint count = out_ne[0] * out_ne[1] * out_ne[2] * out_ne[3];
    uint invocations = gl_NumWorkGroups.x * gl_WorkGroupSize.x;

    for (uint id = gl_GlobalInvocationID.x; id < count; id += invocations) {
        write(id);
    }
}
