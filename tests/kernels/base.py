"""Addressing that the kernels share. A kernel reads and writes its arguments through `read` and `write` only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from opconform.harness.model.buffers import GUARD, Buffers
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Backend

F32 = npt.NDArray[np.float32]


class Kernel(Backend):
    """A backend in this process: the method of the op's name computes it."""

    def __init__(self, device: str = "0", options: Mapping[str, str] | None = None) -> None:
        super().__init__(device, options or {})

    def supports(self, case: Case) -> str | None:
        return None if hasattr(self, case.op) else f"has no kernel for {case.op}"

    def run(self, case: Case, buffers: Buffers) -> None:
        with np.errstate(all="ignore"):
            getattr(self, case.op)(case, buffers)

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        """The elements of an argument as this kernel reads them."""
        return buffers.array(name)

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        """Store the elements of an output as this kernel stores them."""
        buffers.array(name)[...] = values


def words(buffers: Buffers, name: str, strides: tuple[int, ...], offset: int) -> npt.NDArray[np.int64]:
    """The places that (wrong) strides and a (wrong) offset reach, in elements from the start of the arena."""
    slot = buffers.plan.slots[name]
    address = np.full((), slot.start + offset, dtype=np.int64)
    for size, stride in zip(slot.layout.shape, strides, strict=True):
        address = address[..., None] + np.arange(size) * stride
    return address // slot.layout.type.itemsize


def arena(buffers: Buffers, name: str) -> np.ndarray:
    """The whole arena in the type of an argument's elements."""
    return buffers.memory.view(buffers.plan.slots[name].layout.type.native)


def gather(buffers: Buffers, name: str, strides: tuple[int, ...], offset: int) -> np.ndarray:
    """What stands at those places."""
    return peek(buffers, name, words(buffers, name, strides, offset))


def peek(buffers: Buffers, name: str, index: npt.NDArray[np.int64]) -> np.ndarray:
    """The elements of the arena at `index`. Beyond the guards of the argument there is more of their poison, as if each
    argument had memory of its own."""
    slot = buffers.plan.slots[name]
    size = slot.layout.type.itemsize
    first, last = (slot.start - GUARD) // size, (slot.start + slot.size + GUARD) // size - 1
    return arena(buffers, name)[np.clip(index, first, last)]


def places(case: Case) -> tuple[npt.NDArray[np.intp], ...]:
    """ACC and SET: the index in `a` that each element of `b` meets (one array per axis, of b's shape)."""
    a, b, params = case.inputs["a"], case.inputs["b"], case.params
    size = b.type.itemsize
    flat = np.full((), int(params["offset"]) // size, dtype=np.int64)
    for extent, stride in zip(b.shape, (params["nb3"], params["nb2"], params["nb1"], size), strict=True):
        flat = flat[..., None] + np.arange(extent) * (int(stride) // size)
    # Flat: NumPy 2.4.6 gives wrong indices for an array of more than 8,193 rows of one element.
    return tuple(index.reshape(flat.shape) for index in np.unravel_index(flat.reshape(-1), a.shape))


def lines(case: Case, x: np.ndarray) -> np.ndarray:
    """CUMSUM: a view of `x` with the summed axis first, in the order of summation."""
    x = np.moveaxis(x, len(x.shape) - 1 - int(case.params["axis"]), 0)
    return x[::-1] if case.params["reverse"] else x


def is_upper(case: Case) -> bool:
    """SOLVE_TRI: whether the left-sided form of the system is upper triangular (X A = B is Aᵀ Xᵀ = Bᵀ)."""
    return bool(case.params["lower"]) != bool(case.params["left"])


def lower_left(case: Case, a: np.ndarray) -> np.ndarray:
    """SOLVE_TRI: a view of `a` as the lower triangular matrix of a left-sided system."""
    a = a if case.params["left"] else a.swapaxes(-1, -2)
    return a[..., ::-1, ::-1] if is_upper(case) else a


def to_left(case: Case, b: np.ndarray) -> np.ndarray:
    """SOLVE_TRI: a view of `b` or of the solution, as it stands in that system."""
    b = b if case.params["left"] else b.swapaxes(-1, -2)
    return b[..., ::-1, :] if is_upper(case) else b


def below_diagonal(n: int) -> npt.NDArray[np.bool_]:
    """The strict lower triangle of an n by n matrix."""
    return _small_triangle(n) if n <= 128 else np.tri(n, n, -1, dtype=bool)


@lru_cache(maxsize=128)
def _small_triangle(n: int) -> npt.NDArray[np.bool_]:
    return np.tri(n, n, -1, dtype=bool)


@dataclass(frozen=True)
class Fault:
    """A wrong kernel for an op, and the hint that must be given ("": none is known)."""

    op: str
    kernel: type[Kernel]
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.kernel.__name__}"
