"""The diagnosis: each fault it knows is named, no other is, and the elements that moved are told."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opconform.harness.draw.known import known_cases
from opconform.harness.explain import diagnosis
from opconform.harness.explain.diagnosis import Answer, Witness, _is_as_coarse, examine, hint
from opconform.harness.explain.failure import Failure, describe
from opconform.harness.explain.hypotheses import COARSE, hypotheses, named
from opconform.harness.judge.judging import Verdict
from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.findings import Kind
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from opconform.harness.run.backend import Device, Unavailable
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from opconform.reports.screen import screen
from tests.judge import OPS, drawn_cases
from tests.kernels import wrong
from tests.kernels.base import F32
from tests.kernels.correct import Correct
from tests.kernels.faults import FAULTS, Fault
from tests.kernels.row_wrong import ROW_FAULTS
from tests.kernels.small_faults import SMALL_FAULTS
from tests.kernels.small_wrong import NoEps
from tests.kernels.wrong import DropsRowsAbove65535
from tests.samples import acc

ALL_FAULTS = (*FAULTS, *SMALL_FAULTS, *ROW_FAULTS)
NE3 = "the outermost dimension (ne3) of b is not handled: only i3 = 0 is processed"


def runner_of(kernel: type[Correct]) -> Runner:
    """A runner of a kernel in this process."""
    spec = f"{sys.modules[kernel.__module__].__file__}:{kernel.__name__}"
    return Runner(Target(spec, Device("0", "NumPy")), isolated=False)


def failure_found(op: str, kernel: type[Correct], seed: int = 1) -> Failure:
    with runner_of(kernel) as runner:
        failure = Search(ops()[op], runner, Settings(seed=seed)).run().failure
    assert failure is not None
    return failure


def failure_on(case: Case, kernel: type[Correct]) -> Failure:
    with runner_of(kernel) as runner:
        (verdict,) = runner.verdicts(OPS[case.op], [case])
        assert verdict.failed
        return describe(OPS[case.op], runner, verdict)


def cumsum(*ne: int, **layout: Any) -> Case:
    shape = (*ne, 1, 1, 1, 1)[3::-1]
    packed = Layout.contiguous("f32", shape)
    params = {"axis": 0, "exclusive": False, "reverse": False}
    return Case("cumsum", params, {"x": replace(packed, **layout)}, {"out": packed})


# --- hints ---


@pytest.mark.parametrize("fault", ALL_FAULTS, ids=str)
def test_each_fault_is_named(fault: Fault) -> None:
    found = failure_found(fault.op, fault.kernel).hint
    plainest, _, others = found.partition("; or (no case run here tells which): ")
    assert fault.hint in (re.sub(r" \((in place only|explains|but) .*", "", plainest), *others.split("; "))


def pattern(says: str) -> str:
    """A hint without its numbers and arguments."""
    numbered = re.sub(r"\d+", "N", says.replace("the outermost dimension (ne3)", "dimension ne3"))
    return re.sub(r"\b(a|b|c|x|out)\b", "ARG", numbered)


@pytest.mark.parametrize("op", OPS)
def test_no_hypothesis_goes_without_a_kernel_that_has_its_fault(op: str) -> None:
    known = {pattern(fault.hint) for fault in ALL_FAULTS} | {"rows from number N on are not written"}
    tried = {
        pattern(hypothesis.says)
        for case in drawn_cases(op, 250, 1 << 16)
        for hypothesis in hypotheses(OPS[op], Image(case, inputs_of(case, OPS[op])))
    }
    assert tried <= known
    assert len(tried) > 15


def test_rows_beyond_a_grid_are_named() -> None:
    assert failure_on(cumsum(1, 65_600, 2), DropsRowsAbove65535).hint == "rows from number 65535 on are not written"


@pytest.mark.parametrize(
    "name",
    [
        *("acc-FlushesUnasked", "set-CanonicalZero", "set-ThroughF16", "cumsum-TileTailOffByOne"),
        *("cumsum-TotalMinusPrefix", "cumsum-DependsOnNeighbour"),
        *("solve_tri-OtherTriangleTimesZero", "solve_tri-HalfDots", "solve_tri-SkipsLastRow", "solve_tri-ByInverse"),
    ],
)
def test_a_fault_of_another_kind_gets_no_hint(name: str) -> None:
    (known,) = [known for known in wrong.WRONG if str(known) == name]
    assert failure_found(known.op, known.kernel).hint == ""


@pytest.mark.parametrize("seed", [3, 6, 7])
def test_an_error_that_is_only_within_what_16_bits_give_is_not_said_to_come_from_them(seed: int) -> None:
    assert failure_found("cumsum", wrong.TotalMinusPrefix, seed).hint == ""


@pytest.mark.parametrize("name", ["rms_norm_mul_rope/vulkan-ne3", "rope/pos-step"])
def test_what_a_device_allows_itself_beside_rounding_does_not_grow_with_16_bits(name: str) -> None:
    """A sine that may be off by 2^-11, whatever it gives, is no rounding."""
    case = known_cases()[name].case
    op = ops()[case.op]
    image = Image(case, inputs_of(case, op), "out")
    reading = named(hypotheses(op, image))[COARSE[0]].reading()
    assert reading.expect is not None
    foretold = reading.expect(case, reading.raw, Numerics(any_rounding=True, sin_absolute=2.0**-11))
    assert foretold.bound.max() < np.abs(foretold.value).max() / 16


@pytest.mark.parametrize("name", ["rms_norm_mul_rope/vulkan-ne3", "rope/pos-step", "rope/vulkan-ne3"])
def test_an_error_as_large_as_the_values_is_not_called_what_16_bits_give(name: str) -> None:
    """Each case twice as it should be; of a large position 16 bits could leave no digit of the angle."""
    case = known_cases()[name].case
    op, numerics = ops()[case.op], Numerics(any_rounding=True, sin_absolute=2.0**-11)
    raw = inputs_of(case, op)
    expected = expectation(case, op, raw, numerics)
    comparison = compare(case, op, raw, expected, DTYPES["f32"].encode(2 * expected.value), numerics, "out")
    witness = Witness(op, Image(case, raw, "out"), {"out": comparison}, numerics)
    hypothesis = named(hypotheses(op, witness.image))[COARSE[0]]
    assert witness.on(hypothesis) is Answer.REFUTES or not _is_as_coarse(witness, COARSE[0])


def test_nan_from_beside_the_elements_is_told_by_its_bits() -> None:
    says = "bytes are read that belong to no element: the NaN is the one that fills the gaps of inputs"
    assert failure_found("cumsum", wrong.ReadsPastRow).hint == says


class Noise(Correct):
    """Wrong by chance, but the same way each time."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        noise = np.random.default_rng(values.size).integers(-1, 2, values.shape)
        buffers.array(name)[...] = values + noise.astype(values.dtype)


