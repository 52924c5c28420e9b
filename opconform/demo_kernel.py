"""A kernel for ACC, a fault in it, and the same without: what `opconform demo` shows, and a backend to start from.

opconform test --backend demo_kernel.py:Broken --op acc
opconform test --backend demo_kernel.py:Mended --op acc
"""

from __future__ import annotations

import numpy as np

from opconform import Backend, Buffers, Case


class Broken(Backend):
    """ACC in NumPy: out = a; out.view(nb1, nb2, nb3, offset) += b. As llama.cpp's Vulkan kernel in January 2026."""

    name = "demo"

    def supports(self, case: Case) -> str | None:
        return None if case.op == "acc" else f"no kernel for {case.op}"

    def run(self, case: Case, buffers: Buffers) -> None:
        a, b, out = buffers.array("a"), buffers.array("b"), buffers.array("out")
        nb1, nb2, nb3, offset = (int(case.params[name]) for name in ("nb1", "nb2", "nb3", "offset"))
        n3, n2, n1, n0 = b.shape
        n3 = self.slices(n3)
        i3, i2, i1, i0 = np.ogrid[:n3, :n2, :n1, :n0]
        place = (offset + i3 * nb3 + i2 * nb2 + i1 * nb1) // a.itemsize + i0
        flat = np.array(a).reshape(-1)
        flat[place] += b[:n3]
        out[...] = flat.reshape(a.shape)

    def slices(self, n3: int) -> int:
        """How many slices along the outermost dimension of b are added."""
        return min(n3, 1)


class Mended(Broken):
    """The same for every slice."""

    def slices(self, n3: int) -> int:
        return n3
