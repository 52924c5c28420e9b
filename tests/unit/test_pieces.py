"""Piece files and bytes beside JSON files: written, read back, and refused where a stranger has changed them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opconform.backends.ggml.llama.cut import cut_out
from opconform.backends.ggml.llama.records import Buffer, Memory, Node, Source
from opconform.harness.draw.known import case_from_file, write_case
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.piece import Piece, PieceError, PieceTensor, read_piece, write_piece
from opconform.harness.model.usage import UsageError

DEVICE = Buffer(0, "Vulkan0", 1 << 20, False, 0)
FOUR = (4, 1, 1, 1)
STEPS = (4, 16, 16, 16)
MOST = 1 << 20


def piece(count: int = 4) -> Piece:
    """out = exp(x), out over x."""
    x = PieceTensor("x", "f32", FOUR, STEPS, 0, 0, 16, made_by="MUL_MAT")
    out = PieceTensor("y", "f32", FOUR, STEPS, 0, 0, 16, op="UNARY", what="EXP", params="00" * 64, sources=(0,), uses=1)
    data = np.arange(count, dtype=np.float32).tobytes()
    return Piece("ggml", "a test", (1024,), (x, out), {0: data})


def test_a_piece_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_piece(piece(), tmp_path)
    found = read_piece(path, MOST)
    assert found == piece()
    assert found is not None
    assert found.data == piece().data
    assert path.name == f"{found.id}.json"
    assert found.id.startswith("piece-exp-")


def test_many_bytes_stand_beside_the_file_and_belong_to_it(tmp_path: Path) -> None:
    size = 1 << 18
    tensor = PieceTensor("x", "i8", (size, 1, 1, 1), (1, size, size, size), 0, 0, size)
    small = piece()
    large = Piece("ggml", "", (size,), (tensor, *small.tensors[1:]), {0: os.urandom(size)})
    path = write_piece(large, tmp_path)
    beside = path.with_suffix(".bin")
    found = read_piece(path, MOST)
    assert found is not None
    assert found.data == large.data
    beside.write_bytes(beside.read_bytes()[:-1])
    with pytest.raises(PieceError.__mro__[1], match="not the file that was written"):
        read_piece(path, MOST)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda it: it.update(format="opconform-piece/9"), "format"),
        (lambda it: it.update(regions=[]), "regions"),
        (lambda it: it.update(regions=[1 << 40]), "--max-bytes"),
        (lambda it: it["tensors"][0].update(region=3), "region"),
        (lambda it: it["tensors"][0].update(start=1016), "its region has less"),
        (lambda it: it["tensors"][0].update(nbytes=-1), "bytes"),
        (lambda it: it["tensors"][0].update(ne=[4, 100, 1, 1]), "rows lie outside"),
        (lambda it: it["tensors"][0].update(ne=[4, 1, 1]), "must have 4"),
        (lambda it: it["tensors"][1].update(sources=[1]), "those before it"),
        (lambda it: it["tensors"][1].update(sources=[-1]), "those before it"),
        (lambda it: it["tensors"][1].update(view_of=7), "those before it"),
        (lambda it: it["tensors"][1].update(params="xyz"), "params"),
        (lambda it: it["tensors"][1].update(uses=0), "no node that anything behind"),
        (lambda it: it["tensors"][0].update(sources=[None]), "an input has none"),
        (lambda it: it.update(data="$$$"), "base64"),
        (lambda it: it.update(data={"file": "../x.bin", "sha256": ""}), "beside this one"),
        (lambda it: it.update(data=5), "base64 text, or name a file"),
        (lambda it: it["tensors"][0].update(ne="four"), "must be a list"),
    ],
)
def test_a_piece_that_cannot_be_is_one_line(change: Change, says: str, tmp_path: Path) -> None:
    path = write_piece(piece(), tmp_path)
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises((PieceError, PieceError.__mro__[1])) as caught:
        read_piece(path, MOST)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_no_piece_is_left_to_others(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    for text in ("{}", "[1]", "no json", '{"format": "opconform-case/1"}'):
        path.write_text(text)
        assert read_piece(path, MOST) is None


def test_the_bytes_of_a_large_case_stand_beside_its_file(tmp_path: Path) -> None:
    layout = Layout.contiguous("f32", (1, 1, 1024, 512))
    values = np.random.default_rng(1).standard_normal(1024 * 512).astype(np.float32)
    case = Case("exp", {}, {"x": layout}, {"out": layout}).with_data({"x": values.tobytes()})
    path = tmp_path / "case.json"
    write_case(case, path)
    assert path.stat().st_size < 2000
    found = case_from_file(path)
    assert found == case
    assert found.data == case.data
    path.with_suffix(".bin").unlink()
    with pytest.raises(UsageError, match=r"case\.json"):
        case_from_file(path)


def node(name: str, start: int, sources: tuple[Source, ...], index: int) -> Node:
    memory = Memory(0, start, start + 16)
    plain = Node(name, "f32", FOUR, STEPS, DEVICE, memory, op="UNARY", index=index, sources=sources)
    return replace(plain, what="EXP", params=bytes(64))


def test_a_piece_is_cut_out_with_what_it_reads_and_where_that_lies() -> None:
    data = np.arange(4, dtype=np.float32).view(np.uint8)
    x = Source("x", "f32", FOUR, STEPS, DEVICE, Memory(0, 4112, 4128), op="MUL_MAT", data=data)
    first = node("a", 8192, (x,), index=0)
    seen = Source("a", "f32", FOUR, STEPS, DEVICE, first.memory, op="UNARY")
    second = node("b", 4112, (seen,), index=1)
    later = node("c", 0, (Source("b", "f32", FOUR, STEPS, DEVICE, second.memory, op="UNARY"),), index=2)
    found = cut_out([first, second], [later], "test")
    assert found is not None
    found.checked(MOST)
    places = [(tensor.name, tensor.region, tensor.start) for tensor in found.tensors]
    assert places == [("x", 0, 16), ("a", 1, 0), ("b", 0, 16)]  # b lies over x, as aligned as it was
    assert [tensor.sources for tensor in found.tensors] == [(), (0,), (1,)]
    assert [tensor.uses for tensor in found.tensors] == [0, 0, 1]
    assert found.tensors[0].made_by == "MUL_MAT"
    assert found.data == {0: data.tobytes()}
    assert cut_out([replace(first, sources=(replace(x, data=None),))], [later], "") is None
