"""Elements in blocks that share a scale: ggml's quantised types, decoded without ggml.

A raw block is as many bytes as ggml-common.h gives it (`block_q4_0` …). The decoder is the one of the PyPI package
`gguf`, which is NumPy's arithmetic and not ggml's C. It works in float32, so that a decoded element is off by two or
three roundings of its parts (`magnitudes`).
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

REMEDY = 'pip install "opconform[gguf]"'
#: The roundings in a decoded element: the reference's own, in float32, and as many of a kernel that decodes it.
ROUNDINGS = 6
_ELEMENTS_OF_ROW = 4096  #: that are decoded in one row: 16 of them fit into a cache


@dataclass(frozen=True)
class Blocks:
    """A quantised type: elements and bytes of a block, and the bytes at which its float16 scales stand.

    mins: the scales of what is subtracted from all elements of a block, or added to them (m of q4_1, dmin of q4_K):
    an element is then a sum of two parts, which may cancel. scale_bytes: scales of 8 bits (a UE4M3 of nvfp4, an E8M0 of
    mxfp4, which is an exponent), with the least and the greatest that is drawn, and that is a number. nibbles: the byte
    at which 16 bytes of 4-bit codes begin (byte i has element i below and element i + 16 above); 0 without such codes.
    centred: from which byte to which the codes stand that are stored from 0 on, and of which all have one number
    subtracted (8 of q4_0): some kernels do so behind the sum, see `magnitudes`.
    """

    block: int
    bytes: int
    scales: tuple[int, ...] = ()
    mins: tuple[int, ...] = ()
    scale_bytes: tuple[int, ...] = ()
    drawn: tuple[int, int] = (0, 0)
    legal: tuple[int, int] = (0, 0)
    nibbles: int = 0
    centred: tuple[int, int] = (0, 0)


#: By ggml's names. q8_1 and q8_K are what kernels make of activations, and no tensor's type.
BLOCKS: Mapping[str, Blocks] = {
    "q4_0": Blocks(32, 18, (0,), nibbles=2, centred=(2, 18)),
    "q4_1": Blocks(32, 20, (0, 2), (2,), nibbles=4),
    "q5_0": Blocks(32, 22, (0,), centred=(2, 22)),
    "q5_1": Blocks(32, 24, (0, 2), (2,)),
    "q8_0": Blocks(32, 34, (0,)),
    "q2_K": Blocks(256, 84, (80, 82), (82,)),
    "q3_K": Blocks(256, 110, (108,), centred=(0, 96)),
    "q4_K": Blocks(256, 144, (0, 2), (2,)),
    "q5_K": Blocks(256, 176, (0, 2), (2,)),
    "q6_K": Blocks(256, 210, (208,)),
    "iq2_xxs": Blocks(256, 66, (0,)),
    "iq2_xs": Blocks(256, 74, (0,)),
    "iq3_xxs": Blocks(256, 98, (0,)),
    "iq1_s": Blocks(256, 50, (0,)),
    "iq4_nl": Blocks(32, 18, (0,), nibbles=2),
    "iq3_s": Blocks(256, 110, (0,)),
    "iq2_s": Blocks(256, 82, (0,)),
    "iq4_xs": Blocks(256, 136, (0,)),
    "iq1_m": Blocks(256, 56),  # its scale lies in four nibbles, see `_with_scale`
    "tq1_0": Blocks(256, 54, (52,)),
    "tq2_0": Blocks(256, 66, (64,)),
    # exponents far below 127 make every product a denormal
    "mxfp4": Blocks(32, 17, scale_bytes=(0,), drawn=(100, 150), legal=(0, 254), nibbles=1),
    "nvfp4": Blocks(64, 36, scale_bytes=(0, 1, 2, 3), drawn=(0, 0x7E), legal=(0, 0x7E)),
}


@cache
def _gguf() -> Any:
    from gguf import quants

    return quants


@cache
def installed() -> bool:
    """Whether the package that decodes blocks is there, without importing it."""
    return importlib.util.find_spec("gguf") is not None


@cache
def available() -> bool:
    """Whether the package that decodes blocks is installed."""
    try:
        _gguf()
    except ImportError:
        return False
    return True


def _number(name: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[name.upper()]


def as_bytes(name: str, raw: np.ndarray) -> Bytes:
    """Raw blocks of any shape as [blocks, bytes]; a copy."""
    return np.array(raw, order="C").reshape(-1).view(np.uint8).reshape(-1, BLOCKS[name].bytes)


def _as_raw(name: str, blocks: Bytes, shape: tuple[int, ...]) -> np.ndarray:
    """[blocks, bytes] as raw blocks of `shape`."""
    return np.ascontiguousarray(blocks).reshape(-1).view(np.dtype(f"V{BLOCKS[name].bytes}")).reshape(shape)


def _values(name: str, blocks: Bytes) -> F64:
    """[blocks, bytes] as [blocks, elements]."""
    if not len(blocks):
        return np.zeros((0, BLOCKS[name].block))
    with np.errstate(all="ignore"):
        found = [_gguf().dequantize(rows, _number(name)) for rows in _in_rows(blocks, BLOCKS[name].block)]
    return np.concatenate(found, axis=None, dtype=np.float64).reshape(len(blocks), -1)


def _in_rows(blocks: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """All of [blocks, what each holds] as a few long rows, and what is left over as another one: the package goes
    through 16 rows at a time, which with a block for a row costs more than to decode them. length: elements of a block.
    """
    together = max(_ELEMENTS_OF_ROW // length, 1)
    whole = len(blocks) // together * together
    if whole:
        yield blocks[:whole].reshape(-1, together * blocks.shape[1])
    if whole < len(blocks):
        yield blocks[whole:].reshape(1, -1)


def decode(name: str, raw: np.ndarray) -> F64:
    """Raw blocks as float64 elements: the last axis grows by the block's length."""
    return _values(name, as_bytes(name, raw)).reshape(*raw.shape[:-1], raw.shape[-1] * BLOCKS[name].block)


