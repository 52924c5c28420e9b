"""The ops as other libraries compute them: LAPACK and BLAS through NumPy, and torch's own functions."""

from __future__ import annotations

import warnings

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels.base import F32, Kernel, lines, lower_left, to_left
from tests.kernels.correct import Correct
from tests.kernels.mla import Mla


class Lapack(Correct):
    """SOLVE_TRI by sgesv: a factorisation that finds the triangle it was given, and two substitutions.

    The second one multiplies the zeros above the diagonal; where a matrix is NaN, substitution has the solution.
    """

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        n = a.shape[-1]
        triangle = np.where(np.tri(n, n, -int(bool(case.params["unit"])), dtype=bool), a, np.float32(0))
        whole = triangle + np.eye(n, dtype=np.float32) if case.params["unit"] else triangle
        if not np.isfinite(whole).all() or not np.isfinite(b).all() or not b.size:
            return super().solved(case, a, b)
        return np.linalg.solve(whole, b)


class Blas(Correct):
    """Sums as products with ones (sgemv), products of sums by einsum, norms by LAPACK's way of NumPy."""

    def summed(self, x: F32) -> F32:
        return np.ascontiguousarray(x) @ np.ones(x.shape[-1], np.float32)

    def inclusive(self, case: Case, x: F32) -> F32:
        """Prefix sums as a product with a triangle of ones."""
        ones = np.tri(len(x), dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            product = np.tensordot(ones, np.where(np.isfinite(x), x, np.float32(0)), 1)
        return np.where(np.isfinite(x).all(0), product, np.add.accumulate(x, axis=0, dtype=np.float32))

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        windows = np.lib.stride_tricks.sliding_window_view(x, c.shape[-1], -1)
        found: F32 = np.einsum("sitj,ij->sit", windows, c, dtype=np.float32)
        return found


class NumpyWays(Correct):
    """What one writes in NumPy without a thought."""

    def summed(self, x: F32) -> F32:
        return np.sum(x, axis=-1, dtype=np.float32)

    def inclusive(self, case: Case, x: F32) -> F32:
        return np.cumsum(x, axis=0, dtype=np.float32)

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        found = np.zeros((*x.shape[:-1], tokens), np.float32)
        for s, i in np.ndindex(*x.shape[:-1]):
            found[s, i] = np.convolve(x[s, i], c[i, ::-1], "valid") if tokens else 0
        return found


class Torch(Kernel):
    """torch's own functions on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        self.torch = torch
        torch.set_num_threads(1)

    def tensor(self, buffers: Buffers, name: str) -> np.ndarray:
        return self.torch.from_numpy(np.array(self.read(buffers, name)))  # type: ignore[no-any-return]

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        x = np.array(lines(case, self.read(buffers, "x")))
        out = np.empty(case.outputs["out"].shape, np.float32)
        if out.size:
            sums = self.torch.from_numpy(x).cumsum(0).numpy()
            exclusive = np.concatenate([np.zeros_like(sums[:1]), sums[:-1]])
            lines(case, out)[...] = exclusive if case.params["exclusive"] else sums
        self.write(buffers, "out", out)

    def sum_rows(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.tensor(buffers, "x").sum(-1, keepdim=True).numpy())

    def l2_norm(self, case: Case, buffers: Buffers) -> None:
        x, eps = self.tensor(buffers, "x"), float(case.params["eps"])
        if case.params["eps_mode"] == "max":
            found = self.torch.nn.functional.normalize(x, dim=-1, eps=eps)
        else:
            found = x * self.torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
        self.write(buffers, "out", found.numpy())

    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        a, b = (np.array(f(case, self.read(buffers, n))) for f, n in ((lower_left, "a"), (to_left, "b")))
        tensors = (self.torch.from_numpy(np.ascontiguousarray(x)) for x in (np.tril(a), b))
        found = self.torch.linalg.solve_triangular(*tensors, upper=False, unitriangular=bool(case.params["unit"]))
        out = np.empty(case.outputs["out"].shape, np.float32)
        to_left(case, out)[...] = found.numpy()
        self.write(buffers, "out", out)

    def ssm_conv(self, case: Case, buffers: Buffers) -> None:
        x, c = self.tensor(buffers, "x")[0], self.tensor(buffers, "c")[0, 0]
        if not case.outputs["out"].size:
            return
        found = self.torch.nn.functional.conv1d(x, c[:, None], groups=len(c))
        self.write(buffers, "out", found.transpose(1, 2)[None].numpy())

    def add(self, case: Case, buffers: Buffers) -> None:
        self.elementwise(case, buffers, lambda a, b: a + b)

    def mul(self, case: Case, buffers: Buffers) -> None:
        self.elementwise(case, buffers, lambda a, b: a * b)

    def elementwise(self, case: Case, buffers: Buffers, function) -> None:  # type: ignore[no-untyped-def]
        a, b = self.tensor(buffers, "a"), self.tensor(buffers, "b")
        repeats = [n // max(m, 1) for n, m in zip(a.shape, b.shape)]
        self.write(buffers, "out", function(a, b.repeat(repeats)).numpy())  # type: ignore[attr-defined]

    def exp(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.tensor(buffers, "x").exp().numpy())  # type: ignore[attr-defined]

    def silu(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.torch.nn.functional.silu(self.tensor(buffers, "x")).numpy())

    def norm(self, case: Case, buffers: Buffers) -> None:
        x = self.tensor(buffers, "x")
        if x.size:
            found = self.torch.nn.functional.layer_norm(x, x.shape[-1:], eps=float(case.params["eps"]))
            self.write(buffers, "out", found.numpy())


class TorchAttention(Mla):
    """Attention on the concatenated rows by torch's scaled_dot_product_attention, with the scale on the query."""

    def computed(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        import torch

        x = {name: self.f32(case, buffers, name) for name in case.inputs}
        c, k_pe = self.cache(case, x["c_kv"]), self.cache(case, x["k_pe"])
        seen = np.broadcast_to(self.seen(case, x), (*x["q_nope"].shape[:3], c.shape[2]))
        mask = np.where(seen, np.broadcast_to(self.mask(case, x), seen.shape), np.float32(-np.inf))
        query = np.concatenate([x["q_nope"] @ x["w_uk"], x["q_pe"]], -1)
        rows, value = np.concatenate([c, k_pe], -1), c
        heads = query.shape[1]
        key, value = (np.repeat(y, heads, 1) for y in (rows, value))
        scale = float(np.float32(case.params["scale"]) * np.float32(case.params["k_scale"]))
        tensors = [torch.from_numpy(np.array(y)) for y in (query, key, value, mask)]
        if c.shape[2]:
            found = torch.nn.functional.scaled_dot_product_attention(*tensors[:3], attn_mask=tensors[3], scale=scale)
            context = found.numpy() * self.v_scale(case)
        else:
            context = np.zeros((*query.shape[:3], c.shape[3]), np.float32)
        context = np.where((mask > -np.inf).any(-1, keepdims=True) | np.isnan(mask).any(-1, keepdims=True), context, 0)
        return {"out": (context.astype(np.float32) @ x["w_uv"]).swapaxes(1, 2)}
