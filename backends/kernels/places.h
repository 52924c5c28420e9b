// The four indices of an element from its flat one, innermost first.

struct indices {
    ulong i0;
    ulong i1;
    ulong i2;
    ulong i3;
};

// a / b. A GPU divides numbers of 64 bits many times as slowly as those of 32, so that most are divided as these.
DEVICE ulong quotient(ulong a, ulong b) {
    return (a | b) >> 32 == 0 ? (uint)a / (uint)b : a / b;
}

DEVICE struct indices indices_of(ulong id, ulong ne0, ulong ne1, ulong ne2) {
    const ulong row = quotient(id, ne0);
    const ulong matrix = quotient(row, ne1);
    const ulong stack = quotient(matrix, ne2);
    struct indices found;
    found.i0 = id - row * ne0;
    found.i1 = row - matrix * ne1;
    found.i2 = matrix - stack * ne2;
    found.i3 = stack;
    return found;
}