class AllButOne(wrong.IgnoresI3):
    """Drops ne3, except for the very last element of b."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        values = np.array(values)
        values[-1, -1, -1, -1] += buffers.array("b")[-1, -1, -1, -1]
        buffers.array(name)[...] = values


class OneMore(wrong.IgnoresI3):
    """Drops ne3, and one element that is not concerned is wrong as well."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        values = np.array(values)
        values[0, 0, 0, 0] += np.float32(0.5)
        buffers.array(name)[...] = values


@pytest.mark.parametrize("op", [*OPS, "group_norm"])
def test_noise_gets_no_hint(op: str) -> None:
    for seed in (1, 2, 3):
        assert failure_found(op, Noise, seed).hint == ""


@pytest.mark.parametrize("kernel", [AllButOne, OneMore])
def test_a_hypothesis_must_explain_every_element(kernel: type[Correct]) -> None:
    case = acc(3, 2, 1, 2)
    assert failure_on(case, wrong.IgnoresI3).hint == NE3
    assert failure_on(case, kernel).hint == ""


class ReturnsOne(Correct):
    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        buffers.array(name)[...] = 1


def test_chance_does_not_make_a_hint() -> None:
    """The kernel returns 1 for 1 + 1, as it would if nothing had been added; but it returns 1 for anything."""
    one = np.array([1.0], np.float32).tobytes()
    assert failure_on(acc(1).with_data({"a": one, "b": one}), ReturnsOne).hint == ""


