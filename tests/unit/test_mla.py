"""MLA absorbed: the reference against loops, right kernels that must pass, wrong ones that must be named, the bound.

`python -m tests.unit.test_mla` prints how much wider than the errors of right kernels the bound is.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from opconform.cases.mla.absorbed import OP
from opconform.cases.mla.problems import FORMS
from opconform.harness.explain.failure import Failure
from opconform.harness.explain.stages import judged_stages
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F64
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.values import inputs_of
from opconform.harness.run.backend import Device
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.judge import Bench, Benches, drawn_benches, drawn_cases
from tests.kernels import mla
from tests.kernels.mla import FAULTS, Fault, Mla

ODD_CASES = int(os.environ.get("OPCONFORM_ODD_CASES", "6000")) // 24
PARTS = 4  #: tests for each kernel's cases, so that several workers may share them
SMALL = 1 << 18
LOOSE = Numerics(exp_ulps_per_unit=2.0)
NARROW = Numerics(narrow_operands=True)
NARROW_SUMS = Numerics(narrow_operands=True, narrow_sums=True)

ODD: tuple[tuple[type[Mla], Numerics], ...] = (
    (mla.Mla, EXACT),
    (mla.Blas, EXACT),
    (mla.Concatenated, EXACT),
    (mla.Pairwise, EXACT),
    (mla.Fused, EXACT),
    (mla.ScaledQuery, EXACT),
    (mla.Base2, EXACT),
    (mla.Float64, EXACT),
    (mla.Online, EXACT),
    (mla.Online5, EXACT),
    (mla.Online32, EXACT),
    (mla.Backwards, EXACT),
    (mla.LooseExponentials, LOOSE),
    (mla.ScatteredExponentials, LOOSE),
    (mla.NarrowOperands, NARROW),
    (mla.NarrowSums, NARROW_SUMS),
)


def a_case(
    sizes: tuple[int, ...] = (2, 3, 4, 8, 4, 2, 6, 5), mask: str | None = None, **params: float | str | bool | int
) -> Case:
    """A packed case of `sizes` (sequences, heads, queries, rows, d_n, d_r, d_c, d_v)."""
    sequences, heads, queries, rows, d_n, d_r, d_c, d_v = sizes
    shapes = {
        "q_nope": (sequences, heads, queries, d_n),
        "q_pe": (sequences, heads, queries, d_r),
        "c_kv": (sequences, 1, rows, d_c),
        "k_pe": (sequences, 1, rows, d_r),
        "w_uk": (1, heads, d_n, d_c),
        "w_uv": (1, heads, d_c, d_v),
    }
    inputs = {name: Layout.contiguous("f32", shape) for name, shape in shapes.items()}
    if mask is not None:
        inputs["mask"] = Layout.contiguous(mask, (1, 1, queries, rows))
    given = {"scale": 0.4, "form": "two_part", "causal": False, "kv_len": rows, "k_scale": 1.0, "v_scale": 1.0}
    out = Layout.contiguous("f32", (sequences, queries, heads, d_v))
    return Case("mla_absorbed", {**given, **params}, inputs, {"out": out}, recipe="normal")


# --- the reference ---


def reader(bench: Bench, name: str) -> Callable[..., float]:
    """Reads one element of an argument, by its index outermost first, from the bytes a backend gets."""
    layout, start = bench.case.layouts[name], bench.plan.slots[name].start

    def read(*index: int) -> float:
        place = start + layout.offset + sum(i * stride for i, stride in zip(index, layout.strides))
        if layout.dtype == "bf16":
            return float(struct.unpack("<f", b"\0\0" + bench.before[place : place + 2].tobytes())[0])
        return float(struct.unpack_from({"f32": "<f", "f16": "<e"}[layout.dtype], bench.before.data, place)[0])

    return read


def by_loops(bench: Bench) -> F64:
    """Keys and values of each head and row decompressed, one number at a time, and softmax as its definition says."""
    case, params = bench.case, bench.case.params
    read = {name: reader(bench, name) for name in case.inputs}
    sequences, queries, heads, d_v = case.outputs["out"].shape
    d_n, d_r, d_c = (case.inputs[name].shape[3] for name in ("q_nope", "q_pe", "c_kv"))
    kv_len, out = int(params["kv_len"]), np.zeros(case.outputs["out"].shape)
    for b, t, h in np.ndindex(sequences, queries, heads):
        scores, values = [], []
        for j in range(kv_len):
            bias = read["mask"](b if case.inputs["mask"].shape[0] > 1 else 0, 0, t, j) if "mask" in read else 0.0
            if bias == -math.inf or (params["causal"] and j > kv_len - queries + t):
                continue
            row = [read["c_kv"](b, 0, j, i) for i in range(d_c)]
            key = [sum(read["w_uk"](0, h, n, i) * row[i] for i in range(d_c)) for n in range(d_n)]
            latent = sum(read["q_nope"](b, h, t, n) * key[n] for n in range(d_n))
            rotary = sum(read["q_pe"](b, h, t, r) * read["k_pe"](b, 0, j, r) for r in range(d_r))
            scores.append(float(params["scale"]) * float(params["k_scale"]) * (latent + rotary) + bias)
            values.append([sum(row[i] * read["w_uv"](0, h, i, v) for i in range(d_c)) for v in range(d_v)])
        weights = [math.exp(score - max(scores)) for score in scores]
        for v in range(d_v if scores else 0):
            mean = math.fsum(w * value[v] for w, value in zip(weights, values)) / math.fsum(weights)
            out[b, t, h, v] = float(params["v_scale"]) * mean
    return out


def test_the_reference_is_the_definition_element_by_element() -> None:
    small = [case for case in drawn_cases("mla_absorbed", 4000, 1 << 14) if case.keep is None and work(case) < 6_000]
    assert len(small) > 200
    seen: Counter[object] = Counter()
    for case in small[:200]:
        bench = Bench(case)
        value, found = bench.expected().value, by_loops(bench)
        assert np.allclose(value, found, rtol=1e-10, atol=1e-12), case
        seen.update([case.params["causal"], "mask" in case.inputs, bool(case.shares), case.inputs["c_kv"].dtype])
    assert min(seen.values()) >= 10  # each of these came up


def work(case: Case) -> int:
    sequences, heads, queries, _ = case.inputs["q_nope"].shape
    d_n, d_c, rows = case.inputs["w_uk"].shape[2], case.inputs["w_uk"].shape[3], case.inputs["c_kv"].shape[2]
    return sequences * heads * queries * rows * (d_n + case.outputs["out"].shape[3]) * d_c


def test_the_absorbed_and_the_unabsorbed_form_are_one_function() -> None:
    """In float64, where both orders of the sums are exact to some 1e-16."""
    for case in drawn_cases("mla_absorbed", 400, SMALL):
        if case.keep is None:
            bench = Bench(case)
            got = mla.Float64().computed(case, Buffers(case, bench.before.copy(), bench.plan))["out"]
            value = bench.expected().value
            with np.errstate(all="ignore"):
                largest = np.max(np.abs(value), initial=0.0)
            tolerance = 1e-12 if case.recipe != "large_logits" else 1e-10  # an error in a score grows with the score
            assert np.allclose(got, value, rtol=0, atol=tolerance * largest), case


@pytest.mark.parametrize("recipe", OP.composite.recipes)
def test_padding_rows_hold_nan_and_no_other_element_does(recipe: str) -> None:
    case = replace(a_case(kv_len=5), recipe=recipe)
    raw = inputs_of(case, OP)
    for name, layout in case.inputs.items():
        values = layout.type.decode(raw[name])
        padding = values[:, :, 5:] if name in ("c_kv", "k_pe") else values[:0]
        assert np.isnan(padding).all()
        assert np.count_nonzero(np.isnan(values)) == padding.size
    assert np.isfinite(Bench(case).expected().value).all()


def test_a_query_that_sees_no_key_gives_zero_exactly() -> None:
    bench = Bench(a_case((1, 2, 9, 4, 4, 2, 6, 5), causal=True))
    expected = bench.expected()
    assert not expected.value[:, :5].any()
    assert not expected.bound[:, :5].any()
    assert expected.value[:, 5:].all()


def test_nothing_is_demanded_where_a_mask_is_nan_beside_keys_that_are_not_seen() -> None:
    """NaN − ∞ is NaN: a kernel that adds what hides a key to what the mask says may return it. The sequence with the
    NaN is one that `keep` has spoilt; the other one is judged as ever."""
    case = a_case((2, 2, 9, 4, 4, 2, 6, 5), mask="f32", causal=True)
    inputs = {**case.inputs, "mask": Layout.contiguous("f32", (2, 1, 9, 4))}
    expected = Bench(replace(case, inputs=inputs, keep=1)).expected()
    assert np.isnan(expected.value[0]).all()
    assert not np.isnan(expected.value[1]).any()


def test_large_logits_stay_judged() -> None:
    """Scores of ±1000: exp overflows float32 unless the maximum is taken off; the bound stays below the values."""
    bench = Bench(replace(a_case((2, 4, 8, 64, 8, 8, 16, 8)), recipe="large_logits"))
    expected = bench.expected()
    assert np.isfinite(expected.bound).all()
    assert np.median(expected.bound) < 1e-2 * np.median(np.abs(expected.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {"kv_len": 9}}, "kv_len is 9; the cache has 8 rows"),
        ({"params": {"kv_len": -1}}, "kv_len is -1; the cache has 8 rows"),
        ({"params": {"form": "naive"}}, "form is 'naive'; it must be one of two_part, concat, flash"),
        ({"inplace": "q_nope"}, "mla_absorbed does not work in place"),
        ({"w_uk": (1, 2, 4, 6)}, r"w_uk has shape \(1, 2, 4, 6\); .* it must have \(1, 3, 4, 6\)"),
        ({"k_pe": (2, 1, 7, 2)}, r"k_pe has shape \(2, 1, 7, 2\); .* it must have \(2, 1, 8, 2\)"),
        ({"mask": (3, 1, 4, 8)}, r"mask has shape \(3, 1, 4, 8\); .* it must have \(2, 1, 4, 8\)"),
    ],
)
def test_a_case_that_cannot_be_says_what_would_be_right(changes: dict[str, object], message: str) -> None:
    case = a_case()
    shapes = {name: Layout.contiguous("f32", shape) for name, shape in changes.items() if isinstance(shape, tuple)}
    params = changes.get("params", {})
    assert isinstance(params, dict)
    inplace = "q_nope" if "inplace" in changes else None
    wrong = replace(case, params={**case.params, **params}, inputs={**case.inputs, **shapes}, inplace=inplace)
    OP.check(case)
    with pytest.raises(CaseError, match=message):
        OP.check(wrong)


# --- right kernels ---


def part_of(count: int, part: int) -> Iterator[Case]:
    yield from drawn_cases("mla_absorbed", count // PARTS, SMALL, number=part)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_right_kernel_is_ever_blamed(part: int) -> None:
    """Nor any of its stages."""
    kernels = [(kernel(), numerics) for kernel, numerics in ODD]
    for case in part_of(ODD_CASES, part):
        bench = Bench(case)
        for kernel, numerics in kernels:
            verdict = bench.verdict(kernel, numerics)
            assert verdict.passed, f"{type(kernel).__name__}: {case}: {verdict.findings}"
        assert first_wrong(bench, Mla()).startswith("none"), case


def first_wrong(bench: Bench, kernel: Mla) -> str:
    """What the report says of a kernel's stages."""
    shown = kernel.stages(bench.case, Buffers(bench.case, bench.before.copy(), bench.plan))
    return judged_stages(OP, bench.case, {name: np.asarray(x, np.float64) for name, x in shown.items()}, EXACT)


