"""Faults that anybody's kernel may have: what the screen says of each, to a reader who has not seen it before."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from opconform import Backend, Buffers, Case
from opconform.harness.explain.facts import Facts
from opconform.harness.explain.failure import Failure
from opconform.harness.model import blocks
from opconform.harness.model.findings import Kind
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from opconform.reports.repro.issue import issue
from opconform.reports.screen import screen

F32 = np.float32


class One(Backend):
    """A backend of one op, whose tensors of weights are of one type."""

    name = "one"
    op = ""
    weights = "f32"

    def supports(self, case: Case) -> str | None:
        if case.op != self.op:
            return f"no kernel for {case.op}"
        its = case.inputs.get("a")
        return None if its is None or its.dtype == self.weights else f"no kernel for {its.dtype}"


class WithoutVectorTail(One):
    """Four elements at a time, and nothing for what is left of a row."""

    op = "silu"

    def run(self, case: Case, buffers: Buffers) -> None:
        x, out = buffers.array("x"), buffers.array("out")
        whole = x.shape[-1] // 4 * 4
        part = x[..., :whole].astype(F32)
        with np.errstate(all="ignore"):
            out[..., :whole] = part / (1 + np.exp(-part))


class ExpertBefore(One):
    """Ids that begin with 1, as another library has them."""

    op = "mul_mat_id"

    def run(self, case: Case, buffers: Buffers) -> None:
        a, b, ids, out = (buffers.array(name) for name in ("a", "b", "ids", "out"))
        with np.errstate(all="ignore"):
            for token, used in np.ndindex(*ids.shape[2:]):
                expert = max(int(ids[0, 0, token, used]) - 1, 0)
                out[0, token, used] = a[0, expert] @ b[0, token, used % b.shape[2]]


class RowBefore(One):
    """As ExpertBefore, and an index of −1 is the last row."""

    op = "get_rows"

    def run(self, case: Case, buffers: Buffers) -> None:
        a, b, out = (buffers.array(name) for name in ("a", "b", "out"))
        for i3, i2 in np.ndindex(*out.shape[:2]):
            out[i3, i2] = a[i3, i2][b[0, i3, i2] - 1]


class SwapsCodes(One):
    """q4_0 with the upper four bits of each byte first."""

    op = "get_rows"
    weights = "q4_0"

    def run(self, case: Case, buffers: Buffers) -> None:
        a, b, out = (buffers.array(name) for name in ("a", "b", "out"))
        for i3, i2, row in np.ndindex(*out.shape[:3]):
            found = np.array(a[i3, i2, b[0, i3, i2, row]])
            parts = found.view(np.uint8).reshape(-1, 18)
            scale = np.ascontiguousarray(parts[:, :2]).view(np.float16).astype(F32)
            out[i3, i2, row] = (scale * (self.codes(parts[:, 2:]).astype(F32) - 8)).reshape(-1)

    def codes(self, packed: np.ndarray) -> np.ndarray:
        return np.hstack([packed >> 4, packed & 15])


class TakesCodesInPairs(SwapsCodes):
    """q4_0 with the two codes of a byte side by side."""

    def codes(self, packed: np.ndarray) -> np.ndarray:
        return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


class AddsToWhatWasThere(One):
    """Accumulates into an output that it does not clear."""

    op = "sum_rows"

    def run(self, case: Case, buffers: Buffers) -> None:
        x, out = buffers.array("x"), buffers.array("out")
        with np.errstate(all="ignore"):
            out[...] += x.sum(-1, keepdims=True, dtype=F32)


class SumsUpToFour(One):
    """Vectors of four along the sums, and nothing for what is left."""

    op = "mul_mat"
    times = 0

    def run(self, case: Case, buffers: Buffers) -> None:
        a, b, out = (buffers.array(name) for name in ("a", "b", "out"))
        whole = b.shape[-1] // 4 * 4
        with np.errstate(all="ignore"):
            for i3, i2 in np.ndindex(*out.shape[:2]):
                w, y = a[i3 * a.shape[0] // b.shape[0], i2 * a.shape[1] // b.shape[1]], b[i3, i2]
                out[i3, i2] = y[:, :whole] @ w[:, :whole].T
                for _ in range(self.times):
                    out[i3, i2] += y[:, whole:] @ w[:, whole:].T


class AddsTheRestTwice(SumsUpToFour):
    """The vectors of four go beyond the row, and the loop for what is left comes after them."""

    times = 2


class RoundsUpToFour(One):
    """Writes whole vectors of four."""

    op = "sqr"

    def run(self, case: Case, buffers: Buffers) -> None:
        x, out, layout = buffers.array("x"), buffers.array("out"), case.outputs["out"]
        with np.errstate(all="ignore"):
            out[...] = x.astype(F32) ** 2
        buffers.bytes_of("out")[layout.end : layout.end - layout.end % 16 + 16] = 0


def target_of(kernel: type[One]) -> Target:
    return Target(f"{sys.modules[kernel.__module__].__file__}:{kernel.__name__}", Device("0", "NumPy"))


def failure_of(kernel: type[One]) -> Failure:
    with Runner(target_of(kernel), isolated=False) as runner:
        failure = Search(ops()[kernel.op], runner, Settings(seed=1)).run().failure
    assert failure is not None
    return failure


_NEEDS_GGUF = pytest.mark.skipif(not blocks.installed(), reason=f"blocks cannot be decoded: {blocks.REMEDY}")


@pytest.mark.parametrize(
    ("kernel", "hint"),
    [
        (WithoutVectorTail, "the tail along i0 is not written: what a tile of 4 does not fill"),
        (ExpertBefore, "every row uses the expert before: each id is taken one too small"),
        (RowBefore, "each index is taken one too small"),
        (SumsUpToFour, "what a tile of 4 does not fill is left out of the sums"),
        (AddsTheRestTwice, "what a tile of 4 does not fill is added twice to the sums"),
        (
            AddsToWhatWasThere,
            "out is read before it is written: the NaN is made from what stood there before the run",
        ),
        pytest.param(SwapsCodes, "a (q4_0): the two 4-bit codes of each byte are swapped", marks=_NEEDS_GGUF),
        pytest.param(
            TakesCodesInPairs,
            "a (q4_0): the two 4-bit codes of a byte are taken for neighbours, not for elements i and i + 16",
            marks=_NEEDS_GGUF,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_is_named(kernel: type[One], hint: str) -> None:
    assert failure_of(kernel).hint == hint


def test_bytes_behind_the_last_element_are_called_so() -> None:
    (finding, *_) = failure_of(RoundsUpToFour).findings
    assert finding.kind == Kind.WROTE_OUTSIDE
    assert finding.detail.endswith("of out changed, the first at byte 4, right after the last element")


def test_an_element_that_was_never_written_is_called_so_and_its_bits_are_not_shown() -> None:
    failure = failure_of(WithoutVectorTail)
    assert failure.kind == Kind.NOT_WRITTEN
    text = screen(failure, [])
    assert "unwritten!" in text
    assert ": nothing was written, want " in text
    assert "nan" not in text
    plain = failure.to_json()
    assert Failure.from_json(plain).to_json() == plain
    sent = issue(Facts(failure, target_of(WithoutVectorTail)), {}, "it is only tried")
    assert "got **unwritten**.\nIt still holds what stood there before the run.\n" in sent
    assert "nan" not in sent