def test_a_failure_that_does_not_repeat_gets_no_hint() -> None:
    with runner_of(wrong.IgnoresI3) as runner:
        (verdict,) = runner.verdicts(OPS["acc"], [acc(1, 1, 1, 2)])
        assert hint(OPS["acc"], runner, verdict) == NE3
        unsteady = replace(verdict, findings=(replace(verdict.findings[0], kind=Kind.NOT_DETERMINISTIC),))
        assert hint(OPS["acc"], runner, unsteady) == ""


def test_what_a_hypothesis_does_not_foretell_elsewhere_is_said() -> None:
    """KB001 whole: ne3 is dropped, and b is read as if it were packed."""
    with runner_of(wrong.VulkanAcc) as runner:
        case = acc(1, 1, 1, 2)
        padded = acc(3, 2, 2)
        padded = replace(padded, inputs={**padded.inputs, "b": Layout("f32", (1, 2, 2, 3), (128, 32, 16, 4))})
        verdict, other = runner.verdicts(OPS["acc"], [case, padded])
        assert hint(OPS["acc"], runner, verdict) == NE3
        found = hint(OPS["acc"], runner, verdict, [other])
    assert re.fullmatch(re.escape(NE3) + r" \(explains all but 1 of \d+ other failures\)", found)


def test_a_hint_that_most_other_failures_refute_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """KB001 whole, where all that is known besides are failures of a padded b."""
    monkeypatch.setattr(diagnosis, "grown", lambda op, case: iter(()))
    with runner_of(wrong.VulkanAcc) as runner:
        padded = acc(3, 2, 2)
        padded = replace(padded, inputs={**padded.inputs, "b": Layout("f32", (1, 2, 2, 3), (128, 32, 16, 4))})
        verdict, right, *others = runner.verdicts(OPS["acc"], [acc(1, 1, 1, 2), acc(3, 1, 1, 2), *[padded] * 10])
        assert hint(OPS["acc"], runner, verdict, [right]) == NE3
        assert hint(OPS["acc"], runner, verdict, [right, *others[:1]]).startswith(NE3)
        assert hint(OPS["acc"], runner, verdict, others) == ""


def test_a_fault_that_works_in_place_alone_is_said_to() -> None:
    failure = failure_found("acc", wrong.ReadsAfterOverwrite, seed=2)
    assert failure.case.inplace == "a"
    assert failure.hint == "b is added twice (in place only)"


class Triples(Correct):
    def inclusive(self, case: Case, x: F32) -> F32:
        return np.add.accumulate(3 * x, axis=0, dtype=np.float32)


def test_an_op_adds_hypotheses_of_its_own() -> None:
    def tripled(image: Image) -> Iterator[Hypothesis]:
        dtype = image.case.inputs["x"].type
        yield Hypothesis("x is tripled", lambda: image.with_inputs(x=dtype.encode(3 * dtype.decode(image.raw["x"]))))

    op: Op = replace(OPS["cumsum"], hypotheses=tripled)
    with runner_of(Triples) as runner:
        (verdict,) = runner.verdicts(op, [cumsum(5, 3)])
        assert hint(op, runner, verdict) == "x is tripled"


def test_a_diagnosis_that_breaks_does_not_take_the_failure_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(op: Op, image: Image) -> Iterator[Hypothesis]:
        raise IndexError("no such axis")

    monkeypatch.setattr(diagnosis, "hypotheses", breaks)
    failure = failure_on(acc(1, 1, 1, 2), wrong.IgnoresI3)
    assert failure.hint == "none, for the diagnosis failed (IndexError: no such axis)"
    assert failure.kind == "WRONG VALUES"


def test_a_device_lost_during_a_diagnosis_does_not_take_the_failure_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with runner_of(wrong.IgnoresI3) as runner:
        (verdict,) = runner.verdicts(OPS["acc"], [acc(1, 1, 1, 2)])

        def lost(*_: object, **__: object) -> list[Verdict]:
            raise Unavailable("the device is lost", "reset it")

        monkeypatch.setattr(runner, "verdicts", lost)
        text, moved = examine(OPS["acc"], runner, verdict)
    assert text.startswith("none, for the diagnosis failed (Unavailable: the device is lost")
    assert moved == ()


# --- provenance ---


def moved(case: Case, kernel: type[Correct]) -> tuple[str, ...]:
    return failure_on(case, kernel).provenance


def as_set(case: Case, **layouts: Mapping[str, Layout]) -> Case:
    return replace(case, op="set", **layouts)