def test_sums_in_f16_are_wrong_on_a_device_that_promises_float32() -> None:
    cases = [case for case in drawn_cases("mla_absorbed", 400, SMALL) if case.inputs["c_kv"].dtype == "f16"]
    blamed = [Bench(case).verdict(mla.NarrowSums()).failed for case in cases if case.recipe == "normal"]
    assert np.mean(blamed) > 0.5  # one key alone sums nothing


def test_relations_between_runs_hold_for_a_right_kernel() -> None:
    ran = 0
    with runner_of(Mla) as runner:
        for case in drawn_cases("mla_absorbed", 400, 1 << 14):
            (verdict,) = runner.verdicts(OP, [case])
            assert verdict.passed
            assert related(runner, OP, verdict, ()).passed
            ran += case.packed() == case and case.keep is None
    assert ran >= 30


def test_nan_in_the_other_run_breaks_a_relation() -> None:
    case = next(case for case in drawn_cases("mla_absorbed", 400, 1 << 14) if case.packed() == case)
    with runner_of(Mla) as runner:
        (found,) = runner.verdicts(OP, [case])[0].comparisons
    assert np.isfinite(found.bound).any()
    nothing = replace(found, got=np.full(found.got.shape, np.nan))
    form = next(relation for relation in OP.composite.metamorphic if relation.name == "form")
    assert form.look(OP, case, inputs_of(case, OP), {"out": found}, lambda twin: {"out": found}) is None
    assert form.look(OP, case, inputs_of(case, OP), {"out": found}, lambda twin: {"out": nothing}) is not None


