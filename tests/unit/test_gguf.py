"""GGUF files: what is written reads back, and a broken file is one line, whatever is broken in it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.ggml.llama import gguf
from opconform.backends.ggml.llama.gguf import GgufError, Tensor, parse, parts_of, read, write
from opconform.backends.ggml.llama.session import ModelError, checked

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.scale": -1,
    "llama.eps": 1e-5,
    "llama.heads": (0, 1),
    "llama.flag": True,
}
TENSORS = (
    Tensor("a.weight", "f32", (3, 2), bytes(24)),
    Tensor("b.weight", "q8_0", (32, 2), bytes(68)),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write(path, METADATA, TENSORS)
    return path


def test_what_is_written_reads_back(file: Path) -> None:
    header = read(file)
    assert header.architecture == "llama"
    assert {key: value for key, value in header.metadata.items() if key != "llama.eps"} == {
        key: value for key, value in METADATA.items() if key != "llama.eps"
    }
    assert [(info.name, info.type, info.ne, info.nbytes) for info in header.tensors] == [
        ("a.weight", 0, (3, 2), 24),
        ("b.weight", 8, (32, 2), 68),
    ]
    assert header.nbytes == 24 + 68


def patched(file: Path, at: int, raw: bytes) -> Path:
    content = bytearray(file.read_bytes())
    content[at : at + len(raw)] = raw
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("at", "raw", "says"),
    [
        (0, b"GGML", "is not a GGUF file: it starts with b'GGML'"),
        (4, struct.pack("<I", 1), "has version 1; versions 2 and 3"),
        (4, struct.pack(">I", 3), "is big-endian"),
        (8, struct.pack("<Q", 2**63), "says that it has 9223372036854775808 tensors"),
        (16, struct.pack("<Q", 2**40), "says that it has 1099511627776 metadata entries"),
        (24, struct.pack("<Q", 2**62), "is cut off: the key of metadata entry 0 would end"),
        (24, struct.pack("<Q", 2**64 - 1), "is cut off: the key of metadata entry 0 would end"),
        (24 + 8 + 20, struct.pack("<I", 77), "is of type 77, which GGUF does not have"),
    ],
)
def test_a_broken_header_is_one_line(file: Path, at: int, raw: bytes, says: str) -> None:
    with pytest.raises(GgufError) as caught:
        read(patched(file, at, raw))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    for size in range(len(whole) - 28):  # the last bytes are padding after the last tensor
        with pytest.raises(GgufError, match=r"cut off|not a GGUF file"):
            parse(whole[:size], "cut")
    file.write_bytes(b"")
    with pytest.raises(GgufError, match="is empty"):
        read(file)


def outcome(raw: bytes) -> str:
    """The error's line, or nothing."""
    try:
        parse(raw, "changed")
    except GgufError as error:
        return str(error)
    return ""


def test_no_change_of_a_byte_raises_anything_else(file: Path) -> None:
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for at in range(len(whole)):
        for value in (0, 0xFF, int(random.integers(256))):
            line = outcome(whole[:at] + bytes([value]) + whole[at + 1 :])
            assert len(line) < 400
            assert line.isprintable()


def test_an_array_that_claims_too_much_is_cut_off(tmp_path: Path) -> None:
    for inner in (8, 12):
        key = struct.pack("<Q", 1) + b"k"
        raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, inner, 2**61)
        (tmp_path / "array.gguf").write_bytes(raw)
        with pytest.raises(GgufError, match="is cut off"):
            read(tmp_path / "array.gguf")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (Tensor("x" * 64, "f32", (1,), bytes(4)), "at most 63"),
        (Tensor("x", "f32", (1, 1, 1, 1, 1), bytes(4)), "has 5 dimensions"),
        (Tensor("x", "f32", (0,), b""), "which cannot be"),
        (Tensor("x", "f32", (2**40, 2**40), b""), "which cannot be"),
        (Tensor("x", "q8_0", (33,), bytes(34)), "rows of 33"),
        (Tensor("x", "f32", (1 << 20,), bytes(4)), "is cut off"),
    ],
)
def test_an_impossible_tensor_is_one_line(tmp_path: Path, tensor: Tensor, says: str) -> None:
    write(tmp_path / "model.gguf", METADATA, [tensor])
    with pytest.raises(GgufError, match=says):
        read(tmp_path / "model.gguf")


def test_a_tensor_or_a_key_twice_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", METADATA, [TENSORS[0], TENSORS[0]])
    with pytest.raises(GgufError, match=r"has the tensor 'a\.weight' twice"):
        read(tmp_path / "model.gguf")
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 0, 7)
    (tmp_path / "twice.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + key * 2)
    with pytest.raises(GgufError, match="has the metadata key 'k' twice"):
        read(tmp_path / "twice.gguf")


def test_parts_of_a_model_are_all_looked_at(tmp_path: Path) -> None:
    first = tmp_path / "big-00001-of-00002.gguf"
    write(first, METADATA, TENSORS)
    assert [path.name for path in parts_of(first)] == ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]
    with pytest.raises(ModelError, match=r"big-00002-of-00002\.gguf cannot be read"):
        checked(first)
    with pytest.raises(GgufError, match="part 9 of 2"):
        parts_of(tmp_path / "big-00009-of-00002.gguf")


def test_what_is_no_model_or_too_large_is_told_before_it_is_loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path / "vocabulary.gguf", {"general.name": "x"}, [])
    with pytest.raises(ModelError, match=r"names no general\.architecture"):
        checked(tmp_path / "vocabulary.gguf")
    with pytest.raises(ModelError, match="cannot be read"):
        checked(tmp_path)
    assert checked(file).architecture == "llama"
    monkeypatch.setattr("opconform.backends.ggml.llama.session.free_memory", lambda: 16)
    with pytest.raises(ModelError, match=r"of weights; 0\.0 GiB of memory are free here"):
        checked(file)


def test_a_type_that_is_not_known_has_no_size(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", METADATA, [TENSORS[0]])
    raw = (tmp_path / "model.gguf").read_bytes()
    at = raw.index(b"a.weight") + 8 + 4 + 16
    patched(tmp_path / "model.gguf", at, struct.pack("<I", 4000))
    (info,) = read(tmp_path / "model.gguf").tensors
    assert info.type == 4000
    assert info.nbytes is None
    assert gguf.Header(3, {}, (info,)).nbytes == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    os.mkfifo(path)
    with pytest.raises(GgufError, match=r"model\.gguf cannot be read: not a regular file"):
        read(path)
