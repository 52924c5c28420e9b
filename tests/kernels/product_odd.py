"""Products of matrices, and the convolutions that are made of them, in other orders of summation: right ones, and wrong
ones."""

from __future__ import annotations

import numpy as np

from tests.kernels.base import F32
from tests.kernels.plain import Plain, product_of

OPS = (
    *("mul_mat", "mul_mat_id", "out_prod", "mul_mat_add", "mul_mat_add_add", "mul_mat_id_mul", "mul_mat_id_add_id_mul"),
    *("conv_2d", "conv_2d_dw", "conv_3d", "conv_transpose_1d", "conv_transpose_2d"),
)


def terms(y: F32, w: F32) -> F32:
    """All products, rounded: [.., n, m, k]."""
    return y[..., :, None, :] * w[..., None, :, :]


def in_turn(x: F32) -> F32:
    """The sum over the last axis, from its first element to its last."""
    return np.add.accumulate(x, -1)[..., -1] if x.shape[-1] else np.zeros(x.shape[:-1], np.float32)


class Blas(Plain):
    """sgemm."""

    def product_of(self, y: F32, w: F32) -> F32:
        return np.ascontiguousarray(y) @ np.ascontiguousarray(w).swapaxes(-1, -2)


class Einsum(Plain):
    def product_of(self, y: F32, w: F32) -> F32:
        found: F32 = np.einsum("...nk,...mk->...nm", y, w)
        return found


class TorchProduct(Plain):
    def product_of(self, y: F32, w: F32) -> F32:
        import torch

        torch.set_num_threads(1)
        one, other = (torch.from_numpy(np.ascontiguousarray(x)) for x in (y, w))
        found: F32 = torch.matmul(one, other.transpose(-1, -2)).numpy()
        return found


class Backwards(Plain):
    def product_of(self, y: F32, w: F32) -> F32:
        return product_of(y[..., ::-1], w[..., ::-1])


class Fused(Plain):
    """Fused multiply-adds: float64 holds the product, and its sum with a float32 is rounded to it all but exactly."""

    def product_of(self, y: F32, w: F32) -> F32:
        total = np.zeros((*np.broadcast_shapes(y.shape[:-2], w.shape[:-2]), y.shape[-2], w.shape[-2]), np.float32)
        for k in range(y.shape[-1]):
            exact = y[..., :, None, k].astype(np.float64) * w[..., None, :, k]
            total = (total + exact).astype(np.float32)
        return total


class Wide(Plain):
    """Sums in float64."""

    def product_of(self, y: F32, w: F32) -> F32:
        wide = y.astype(np.float64) @ w.astype(np.float64).swapaxes(-1, -2)
        return wide.astype(np.float32)


class Pairwise(Plain):
    def product_of(self, y: F32, w: F32) -> F32:
        x = terms(y, w)
        while x.shape[-1] > 1:
            half = x.shape[-1] // 2
            pairs = x[..., : 2 * half : 2] + x[..., 1 : 2 * half : 2]
            x = np.concatenate([pairs, x[..., 2 * half :]], -1)
        return in_turn(x)


class Lanes(Plain):
    """Eight sums side by side, as vector units have them."""

    def product_of(self, y: F32, w: F32) -> F32:
        x = terms(y, w)
        lanes = [in_turn(x[..., lane::8]) for lane in range(min(8, x.shape[-1]))]
        return in_turn(np.stack(lanes, -1)) if lanes else in_turn(x)


class SplitRows(Plain):
    """Tiles of 32 products, each with a sum of its own."""

    def product_of(self, y: F32, w: F32) -> F32:
        x = terms(y, w)
        tiles = [in_turn(x[..., start : start + 32]) for start in range(0, x.shape[-1], 32)]
        return in_turn(np.stack(tiles, -1)) if tiles else in_turn(x)


class PositiveFirst(Plain):
    """All positive products before the negative ones: of all orders the one with the largest partial sums."""

    def product_of(self, y: F32, w: F32) -> F32:
        return in_turn(np.sort(terms(y, w), -1)[..., ::-1])


class NegativeFirst(Plain):
    def product_of(self, y: F32, w: F32) -> F32:
        return in_turn(np.sort(terms(y, w), -1))


class Compensated(Plain):
    """Kahan's sum."""

    def product_of(self, y: F32, w: F32) -> F32:
        x = terms(y, w)
        total = lost = np.zeros(x.shape[:-1], np.float32)
        for k in range(x.shape[-1]):
            corrected = x[..., k] - lost
            larger = total + corrected
            plain = ~np.isfinite(larger)
            lost = np.where(plain, np.float32(0), (larger - total) - corrected)
            total = larger
        return total


RIGHT = (
    *(Plain, Blas, Einsum, Backwards, Fused, Wide, Pairwise, Lanes, SplitRows, PositiveFirst, NegativeFirst),
    *(Compensated, TorchProduct),
)


# --- wrong ones ---


class LastLeftOut(Plain):
    def product_of(self, y: F32, w: F32) -> F32:
        return product_of(y[..., :-1], w[..., :-1])


class HalfOperands(Plain):
    """Both operands in float16."""

    def product_of(self, y: F32, w: F32) -> F32:
        one, other = (x.astype(np.float16).astype(np.float32) for x in (y, w))
        return product_of(one, other)


class HalfSums(Plain):
    """The sum in float16."""

    def product_of(self, y: F32, w: F32) -> F32:
        total = np.zeros((*np.broadcast_shapes(y.shape[:-2], w.shape[:-2]), y.shape[-2], w.shape[-2]), np.float16)
        for k in range(y.shape[-1]):
            total = (total + y[..., :, None, k] * w[..., None, :, k]).astype(np.float16)
        return total.astype(np.float32)


WRONG = (LastLeftOut, HalfOperands, HalfSums)
