// What both delta-net ops do.

// out = x / sqrt(sum of x^2 + eps) by all lanes of a row, where out is packed.
DEVICE void normalise(float eps, ulong keys, __global const float *x, ulong x_nb0, __global float *out) {
    float part = 0.0f;
    for (ulong i = lane(); i < keys; i += lanes()) {
        const float value = x[i * x_nb0 / 4];
        part += value * value;
    }
    const float length = sqrt(sum_of_lanes(part) + eps);
    for (ulong i = lane(); i < keys; i += lanes()) {
        out[i] = x[i * x_nb0 / 4] / length;
    }
}
