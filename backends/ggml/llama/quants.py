"""Rows of float32 as the blocks of ggml's types, for the weights of tiny models.

The layouts are those of ggml-common.h (block_q4_0, block_q8_0, block_q4_K, block_q6_K). The rounding is the plain one,
to the nearest code of a block's scale: ggml's own searches for better scales, which random weights do not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Bytes = np.ndarray  #: uint8, one row per block


def _f16(values: np.ndarray) -> tuple[Bytes, np.ndarray]:
    """Scales as two bytes each, and what those bytes mean."""
    narrow = values.astype("<f2")
    return narrow.view(np.uint8).reshape(len(values), 2), narrow.astype(np.float32)


def _divided(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """values / scale, and 0 where the scale is 0."""
    return values / np.where(scale == 0, np.float32(np.inf), scale)


def _q8_0(x: np.ndarray) -> Bytes:
    raw, d = _f16(np.abs(x).max(1) / 127)
    codes = np.clip(np.rint(_divided(x, d[:, None])), -127, 127).astype(np.int8)
    return np.hstack([raw, codes.view(np.uint8)])


def _q4_0(x: np.ndarray) -> Bytes:
    farthest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]
    raw, d = _f16(farthest / -8)
    codes = np.clip(np.rint(_divided(x, d[:, None])) + 8, 0, 15).astype(np.uint8)
    return np.hstack([raw, codes[:, :16] | codes[:, 16:] << 4])


def _q4_k(x: np.ndarray) -> Bytes:
    parts = x.reshape(-1, 8, 32)
    least = np.maximum(-parts.min(2), 0)
    step = (np.maximum(parts.max(2), 0) + least) / 15
    raw_d, d = _f16(step.max(1) / 63)
    raw_min, dmin = _f16(least.max(1) / 63)
    scales = np.clip(np.rint(_divided(step, d[:, None])), 0, 63).astype(np.uint8)
    mins = np.clip(np.rint(_divided(least, dmin[:, None])), 0, 63).astype(np.uint8)
    shift, width = dmin[:, None] * mins, d[:, None] * scales
    codes = np.clip(np.rint(_divided(parts + shift[:, :, None], width[:, :, None])), 0, 15).astype(np.uint8)
    low = np.hstack([scales[:, :4] | (scales[:, 4:] >> 4) << 6, mins[:, :4] | (mins[:, 4:] >> 4) << 6])
    high = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    nibbles = codes[:, 0::2] | codes[:, 1::2] << 4  # two parts of 32 share their bytes
    return np.hstack([raw_d, raw_min, low, high, nibbles.reshape(len(x), 128)])


def _q6_k(x: np.ndarray) -> Bytes:
    parts = x.reshape(-1, 16, 16)
    step = np.abs(parts).max(2) / 31
    raw, d = _f16(step.max(1) / 127)
    scales = np.clip(np.rint(_divided(step, d[:, None])), 0, 127).astype(np.int8)
    width = (d[:, None] * scales)[:, :, None]
    codes = (np.clip(np.rint(_divided(parts, width)), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = codes & 15
    below = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2)
    high = codes >> 4
    above = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.hstack([below.reshape(-1, 128), above.reshape(-1, 64), scales.view(np.uint8), raw])


_BLOCKS: Mapping[str, tuple[int, Callable[[np.ndarray], Bytes]]] = {
    "q8_0": (32, _q8_0),
    "q4_0": (32, _q4_0),
    "q4_K": (256, _q4_k),
    "q6_K": (256, _q6_k),
}
_PLAIN = {"f32": "<f4", "f16": "<f2"}

WEIGHT_TYPES = (*_PLAIN, *_BLOCKS)  #: the types that `encode` takes


def fitting(type_: str, row: int) -> str:
    """The type itself where rows of this length have whole blocks, else the next that they fit."""
    for name in (type_, "q8_0", "f16"):
        if name in _PLAIN or row % _BLOCKS[name][0] == 0:
            return name
    raise AssertionError("f16 takes every row")


def encode(type_: str, values: np.ndarray) -> bytes:
    """float32 values, whose rows have whole blocks, as the bytes of a type."""
    if type_ in _PLAIN:
        return values.astype(_PLAIN[type_]).tobytes()
    block, pack = _BLOCKS[type_]
    return np.ascontiguousarray(pack(values.reshape(-1, block).astype(np.float32))).tobytes()