def test_a_crash_in_the_other_run_is_the_verdict_on_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = (case for case in drawn_cases("mla_absorbed", 400, 1 << 14) if case.packed() == case and case.keep is None)
    case = next(case for case in packed if case.inputs["q_nope"].shape[:2] == (1, 1))
    with runner_of(Mla) as runner:
        (verdict,) = runner.verdicts(OP, [case])
        crash = Finding("process", Kind.CRASH, "the process ended")
        monkeypatch.setattr(runner, "verdicts", lambda op, cases, time_limit: [Verdict(cases[0], (crash,))])
        found = related(runner, OP, verdict, ())
    assert (found.findings, found.kind) == ((crash,), "CRASH")
    assert found.case != case


def runner_of(kernel: type[Mla]) -> Runner:
    """A runner of a kernel in this process."""
    spec = f"{sys.modules[kernel.__module__].__file__}:{kernel.__name__}"
    return Runner(Target(spec, Device("0", "NumPy")), isolated=False)


# --- wrong kernels ---


def benches() -> Benches:
    return drawn_benches("mla_absorbed", 1000, SMALL)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_wrong_kernel_is_caught_and_its_stage_named(fault: Fault) -> None:
    kernel, kinds, stages = fault.kernel(), Counter[str](), Counter[str]()
    flash = issubclass(fault.kernel, mla.Online)
    for bench in benches():
        verdict = bench.verdict(kernel)
        if verdict.failed:
            kinds[verdict.kind] += 1
            shows = (bench.case.params["form"] == "flash") == flash and bench.case.keep is None
            shows &= bench.case.recipe != "flat"  # whose scores do not depend on the keys
            hidden = fault.kernel is mla.ReadsPadding and (bench.case.params["causal"] or "mask" in bench.case.inputs)
            if shows and not hidden and stages.total() < 12:  # padding that a mask hides is still multiplied by 0
                stages[first_wrong(bench, kernel).partition(" ")[0]] += 1
            if kinds.total() >= 60 and stages.total() == 12:
                break
    assert kinds[fault.kind] >= 20
    assert set(kinds) <= {fault.kind, fault.also, "SLICES MIXED"}
    assert set(stages) == {fault.stage}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_report_on_a_wrong_kernel_is_small_and_names_the_fault(fault: Fault) -> None:
    failure = failure_found(fault.kernel)
    assert failure.case.nbytes < 1000
    assert failure.case.recipe == fault.recipe or not fault.recipe
    assert fault.hint in failure.hint
    assert bool(fault.hint) == bool(failure.hint)
    if not issubclass(fault.kernel, mla.Online):
        assert failure.stage.startswith(fault.stage)


