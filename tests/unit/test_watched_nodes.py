"""The verdict on a watched node, the case that stands for it, and the screen of a watched model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opconform.harness.judge import nodes
from opconform.harness.judge.nodes import judge_node
from opconform.harness.model.buffers import unwritten
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.findings import Kind
from opconform.harness.model.graph import (
    Difference,
    Ended,
    GraphNode,
    Place,
    SeenNode,
    Together,
    WholeGraph,
    WrongPiece,
)
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.run.target import Target
from opconform.harness.search.session import Session
from opconform.harness.search.settings import Settings
from opconform.harness.search.watched import JudgedNode, Watched, WrongCase
from opconform.harness.search.watching import Watching, _Found, fitting
from opconform.reports.watching import again_with, screen, watch_matrix, whole_words

SNAPSHOTS = Path(__file__).parent / "snapshots"


def product(case: Case, raw: dict[str, Raw], numerics: Numerics) -> Expected:
    """out[t, m] = Σ a[m, k] b[t, k]"""
    a, b = (F32.decode(raw[name]) for name in "ab")
    return Expected(b @ a.swapaxes(-1, -2), 1e-4 * (np.abs(b) @ np.abs(a).swapaxes(-1, -2)))


PRODUCT = replace(
    ops()["exp"], name="product", inputs=("a", "b"), expect=product, independent={3: {"a": 2}}, alone=lambda case: ()
)


def problem(rows: int, tokens: int, length: int) -> tuple[Case, dict[str, Raw], np.ndarray]:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((1, 1, n, length)).astype(np.float32) for n in (rows, tokens))
    inputs = {name: Layout.contiguous("f32", each.shape) for name, each in (("a", a), ("b", b))}
    case = Case("product", {}, inputs, {"out": Layout.contiguous("f32", (1, 1, tokens, rows))})
    out = (b.astype(np.float64) @ a.astype(np.float64).swapaxes(-1, -2)).astype(np.float32)
    return case, {"a": a.view(np.uint32), "b": b.view(np.uint32)}, out


def verdict_on(op: Op, case: Case, values: dict[str, Raw], out: np.ndarray) -> tuple[list[Kind], bool]:
    found, sampled = judge_node(case, op, values, {"out": out.view(np.uint32)}, EXACT)
    return [finding.kind for finding in found.findings], sampled


def test_a_large_product_is_judged_on_a_sample_and_every_element_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    case, values, right = problem(rows=300, tokens=7, length=50)
    assert verdict_on(PRODUCT, case, values, right) == ([], False)
    monkeypatch.setattr(nodes, "WORK", 10_000)
    assert verdict_on(PRODUCT, case, values, right) == ([], True)
    for row in (0, 299):  # the first and the last are always among them
        wrong = right.copy()
        wrong[..., row] *= 1.001
        assert verdict_on(PRODUCT, case, values, wrong) == ([Kind.WRONG_VALUES], True)
    for bits, kind in ((unwritten(F32), Kind.NOT_WRITTEN), (0x7FC00000, Kind.NAN_INF)):
        wrong = right.copy()
        wrong.view(np.uint32)[0, 0, 3, 123] = bits
        assert verdict_on(PRODUCT, case, values, wrong) == ([kind], True)


def test_a_node_that_works_in_place_where_its_op_does_not_gets_an_output_of_its_own() -> None:
    layout = Layout.contiguous("f32", (1, 1, 2, 4), 16)
    case = Case("l2_norm", {"eps": 1e-6, "eps_mode": "max"}, {"x": layout}, {"out": layout}, inplace="x")
    found = fitting(case)
    assert found.inplace is None
    assert found.outputs["out"] == Layout.contiguous("f32", (1, 1, 2, 4))


def test_a_node_whose_output_has_other_sizes_gets_those_of_its_input() -> None:
    x, out = Layout.contiguous("f32", (1, 3, 2, 4)), Layout.contiguous("f32", (1, 1, 1, 24))
    assert fitting(Case("cont", {}, {"x": x}, {"out": out})).outputs["out"].shape == (1, 3, 2, 4)
    with pytest.raises(CaseError, match="out has shape"):
        fitting(Case("cont", {}, {"x": x}, {"out": Layout.contiguous("f32", (1, 1, 1, 23))}))


class Recorded(Session):
    """A session whose device is never opened."""

    def __init__(self) -> None:
        self.settings = Settings()

    def runner(self, target: Target) -> Any:
        return None


def test_a_copy_between_devices_that_arrives_changed_is_a_wrong_node() -> None:
    watching = Watching(Recorded(), None)  # type: ignore[arg-type]
    found = _Found()
    node = GraphNode(0, 7, "ffn_out-1", "MUL", 1, True, "CPU", place("ffn_out-1"), (place("CPU#ffn_inp-1#0"),))
    text = "CPU#ffn_inp-1#0, which MUL reads, is not what ADD wrote"
    watching._judge(SeenNode(node, "no reference", copies=1, wrong_copies=(text,)), found, 0)
    assert [(it.state, it.kind, it.detail) for it in found.nodes] == [("wrong", Kind.WRONG_VALUES, text)]
    right = WholeGraph(2, 0, Difference(0.0, 0.1, 4.0, "row 0 of the prompt"))
    shown = replace(wrong_model(), nodes=tuple(found.nodes), cases=(), whole=right, together=(), copies=found.copies)
    assert not shown.right
    assert f"#7 MUL ffn_out-1, {text}" in " ".join(screen(shown).split())
    assert "1 copies between devices followed" in screen(shown)


# ---- the screen ------------------------------------------------------------------------------------------------------


def place(name: str, **more: object) -> Place:
    return Place(name, "f32", (8, 70, 1, 1), (4, 32, 2240, 2240), **more)  # type: ignore[arg-type]


def judged(decode: int, index: int, what: str, layer: int | None, **more: object) -> JudgedNode:
    name = f"{what.lower()}-{layer}" if layer is not None else what.lower()
    node = GraphNode(decode, index, name, what, layer, True, "Vulkan0", place(name), (place("x"),))
    return JudgedNode(node, **{"state": "right", **more})  # type: ignore[arg-type]


def wrong_model() -> Watched:
    permuted = Place("x", "f32", (8, 70, 2, 1), (4, 64, 32, 4480), offset=64, view_of="y")
    bad = judged(0, 11, "MUL_MAT", 0, state="wrong", kind=Kind.WRONG_VALUES, times=54.0)
    bad = replace(
        bad, detail="3 of 560 elements differ", node=replace(bad.node, sources=(place("w"), permuted)), case="mul_mat-1"
    )
    prompt = [
        judged(0, 0, "GET_ROWS", None, state="not judged", reason="Opconform has no reference of GET_ROWS yet"),
        judged(0, 3, "RMS_NORM", 0),
        bad,
        judged(0, 20, "SIGMOID", 1),
        judged(0, 21, "SCALE", 1, lower="operands of products rounded to 16 bits"),
    ]
    steps = [replace(it, node=replace(it.node, decode=step)) for step in (1, 2) for it in prompt if it is not bad]
    pieces = tuple(it.node for it in prompt[3:])
    because = ("the output of SCALE lies over ffn_moe_logits-1, which the piece still reads",)
    off = Difference(8.06, 0.0075, 4.0, "row 40 of the prompt")
    whole = WholeGraph(
        2,
        2,
        off,
        piece=WrongPiece(0, pieces, because, off, None, ((21, "ffn_moe_logits-1"),)),
        switches={"GGML_VK_DISABLE_FUSION": True},
    )
    whole = replace(whole, asked=False)
    return Watched(
        target="ggml:Vulkan0",
        build="b8121",
        about="llvmpipe (build b8121)",
        model="kimi-linear, 2.87 million weights in 2 layers",
        again="--arch kimi-linear",
        options=("--ggml-lib lib",),
        nodes=(*prompt, *steps),
        cases=(
            WrongCase(
                "mul_mat-1",
                bad,
                8,
                "out/cases/mul_mat-1.json",
                "fails",
                "small_int",
                "b is rounded to f16 before it is used",
            ),
        ),
        whole=whole,
        piece="out/pieces/piece-sigmoid-scale-1.json",
        together=(Together("together", 3, ((1, Difference(9.0, 0.2, 4.0, "the token at 3 of sequence 1"), 0),)),),
    )


def test_the_screen_of_a_wrong_model() -> None:
    found = wrong_model()
    text = screen(found, again_with(found)) + "\n"
    assert text == (SNAPSHOTS / "watched.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 110


def test_a_model_is_right_only_where_something_ran() -> None:
    found = wrong_model()
    right = WholeGraph(2, 0, Difference(0.0, 0.1, 4.0, "row 0 of the prompt"))
    fine = replace(found, nodes=found.nodes[:2], cases=(), whole=right, together=())
    assert fine.right
    assert fine.verdict == "RIGHT"
    assert not replace(fine, nodes=()).right
    assert not replace(fine, whole=None, nodes=found.nodes[:1]).right  # nothing was judged
    assert not replace(fine, together=found.together).right
    assert replace(fine, late=("several sequences",)).verdict == "RIGHT AS FAR AS IT CAME"
    assert found.verdict == "WRONG"


def test_a_crash_and_what_is_wrong_besides_stand_in_the_verdict() -> None:
    end = Ended(
        Kind.CRASH,
        "the process ended with signal SIGSEGV",
        decode=1,
        first=4,
        last=4,
        node="ADD x",
        times="1 time of 2",
    )
    found = replace(wrong_model(), by_node=end)
    assert found.verdict == "WRONG, CRASH"
    assert "then CRASH in decode 1, the process ended with signal SIGSEGV, node 4 in flight (ADD x), 1 time of 2" in (
        " ".join(screen(found).split())
    )
    assert replace(found, nodes=found.nodes[:2], cases=(), whole=None, together=()).verdict == "CRASH"


def test_a_whole_that_is_wrong_once_and_crashes_once_is_told_as_both() -> None:
    found = wrong_model()
    assert found.whole
    end = Ended(Kind.CRASH, "the process ended with signal SIGSEGV", decode=1)
    said = whole_words(replace(found.whole, ended=(end,)))
    assert said.startswith("WRONG  logits off by 8.06")
    assert said.endswith(
        "row 40 of the prompt, 1 time of 2; CRASH  1 time of 2, in decode 1, the process ended with signal SIGSEGV"
    )
    dead = whole_words(replace(found.whole, worst=None, ended=(end, end)))
    assert dead == "CRASH  2 times of 2, in decode 1, the process ended with signal SIGSEGV"


def test_a_piece_that_was_not_cut_down_is_told_as_such() -> None:
    found = wrong_model()
    assert found.whole
    assert found.whole.piece
    long = replace(found.whole.piece, late=True, nodes=found.whole.piece.nodes * 20)
    text = " ".join(screen(replace(found, whole=replace(found.whole, piece=long, late=True), piece="")).split())
    assert "wrong piece nodes 20..21 of layer 1: 40 ops; the time was up, so a part of it may do" in text
    assert "#20 SIGMOID" not in text


def test_the_matrix_of_models_and_devices() -> None:
    found = [("llama", "ggml:CPU", wrong_model()), ("mamba", "ggml:CPU", "no device"), ("llama", "x:y", "no")]
    text = watch_matrix(found)  # type: ignore[arg-type]
    assert "wrong as a whole" in text
    assert "not judged      GET_ROWS x3: Opconform has no reference of it yet" in text
    assert "not run [1]" in text
    assert "[2] no device" in text
