"""Blocks made of numbers in NumPy, step by step: the encoders that the package `gguf` does not have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opconform.harness.model.blocks import BLOCKS
from opconform.harness.model.dtypes import DTYPES, F64, Raw

IQ4 = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), dtype=np.float32)
E2M1 = np.array((0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6), dtype=np.float32)

Codes = np.ndarray
F32 = np.ndarray
Scales = Callable[[np.ndarray], np.ndarray]
Ends = float | np.ndarray


def nearest(x: F32, scale: F32, values: F32) -> Codes:
    """The code of each x whose value, times the scale of its block, is the nearest one; the first of two."""
    return np.abs(scale[..., None] * values - x[..., None]).argmin(-1)


def nibbles(codes: Codes, half: int) -> np.ndarray:
    """Codes as bytes: of each 2·half the first `half` in the lower four bits, the others above them."""
    pairs = codes.reshape(*codes.shape[:-1], -1, 2, half)
    return (pairs[..., 0, :] | pairs[..., 1, :] << 4).astype(np.uint8).reshape(*codes.shape[:-1], -1)


def halves(scale: F32) -> np.ndarray:
    return np.ascontiguousarray(scale.astype("<f2")).view(np.uint8)


def first_scale(x: F32) -> F32:
    """The element of the largest magnitude by -127, of each row."""
    return np.take_along_axis(x, np.abs(x).argmax(-1)[:, None], -1) / np.float32(-127)


def fitted(x: F32, codes: Codes) -> F32:
    """The scale that fits the codes best, squares weighted with x²."""
    w, q = x * x, IQ4[codes]
    fit = (w * q * x).sum(-1, keepdims=True) / np.maximum((w * q * q).sum(-1, keepdims=True), np.float32(1e-37))
    return fit.astype(np.float32)


def iq4_nl(x: F32) -> np.ndarray:
    """[blocks, 32] as [blocks, 18], as ggml has it: codes for the first scale, and the scale that fits them."""
    codes = nearest(x, first_scale(x), IQ4)
    return np.concatenate([halves(fitted(x, codes)), nibbles(codes, 16)], -1)


def mxfp4(x: F32) -> np.ndarray:
    """[blocks, 32] as [blocks, 17]."""
    _, exponent = np.frexp(np.abs(x).max(-1, keepdims=True))
    codes = nearest(x, np.ldexp(np.float32(1), exponent - 3), E2M1)
    return np.concatenate([(exponent - 3 + 127).astype(np.uint8), nibbles(codes, 16)], -1)


def nvfp4(x: F32, factor: F32 | None = None, by: int = 0) -> np.ndarray:
    """[blocks, 64] as [blocks, 36]; factor: what the scales of the four groups are multiplied with; by: how many
    scales further each then is."""
    groups = x.reshape(len(x), 4, 16)
    wanted = np.abs(groups).max(-1) / np.float32(6) * (1 if factor is None else factor)
    kept = np.arange(0x7F)
    sizes = np.where(kept < 8, kept * 2.0**-9, (8 + kept % 8) * np.exp2(kept // 8 - 10.0))
    scale = np.clip(np.abs(sizes - wanted[..., None]).argmin(-1) + by, 0, 0x7E)
    codes = nearest(groups, sizes[scale][..., None].astype(np.float32), E2M1)
    return np.concatenate([scale.astype(np.uint8), nibbles(codes, 8).reshape(len(x), -1)], -1)


def first_fit(x: F32, values: F32, end: Ends) -> F32:
    """The scale of each group that fits the codes for its largest element by `end` best, squares weighted with x²."""
    first = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0] / np.asarray(end, np.float32)
    q = values[nearest(x, first[..., None], values)]
    return ((x**3 * q).sum(-1) / np.maximum((x * x * q * q).sum(-1), np.float32(1e-37))).astype(np.float32)


def multiples(scales: F32, levels: int) -> tuple[F32, np.ndarray]:
    """Scales of groups as a step of float16 and whole multiples of it, −levels to levels − 1."""
    step = np.take_along_axis(scales, np.abs(scales).argmax(-1)[:, None], -1) / np.float32(-levels)
    found = np.rint(np.divide(scales, step, out=np.zeros_like(scales), where=step != 0))
    return step.astype(np.float16).astype(np.float32), np.clip(found, -levels, levels - 1)


def q6_k(x: F32, spoil: Scales = lambda scales: scales, end: Ends = -32) -> np.ndarray:
    """[blocks, 256] as [blocks, 210], with a scale of each 16 elements; spoil: what becomes of the scales' multiples
    once the codes are made; end: the code of the largest element, of all 16 groups or of each."""
    values, groups = np.arange(-32, 32, dtype=np.float32), x.reshape(len(x), 16, 16)
    step, scales = multiples(first_fit(groups, values, end), 128)
    q = nearest(groups, (step * scales)[..., None], values).reshape(len(x), 2, 4, 32)
    low, high = q & 15, q >> 4
    lower = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2)
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [part.reshape(len(x), -1).astype(np.uint8) for part in (lower, upper)]
    return np.concatenate([*parts, spoil(scales).astype(np.int8).view(np.uint8), halves(step)], -1)


def iq4_xs(x: F32, spoil: Scales = lambda scales: scales, end: Ends = -127) -> np.ndarray:
    """[blocks, 256] as [blocks, 136], with a scale of each 32 elements; spoil and end: as `q6_k` has them."""
    groups = x.reshape(len(x), 8, 32)
    step, scales = multiples(first_fit(groups, IQ4, end), 32)
    codes = nibbles(nearest(groups, (step * scales)[..., None], IQ4), 16).reshape(len(x), -1)
    level = spoil(scales).astype(np.int64) + 32
    upper = ((level >> 4) << 2 * np.arange(8)).sum(-1, keepdims=True).astype("<u2").view(np.uint8)
    lower = (level[:, ::2] & 15 | (level[:, 1::2] & 15) << 4).astype(np.uint8)
    return np.concatenate([halves(step), upper, lower, codes], -1)


OWN: dict[str, Callable[[F32], np.ndarray]] = {
    "iq4_nl": iq4_nl,
    "mxfp4": mxfp4,
    "nvfp4": nvfp4,
    "q6_K": q6_k,
    "iq4_xs": iq4_xs,
}


def encoded(name: str, values: F64, how: Callable[[F32], np.ndarray] | None = None) -> Raw:
    """Values as raw blocks of a type, by `how` or as its usual encoder makes them."""
    dtype, make = DTYPES[name], how or OWN.get(name)
    if make is None:
        return dtype.encode(values)
    made = make(np.ascontiguousarray(values, np.float32).reshape(-1, dtype.block))
    return as_raw(name, made).reshape(*values.shape[:-1], -1)


def as_raw(name: str, made: np.ndarray) -> Raw:
    """[blocks, bytes] as raw blocks."""
    return np.ascontiguousarray(made).reshape(-1).view(np.dtype(f"V{BLOCKS[name].bytes}"))