def failure_found(kernel: type[Mla]) -> Failure:
    with runner_of(kernel) as runner:
        failure = Search(OP, runner, Settings(seed=1)).run().failure
    assert failure is not None
    return failure


# --- what is drawn ---


def test_everything_that_a_case_may_be_comes_up() -> None:
    cases = drawn_cases("mla_absorbed", 2000, SMALL)
    drawn: Counter[object] = Counter()
    for case in cases:
        traits = OP.traits(case)
        drawn.update([case.params["form"], ("cache", traits["cache"]), ("mask", traits["mask"]), case.recipe])
        drawn.update([("causal", case.params["causal"]), ("padded", traits["padded"]), ("scaled", traits["scaled"])])
        drawn.update([("shared", bool(case.shares)), ("alone", case.inputs["q_nope"].shape[0] == 1)])
        drawn["no key seen"] += bool(case.params["causal"]) and case.inputs["q_nope"].shape[2] > int(
            case.params["kv_len"]
        )
        drawn["wide"] += traits["d_c"] >= 64
        drawn["long"] += int(case.params["kv_len"]) >= 64
    assert len(drawn) == 3 + 3 + 3 + len(OP.composite.recipes) + 5 * 2 + 3
    assert min(drawn.values()) >= 30, drawn


# --- the bound ---


