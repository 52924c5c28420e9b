"""The small ops around the delta nets in float32, every step a method that other kernels replace."""

from __future__ import annotations

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels.base import F32
from tests.kernels.rows import Rows


class Small(Rows):
    """tri, diag, pad, cont, cpy, sum_rows, l2_norm and ssm_conv, every operation rounded to float32."""

    def moved(self, case: Case, values: np.ndarray) -> np.ndarray:
        """Elements on their way through the kernel: native NumPy ones, uint16 bits for bfloat16."""
        return values

    # --- elements that are moved ---

    def tri(self, case: Case, buffers: Buffers) -> None:
        x = self.moved(case, self.read(buffers, "x"))
        self.write(buffers, "out", np.where(self.triangle(case), x, x.dtype.type(0)))

    def triangle(self, case: Case) -> np.ndarray:
        """Which elements of a matrix are kept."""
        n, kind = case.inputs["x"].shape[-1], str(case.params["kind"])
        kept = np.tri(n, n, 0 if kind.endswith("_diag") else -1, dtype=bool)
        return kept if kind.startswith("lower") else kept.T

    def diag(self, case: Case, buffers: Buffers) -> None:
        x = self.moved(case, self.read(buffers, "x"))[..., 0, :]
        out = self.blank(case, x)
        rows, columns = self.diagonal(x.shape[-1])
        out[..., rows, columns] = x[..., : len(rows)]
        self.write(buffers, "out", out)

    def blank(self, case: Case, x: np.ndarray) -> np.ndarray:
        """Zeros for the output."""
        return np.zeros(case.outputs["out"].shape, x.dtype)

    def diagonal(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the elements of a diagonal stand: rows and columns."""
        return np.arange(n), np.arange(n)

    def pad(self, case: Case, buffers: Buffers) -> None:
        x = self.moved(case, self.read(buffers, "x"))
        out = self.blank(case, x)
        out[tuple(slice(start, start + n) for start, n in zip(self.corner(case), x.shape, strict=True))] = x
        self.write(buffers, "out", out)

    def corner(self, case: Case) -> list[int]:
        """Where x starts in the output, outermost first."""
        return [int(case.params[f"lp{k}"]) for k in (3, 2, 1, 0)]

    def cont(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.moved(case, self.read(buffers, "x")))

    def cpy(self, case: Case, buffers: Buffers) -> None:
        x = np.ascontiguousarray(self.read(buffers, "x")).reshape(case.outputs["out"].shape)
        self.write(buffers, "out", self.moved(case, self.converted(case, x)))

    def converted(self, case: Case, x: np.ndarray) -> np.ndarray:
        came, goes = case.inputs["x"].dtype, case.dtype
        if came == goes:
            return x
        wide = (x.astype(np.uint32) << 16).view(np.float32) if came == "bf16" else x.astype(np.float32)
        return self.narrowed(goes, wide)

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        """float32 in another type, rounded to nearest even."""
        if goes == "bf16":
            bits = x.view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
            return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)
        return x.astype(np.float16) if goes == "f16" else x

    # --- elements that are computed ---

    def sum_rows(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.summed(self.read(buffers, "x"))[..., None])

    def summed(self, x: F32) -> F32:
        """Sums along the last axis, one element after the other."""
        total = np.zeros(x.shape[:-1], np.float32)
        for i in range(x.shape[-1]):
            total = self.added(total, x[..., i]) if i else np.array(x[..., 0])
        return total

    def l2_norm(self, case: Case, buffers: Buffers) -> None:
        x = self.read(buffers, "x")
        squares = self.summed(self.multiplied(x, x))[..., None]
        self.write(buffers, "out", self.normalised(case, x, squares))

    def normalised(self, case: Case, x: F32, squares: F32) -> F32:
        return self.divided(x, self.divisor(case, squares))

    def divisor(self, case: Case, squares: F32) -> F32:
        eps = np.float32(case.params["eps"])
        if case.params["eps_mode"] == "max":
            return np.maximum(self.rooted(squares), eps)
        return self.rooted(self.added(squares, np.broadcast_to(eps, squares.shape)))

    def ssm_conv(self, case: Case, buffers: Buffers) -> None:
        x, c = self.read(buffers, "x")[0], self.read(buffers, "c")[0, 0]
        self.write(buffers, "out", self.convolved(x, c, case.outputs["out"].shape[2]).swapaxes(1, 2)[None])

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        """Every channel with its filter: [n_s, d_inner, tokens]."""
        products = [self.multiplied(x[..., j : j + tokens], c[None, :, j, None]) for j in range(c.shape[-1])]
        return self.summed(np.stack(products, -1))
