"""Tiny models: the same file for the same seed, blocks that mean what was quantized, every architecture's tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.ggml.llama import gguf
from opconform.backends.ggml.llama.architectures import ARCHITECTURES
from opconform.backends.ggml.llama.quants import WEIGHT_TYPES, encode, fitting
from opconform.backends.ggml.llama.tiny import tiny_model
from opconform.harness.model.usage import UsageError


def halves(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float64)


def of_q8_0(raw: np.ndarray) -> np.ndarray:
    return halves(raw[:, :2]) * raw[:, 2:].view(np.int8)


def of_q4_0(raw: np.ndarray) -> np.ndarray:
    """y[i] = d·(q − 8): the low nibbles are the first half of a block."""
    return halves(raw[:, :2]) * (np.hstack([raw[:, 2:] & 15, raw[:, 2:] >> 4]).astype(float) - 8)


def of_q4_k(raw: np.ndarray) -> np.ndarray:
    """ggml-quants.c, dequantize_row_q4_K, one element after the other."""
    found = np.empty((len(raw), 256))
    for block, out in zip(raw, found):
        d, dmin = block[:4].view("<f2").astype(float)
        scales, codes = block[4:16].astype(int), block[16:]
        for part in range(8):
            if part < 4:
                scale, least = scales[part] & 63, scales[part + 4] & 63
            else:
                scale = (scales[part + 4] & 15) | (scales[part - 4] >> 6) << 4
                least = scales[part + 4] >> 4 | (scales[part] >> 6) << 4
            pair = codes[32 * (part // 2) : 32 * (part // 2 + 1)]
            nibbles = pair >> 4 if part % 2 else pair & 15
            out[32 * part : 32 * (part + 1)] = d * scale * nibbles - dmin * least
    return found


def of_q6_k(raw: np.ndarray) -> np.ndarray:
    """ggml-quants.c, dequantize_row_q6_K."""
    found = np.empty((len(raw), 256))
    for block, out in zip(raw, found):
        scales, d = block[192:208].view(np.int8).astype(float), float(block[208:].view("<f2")[0])
        for half in range(2):
            low, high = block[64 * half : 64 * half + 64], block[128 + 32 * half : 160 + 32 * half]
            for quarter in range(4):
                nibbles = low[32 * (quarter % 2) : 32 * (quarter % 2) + 32] >> 4 * (quarter // 2) & 15
                codes = (nibbles | (high >> 2 * quarter & 3) << 4).astype(float) - 32
                start = 128 * half + 32 * quarter
                out[start : start + 32] = d * np.repeat(scales[start // 16 : start // 16 + 2], 16) * codes
    return found


@pytest.mark.parametrize(
    ("type_", "size", "decode", "steps"),
    [("q8_0", 34, of_q8_0, 127), ("q4_0", 18, of_q4_0, 8), ("q4_K", 144, of_q4_k, 7), ("q6_K", 210, of_q6_k, 31)],
)
def test_a_block_means_the_values_that_were_quantized(type_: str, size: int, decode: object, steps: int) -> None:
    values = np.random.RandomState(1).standard_normal((16, 512)).astype(np.float32)
    values[0, :32] = 0
    raw = np.frombuffer(encode(type_, values), np.uint8).reshape(-1, size)
    assert gguf.TYPES[type_].bytes == size
    decoded = decode(raw).reshape(values.shape)  # type: ignore[operator]
    assert np.abs(decoded - values).max() < 1.1 * np.abs(values).max() / steps
    assert np.corrcoef(decoded.ravel(), values.ravel())[0, 1] > 0.99


def test_rows_without_whole_blocks_get_another_type() -> None:
    assert [fitting("q4_K", row) for row in (256, 64, 16)] == ["q4_K", "q8_0", "f16"]
    assert fitting("f32", 3) == "f32"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_whole_file_with_sane_weights(name: str, tmp_path: Path) -> None:
    path = tiny_model(name, "f16", folder=tmp_path)
    header = gguf.read(path)
    assert header.architecture == ARCHITECTURES[name].arch
    assert header.metadata["tokenizer.ggml.model"] == "no_vocab"
    raw = path.read_bytes()
    start = len(raw) - sum(-(-(info.nbytes or 0) // 32) * 32 for info in header.tensors)
    for info in header.tensors:
        kind = "<f2" if info.type == gguf.TYPES["f16"].number else "<f4"
        data = raw[start + info.offset :][: info.nbytes]
        values = np.frombuffer(data, kind).astype(np.float64)
        assert np.isfinite(values).all(), info.name
        assert 0.001 < np.abs(values).mean() < 8, info.name


def test_a_seed_gives_the_same_file(tmp_path: Path) -> None:
    one, again, other = (tiny_model("mamba", "q8_0", seed, tmp_path / str(n)) for n, seed in enumerate((3, 3, 4)))
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    assert one.name == again.name != other.name
    assert hashlib.sha256(one.read_bytes()).hexdigest().startswith("3461ca285039")


def test_what_there_is_not_is_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no architecture 'lama'; there are llama, "):
        tiny_model("lama", folder=tmp_path)
    with pytest.raises(UsageError, match=f"there are {', '.join(WEIGHT_TYPES)}"):
        tiny_model("llama", "q3", folder=tmp_path)