def magnitudes(name: str, raw: np.ndarray, stored_codes: bool = False) -> tuple[F64, F64]:
    """For each element the sizes of its two parts, which may cancel: scale times code, and the block's minimum.

    stored_codes: the code is the one that is stored, from 0 on, and what centres it counts as a minimum.
    """
    its, blocks = BLOCKS[name], as_bytes(name, raw)
    shape = (*raw.shape[:-1], raw.shape[-1] * its.block)
    values = _values(name, blocks).reshape(shape)
    if stored_codes and any(its.centred):
        blocks[:, slice(*its.centred)] = 0
        least = _values(name, blocks).reshape(shape)
        return np.abs(values - least), np.abs(least)
    if not its.mins:
        return np.abs(values), np.zeros(shape)
    for place in its.mins:
        blocks[:, place : place + 2] = 0
    scaled = _values(name, blocks).reshape(shape)
    return np.abs(scaled), np.abs(scaled - values)


def with_tiny_scale(name: str, raw: np.ndarray) -> npt.NDArray[np.bool_]:
    """The elements of blocks with a scale that a device may flush: a denormal float16, or one of mxfp4 that is a
    denormal float32, 2^(e − 127) or, as ggml has it beside doubled codes, half of that."""
    its, blocks = BLOCKS[name], as_bytes(name, raw)
    tiny = np.zeros(len(blocks), dtype=bool)
    for place in its.scales:
        scale = np.ascontiguousarray(blocks[:, place : place + 2]).view("<f2")[:, 0].astype(np.float64)
        tiny |= (scale != 0) & (np.abs(scale) < 2.0**-14)
    if name == "mxfp4":
        tiny |= blocks[:, 0] < 2
    found: npt.NDArray[np.bool_] = np.repeat(tiny.reshape(raw.shape), its.block, axis=-1)
    return found