def ratios(kernel: type[Mla], count: int, numerics: Numerics = EXACT) -> list[float]:
    """For each drawn case: how many times the largest error of a kernel its bound is."""
    found = []
    for case in drawn_cases("mla_absorbed", count, SMALL):
        bench = Bench(replace(case, keep=None))
        comparison = bench.comparison(bench.after(kernel()), numerics)
        judged = (comparison.error > 0) & np.isfinite(comparison.bound)
        if judged.any():
            found.append(float((comparison.bound[judged] / comparison.error[judged]).min()))
    return found


def test_the_bound_is_a_small_multiple_of_the_error_of_a_plain_kernel() -> None:
    found = ratios(Mla, 800)
    assert min(found) >= 1
    assert np.median(found) <= 50


def test_nothing_is_left_free() -> None:
    for case in drawn_cases("mla_absorbed", 800, SMALL):
        if case.keep is None:
            assert np.isfinite(Bench(case).expected().bound).all()


def test_one_element_that_is_off_by_twice_the_bound_is_caught() -> None:
    bench = Bench(a_case((2, 4, 8, 64, 8, 8, 16, 8)))
    left = bench.after(Mla())
    expected = bench.expected()
    place = np.unravel_index(int(np.argmax(expected.bound)), expected.bound.shape)
    left.array("out")[place] += 3 * expected.bound[place]
    assert np.count_nonzero(bench.comparison(left).wrong) == 1


@pytest.mark.parametrize("form", FORMS)
def test_the_bound_does_not_depend_on_the_form(form: str) -> None:
    bound = Bench(a_case(form=form)).expected().bound
    assert np.array_equal(bound, Bench(a_case()).expected().bound)


def figures(count: int) -> None:
    """Print the tightness figures."""
    for kernel, numerics in ODD:
        found = np.array(ratios(kernel, count, numerics))
        print(
            f"{kernel.__name__:15} bound / largest error: median {np.median(found):.3g}, "
            f"1st percentile {np.percentile(found, 1):.3g}, least {found.min():.3g} ({found.size} cases)"
        )


if __name__ == "__main__":
    figures(2000)