def test_a_dropped_addend_is_missing() -> None:
    (line,) = moved(acc(1, 1, 1, 2), wrong.IgnoresI3)
    place = "(i0=0,i1=0,i2=0,i3=1)"
    assert line == f"out{place} holds a{place} (flat 1), should hold a{place} + b{place}"


def test_an_element_read_from_another_place_is_named_by_its_index() -> None:
    """b lies with its rows and columns exchanged, and is read as if it did not."""
    case = replace(acc(2, 2), recipe="index")
    turned = as_set(replace(case, inputs={**case.inputs, "b": Layout("f32", (1, 1, 2, 2), (16, 16, 4, 8))}))
    assert moved(turned, wrong.ReadsPackedB) == (
        "out(i0=1,i1=0,i2=0,i3=0) holds b(i0=0,i1=1,i2=0,i3=0) (flat 2), should hold b(i0=1,i1=0,i2=0,i3=0)",
        "out(i0=0,i1=1,i2=0,i3=0) holds b(i0=1,i1=0,i2=0,i3=0) (flat 1), should hold b(i0=0,i1=1,i2=0,i3=0)",
    )


def test_gaps_unwritten_elements_and_wrong_sums_are_told() -> None:
    case = acc(1, 1, 1, 2)
    padded = replace(case, inputs={**case.inputs, "b": Layout("f32", (2, 1, 1, 1), (8, 4, 4, 4))})
    place = "(i0=0,i1=0,i2=0,i3=1)"
    assert moved(padded, wrong.ReadsPackedB)[0].startswith(f"out{place} holds NaN, as gaps do, should hold a(")
    fault = next(fault for fault in FAULTS if fault.kernel.__name__ == "WritesViewOnly")
    place = "(i0=1,i1=0,i2=0,i3=0)"
    assert moved(acc(1, a=(2,)), fault.kernel) == (f"out{place} holds what was there before, should hold a{place}",)
    twice = next(fault for fault in FAULTS if fault.kernel.__name__ == "AddsTwice")
    assert "holds a(i0=0,i1=0,i2=0,i3=0) (flat 0) + 2 (no element of b), should" in moved(acc(1), twice.kernel)[0]


def test_only_the_first_elements_are_told_of() -> None:
    lines = moved(acc(3, 2, 1, 2), wrong.IgnoresI3)
    assert len(lines) == 5
    assert lines[-1] == "and 2 more"


def test_an_op_that_computes_has_no_provenance() -> None:
    assert failure_found("cumsum", wrong.ReadsPackedX).provenance == ()


# --- the failure and its screen ---


def test_the_screen_shows_hint_provenance_and_what_happens_elsewhere() -> None:
    failure = replace(failure_on(acc(1, 1, 1, 2), wrong.IgnoresI3), also="vulkan:0 agrees — the kernel is to blame")
    lines = screen(failure, []).splitlines()
    place = "(i0=0,i1=0,i2=0,i3=1)"
    moved = lines.index(f"  moved      out{place} holds a{place} (flat 1), should hold")
    assert lines[moved + 1] == f"             a{place} + b{place}"
    assert f"  hint       {NE3}" in lines
    assert "  also       vulkan:0 agrees — the kernel is to blame" in lines


def test_a_failure_keeps_its_diagnosis_in_json_and_old_files_read_without() -> None:
    failure = replace(failure_on(acc(1, 1, 1, 2), wrong.IgnoresI3), also="nobody")
    plain = failure.to_json()
    assert Failure.from_json(plain) == failure
    old = {name: value for name, value in plain.items() if name not in ("hint", "also", "provenance")}
    read = Failure.from_json(old)
    assert (read.hint, read.also, read.provenance) == ("", "", ())


def test_a_mistake_that_leaves_the_wrong_element_open_is_named_where_nothing_speaks_against_it() -> None:
    """The squares underflow: x / √0 is anything, and that the kernel returned infinity is no reason against it."""
    packed = Layout.contiguous("f32", (1, 1, 1, 1))
    params = {"eps_mode": "max", "eps": 1e-6}
    case = Case("l2_norm", params, {"x": packed}, {"out": packed}, "denormal", 0)
    assert failure_on(case, NoEps).hint == "eps is left out"