def encode(name: str, values: F64) -> np.ndarray:
    """Values, whose last axis holds whole blocks, as raw blocks.

    Where the package has no encoder, the codes are drawn (equal values give equal ones), and the scale is such that the
    largest element is about as large as the largest value: what a kernel makes of a block does not depend on how well
    it stands for some other numbers.
    """
    its = BLOCKS[name]
    shape = (*values.shape[:-1], values.shape[-1] // its.block)
    near = np.ascontiguousarray(values, np.float32).reshape(-1, its.block)
    if not near.size:
        return np.zeros(shape, np.dtype(f"V{its.bytes}"))
    quantiser = _gguf()._type_traits[_number(name)]
    if "quantize_blocks" in quantiser.__dict__:
        with np.errstate(all="ignore"):
            made = [quantiser.quantize(rows).reshape(-1) for rows in _in_rows(near, its.block)]
        return _as_raw(name, np.concatenate(made), shape)
    rng = np.random.default_rng(zlib.crc32(near.tobytes()))
    largest = np.abs(near.astype(np.float64)).max(1)
    blocks = _with_scale(name, _codes(name, rng, len(near)), np.ones(len(near)))
    reached = np.abs(_values(name, blocks)).max(1)
    return _as_raw(name, _with_scale(name, blocks, largest / np.maximum(reached, 2.0**-14)), shape)


def misread(name: str, raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The blocks whose right decoding is what a wrong one makes of `raw`, with what is wrong in words; none for types
    without 4-bit codes in 16 bytes."""
    first = BLOCKS[name].nibbles
    if not first:
        return
    blocks = as_bytes(name, raw)
    low: Bytes = (blocks[:, first:] & 15).astype(np.uint8)
    high: Bytes = (blocks[:, first:] >> 4).astype(np.uint8)
    in_pairs: Bytes = np.stack([low, high], axis=-1).reshape(len(blocks), -1)
    beside = "the two 4-bit codes of a byte are taken for neighbours, not for elements i and i + 16"
    found: list[tuple[str, Bytes, Bytes]] = [
        ("the two 4-bit codes of each byte are swapped", high, low),
        (beside, in_pairs[:, :16], in_pairs[:, 16:]),
    ]
    for says, lower, upper in found:
        yield says, _as_raw(name, np.hstack([blocks[:, :first], lower | upper << 4]), raw.shape)


def drawn(name: str, rng: np.random.Generator, shape: tuple[int, ...], widest: bool) -> np.ndarray:
    """Raw blocks of `shape` with any codes, and any scales that are numbers: of moderate sizes, or (`widest`) all."""
    count = int(np.prod(shape))
    blocks = _codes(name, rng, count, widest)
    for place in BLOCKS[name].scales:
        blocks[:, place : place + 2] = _halves(_scales(rng, count, widest))
    if name == "iq1_m":
        blocks = _with_scale(name, blocks, _scales(rng, count, widest))
    return _as_raw(name, blocks, shape)


def _scales(rng: np.random.Generator, count: int, widest: bool) -> F64:
    if widest:
        finite = rng.integers(0, 0x7C00, count).astype(np.uint16) | (rng.integers(0, 2, count) << 15).astype(np.uint16)
        return finite.view(np.float16).astype(np.float64)
    sizes: F64 = np.ldexp(rng.uniform(1, 2, count), rng.integers(-9, 2, count))
    signed: F64 = sizes * rng.choice((-1.0, 1.0), count)
    return signed


def _codes(name: str, rng: np.random.Generator, count: int, widest: bool = False) -> Bytes:
    its = BLOCKS[name]
    blocks = rng.integers(0, 256, (count, its.bytes)).astype(np.uint8)
    for place in its.scale_bytes:
        least, most = its.legal if widest else its.drawn
        blocks[:, place] = rng.integers(least, most + 1, count)
    return blocks


def _halves(scales: F64) -> Bytes:
    with np.errstate(over="ignore"):
        return scales.astype("<f2").view(np.uint8).reshape(-1, 2)


def _with_scale(name: str, blocks: Bytes, scale: F64) -> Bytes:
    """The blocks with this scale (and minimum) each."""
    blocks = blocks.copy()
    for place in BLOCKS[name].scales:
        blocks[:, place : place + 2] = _halves(scale)
    if name == "iq1_m":
        words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
        bits = np.ascontiguousarray(_halves(scale)).view("<u2")
        for word in range(4):
            words[:, word] = (words[:, word] & 0x0FFF) | ((bits[:, 0] >> (4 * word)) & 15) << 12
        blocks[:, 48:56] = words.view(np.uint8)
    return blocks
