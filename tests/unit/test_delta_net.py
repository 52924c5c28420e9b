"""Delta net: the references against loops, right kernels that must pass, wrong ones that must be named, the bounds.

`python -m tests.unit.test_delta_net` prints how much wider than the errors of right kernels the bounds are.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opconform.cases.delta_net import OPS as DELTA_OPS
from opconform.cases.delta_net import chunks as delta_chunks
from opconform.cases.delta_net import rule as delta_rule
from opconform.harness.explain.failure import Failure
from opconform.harness.explain.stages import judged_stages
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F64
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.values import data_of, inputs_of
from opconform.harness.run.backend import Device
from opconform.harness.run.relations import Others, metamorphic_findings
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.judge import Bench, Benches, drawn_benches, drawn_cases
from tests.kernels import delta_wrong
from tests.kernels.delta import Delta
from tests.kernels.delta_odd import ODD, Odd
from tests.kernels.delta_wrong import WRONG, Wrong

OPS = {op.name: op for op in DELTA_OPS}
ODD_CASES = int(os.environ.get("OPCONFORM_ODD_CASES", "6000")) // 24
PARTS = 4  #: tests for each op's cases, so that several workers may share them
SMALL = 1 << 16

PARAMS: dict[str, Any] = {
    "scale": 0.5,
    "heads": "tiled",
    "state_layout": "kv",
    "l2norm": False,
    "eps": 1e-6,
    "gate": "log",
}
CHUNK: dict[str, Any] = {"chunk": 16, "form": "whole", "place": "set"}


def a_case(
    op: str = "gated_delta_net",
    sequences: int = 1,
    tokens: int = 3,
    key_heads: int = 1,
    heads: int = 1,
    keys: int = 2,
    width: int = 2,
    gates: int = 1,
    state: bool = True,
    recipe: str = "normal",
    seed: int = 0,
    **params: Any,
) -> Case:
    """A packed case."""
    own = CHUNK if op == "gated_delta_net_chunk" else {"snapshots": 1}
    params = {**PARAMS, **own, **params}
    square = (keys, width) if params["state_layout"] == "kv" else (width, keys)
    shapes = {
        "q": (sequences, tokens, key_heads, keys),
        "k": (sequences, tokens, key_heads, keys),
        "v": (sequences, tokens, heads, width),
        "g": (sequences, tokens, heads, gates),
        "beta": (sequences, tokens, heads, 1),
        **({"state": (sequences, heads, *square)} if state else {}),
    }
    outputs = {"out": shapes["v"], "state_out": (sequences * int(params.get("snapshots", 1)), heads, *square)}
    packed = [{name: Layout.contiguous("f32", x) for name, x in part.items()} for part in (shapes, outputs)]
    return Case(op, params, *packed, recipe=recipe, seed=seed)


# --- the reference ---


def reader(bench: Bench, name: str) -> Callable[..., float]:
    """Reads one element of an argument, by its index outermost first, from the bytes a backend gets."""
    layout, start = bench.case.layouts[name], bench.plan.slots[name].start

    def read(*index: int) -> float:
        place = start + layout.offset + sum(i * stride for i, stride in zip(index, layout.strides))
        return float(struct.unpack_from("<f", bench.before.data, place)[0])

    return read


def by_loops(bench: Bench) -> dict[str, F64]:
    """The definition, element by element, in Python's own floats."""
    case, params = bench.case, bench.case.params
    q, k, v, g, beta = (reader(bench, name) for name in ("q", "k", "v", "g", "beta"))
    (sequences, tokens, key_heads, keys), (heads, width) = case.inputs["q"].shape, case.inputs["v"].shape[2:]
    per_channel, kept = case.inputs["g"].shape[3] > 1, int(params.get("snapshots", 1))
    found = {name: np.full(layout.shape, np.nan) for name, layout in case.outputs.items()}

    def normed(read: Callable[..., float], b: int, t: int, h: int) -> list[float]:
        row = [read(b, t, h, d) for d in range(keys)]
        length = math.sqrt(math.fsum(x * x for x in row) + float(params["eps"])) if params["l2norm"] else 1.0
        return [x / length for x in row]

    for b in range(sequences):
        for h in range(heads):
            key_head = h % key_heads if params["heads"] == "tiled" else h // (heads // key_heads)
            at = (lambda i, j: (i, j)) if params["state_layout"] == "kv" else (lambda i, j: (j, i))
            state = [[0.0] * width for _ in range(keys)]
            if "state" in case.inputs:
                read = reader(bench, "state")
                state = [[read(b, h, *at(i, j)) for j in range(width)] for i in range(keys)]
            for t in range(tokens):
                query, key = normed(q, b, t, key_head), normed(k, b, t, key_head)
                gates = [g(b, t, h, i if per_channel else 0) for i in range(keys)]
                decay = [math.exp(x) for x in gates] if params["gate"] == "log" else gates
                for j in range(width):
                    column = [decay[i] * state[i][j] for i in range(keys)]
                    d = beta(b, t, h, 0) * (v(b, t, h, j) - math.fsum(column[i] * key[i] for i in range(keys)))
                    for i in range(keys):
                        state[i][j] = column[i] + key[i] * d
                    seen = math.fsum(state[i][j] * query[i] for i in range(keys))
                    found["out"][b, t, h, j] = float(params["scale"]) * seen
                snapshot = tokens - 1 - t
                if snapshot < kept:
                    for i in range(keys):
                        for j in range(width):
                            found["state_out"][(snapshot * sequences + b, h, *at(i, j))] = state[i][j]
    return found


def work(case: Case) -> int:
    """The multiplications of the loops."""
    return math.prod(case.inputs["v"].shape) * case.inputs["k"].shape[3]


def close(want: F64, got: F64, bound: F64) -> bool:
    """Whether two computations in float64 agree: what float32 may lose of the same value is 2^29 times as much."""
    scale = np.abs(want).max(initial=1e-300)
    return bool(np.all(np.abs(want - got) <= 1e-9 * np.abs(want) + 1e-12 * scale + 2.0**-26 * bound))


@pytest.mark.parametrize("op", OPS)
def test_the_reference_is_the_definition_element_by_element(op: str) -> None:
    cases = [c for c in drawn_cases(op, 800, 1 << 13) if c.keep is None and work(c) <= 1500][:120]
    assert len(cases) == 120
    for case in cases:
        bench = Bench(case)
        expected, found = bench.expected(), by_loops(bench)
        told = ~np.isnan(found["state_out"])
        state = expected.others["state_out"]
        assert np.abs(found["out"]).max() < 1e30
        assert close(found["out"], expected.value, expected.bound), case
        assert close(found["state_out"][told], state.value[told], state.bound[told]), case
        assert np.isinf(state.bound[~told]).all(), "what stands for a snapshot from before the first token is free"


def in_chunks(rule: delta_rule.Rule, chunk: int) -> tuple[F64, F64]:
    """out and the last state by the chunked formulas, exactly."""
    its = delta_chunks.chunks_of(rule, chunk)
    gamma = np.exp(delta_chunks.gaps_of(its.sums))
    size = its.k.shape[2]
    akk = its.beta * delta_chunks.products(its.k, its.k, gamma) * np.tri(size, size, -1)
    aqk = delta_chunks.products(its.q, its.k, gamma)
    state, outs = rule.state, []
    for n in range(len(akk)):
        start = np.exp(its.sums[n])
        left = its.beta[n] * (its.v[n] - (start * its.k[n]) @ state)
        new = np.linalg.solve(np.eye(size) + akk[n], left)
        outs.append(rule.scale * ((its.q[n] * start) @ state + aqk[n] @ new))
        end = np.exp(its.sums[n][:, -1:] - its.sums[n])
        state = start[:, -1, :, None] * state + (end * its.k[n]).swapaxes(1, 2) @ new
    return delta_chunks.joined(rule, np.stack(outs)), state


def test_the_chunked_and_the_recurrent_form_are_one_function() -> None:
    """And no chunk size makes a difference."""
    for case in drawn_cases("gated_delta_net_chunk", 160, SMALL):
        if case.recipe not in ("unit_keys", "slow_decay", "small_int") or case.keep is not None:
            continue
        values = delta_rule.decoded(case, inputs_of(case, OPS[case.op]))
        rule = delta_rule.rule_of(case, values, EXACT)
        exact = delta_rule.walk(rule)
        for chunk in (1, 7, 16, 64):
            out, state = in_chunks(rule, chunk)
            size = 1 + np.abs(exact.states).max()  # of what cancels on the way
            query = abs(rule.scale) * (1 + delta_rule.length(rule.q).max())
            assert np.allclose(out, exact.out, rtol=1e-12, atol=1e-12 * size * query), case
            assert np.allclose(state, exact.states[-1], rtol=1e-12, atol=1e-12 * size), case


@pytest.mark.parametrize("op", OPS)
def test_strong_decay_overflows_exp_of_minus_g_and_is_judged_all_the_same(op: str) -> None:
    seen = 0
    for case in drawn_cases(op, 600, SMALL):
        if case.recipe == "strong_decay" and case.keep is None and case.params["gate"] == "log":
            gates = np.cumsum(Bench(case).values["g"].view(np.float32).astype(np.float64), axis=1)
            expected = Bench(case).expected()
            seen += bool(gates.min() < -89)
            assert np.isfinite(expected.value).all()
            assert np.isfinite(expected.bound).mean() > 0.5
    assert seen > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3, "key_heads": 2}, "v has 3 heads; they must be a multiple of the 2 of k"),
        ({"state_layout": "kk"}, "state_layout is 'kk'; it must be one of kv, vk"),
        ({"gate": "sigmoid"}, "gate is 'sigmoid'; it must be one of log, decay"),
        ({"eps": 0.0}, "eps is 0.0; it must be from 1e-20 to 1"),
        ({"snapshots": 0}, "snapshots is 0; it must be from 1 to 1024"),
        ({"gates": 3}, "g has shape (1, 3, 1, 3); it must be (1, 3, 1, 1)"),
        ({"op": "gated_delta_net_chunk", "chunk": 17}, "chunk is 17; it must be one of 16, 32, 64"),
        ({"op": "gated_delta_net_chunk", "form": "blockwise"}, "a chunk of 16 has no 16×16 blocks to place"),
    ],
)
def test_a_case_that_cannot_be_says_what_would_be_right(changes: dict[str, Any], message: str) -> None:
    case = a_case(**changes)
    with pytest.raises(CaseError, match=message.replace("(", r"\(").replace(")", r"\)")):
        OPS[case.op].check(case)


@pytest.mark.parametrize("op", OPS)
def test_everything_that_a_case_may_be_comes_up(op: str) -> None:
    cases = drawn_cases(op, 1600, SMALL)
    for name, values in (
        ("heads", {"tiled", "interleaved"}),
        ("state_layout", {"kv", "vk"}),
        ("l2norm", {False, True}),
        ("gate", {"log", "decay"}),
        *({"gated_delta_net": [("snapshots", {1, 2, 3, 5})]}.get(op, [("chunk", {16, 32, 64})])),
    ):
        assert {case.params[name] for case in cases} >= values
    for trait in ("gda", "square", "has_state", "usual_scale"):
        assert {OPS[op].traits(case)[trait] for case in cases} == {False, True}
    assert {case.recipe for case in cases} == set(OPS[op].composite.recipes)
    assert {case.inputs["v"].shape[0] > 1 for case in cases} == {False, True}
    assert any(case.shares for case in cases), "q, k and v as views of one tensor"
    if op == "gated_delta_net_chunk":
        forms = {(case.params["form"], case.params["place"]) for case in cases}
        assert forms == {("whole", "set"), ("blockwise", "set"), ("blockwise", "acc")}
        assert any(case.inputs["v"].shape[1] > int(case.params["chunk"]) for case in cases)


# --- right kernels ---


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("op", OPS)
def test_no_right_kernel_is_ever_blamed(op: str, part: int) -> None:
    """All kernels on the same cases: a case is drawn, laid out and computed in float64 once."""
    kernels = [(odd, odd.kernel()) for odd in ODD if op in odd.ops]
    for number, case in enumerate(drawn_cases(op, ODD_CASES // PARTS, SMALL, number=part)):
        bench = Bench(case)
        for odd, kernel in kernels:
            if number % odd.each:
                continue
            assert bench.passes(kernel, odd.numerics), f"{odd}: {case}: {bench.verdict(kernel, odd.numerics).findings}"


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_no_stage_of_a_right_kernel_is_wrong(odd: Odd) -> None:
    for op in odd.ops:
        for case in drawn_cases(op, 24, 1 << 13, number=9):
            said = judged_stages(OPS[op], case, shown(Bench(case), odd.kernel()), odd.numerics)
            assert said.startswith("none is wrong by itself") or not said, f"{case}: {said}"


def shown(bench: Bench, kernel: Delta) -> Mapping[str, F64]:
    buffers = Buffers(bench.case, bench.before.copy(), bench.plan)
    with np.errstate(invalid="ignore"):
        stages = {name: x.astype(np.float64) for name, x in kernel.stages(bench.case, buffers).items()}
    outputs = {n: layout.type.decode(np.array(buffers.raw(n))) for n, layout in bench.case.outputs.items()}
    return {**stages, **outputs}


def runner_of(kernel: type[Delta]) -> Runner:
    """A runner of a kernel in this process."""
    spec = f"{sys.modules[kernel.__module__].__file__}:{kernel.__name__}"
    return Runner(Target(spec, Device("0", "NumPy")), isolated=False)


def relations(kernel: type[Delta], case: Case) -> list[str]:
    """The relations between runs that do not hold for a kernel, which computes the case itself as it should."""
    op = OPS[case.op]
    with runner_of(kernel) as runner:
        (verdict,) = runner.verdicts(op, [case])
        assert verdict.passed, verdict.findings
        return [finding.check for finding in metamorphic_findings(op, verdict, Others(runner, op, None))]


@pytest.mark.parametrize("op", OPS)
def test_relations_between_runs_hold_for_a_right_kernel(op: str) -> None:
    cases = [case for case in drawn_cases(op, 400, SMALL) if case.packed() == case and case.keep is None]
    assert len(cases) > 30
    for case in cases:
        assert relations(Delta, case) == []


# --- wrong kernels ---


def failure_found(wrong: Wrong) -> Failure:
    with runner_of(wrong.kernel) as runner:
        failure = Search(OPS[wrong.op], runner, Settings(seed=1)).run().failure
    assert failure is not None, "not caught in a run of the default size"
    return failure


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_kernel_is_caught_and_its_stage_and_fault_are_named(wrong: Wrong) -> None:
    failure = failure_found(wrong)
    assert failure.kind in ((wrong.kind,) if isinstance(wrong.kind, str) else wrong.kind)
    assert failure.stage.startswith(wrong.stage)
    assert wrong.hint in failure.hint
    assert failure.case.nbytes < 4000, "shrunk"


def with_beta(case: Case, *beta: float) -> Case:
    """The case with the same β for all tokens of a head."""
    values = inputs_of(case, OPS[case.op])
    values["beta"] = np.broadcast_to(np.float32(beta)[:, None], values["beta"].shape).copy().view(np.uint32)
    return case.with_data(data_of(values))


@pytest.mark.parametrize(
    ("kernel", "case", "relation"),
    [
        (delta_wrong.IgnoresState, a_case(state=False, tokens=4, recipe="unit_keys"), "split_state"),
        (delta_wrong.LosesLoneSequence, a_case(sequences=2, recipe="unit_keys"), "sequence_isolation"),
        (delta_wrong.OnlyFirstHeadHasBeta, with_beta(a_case(heads=2), 0.5, 1), "head_permutation"),
        (delta_wrong.DropsDiagonalOf32, a_case("gated_delta_net_chunk"), "chunk_size"),
        (delta_wrong.DecaysLate, a_case("gated_delta_net_chunk"), "recurrent_is_chunk"),
        (delta_wrong.IgnoresState, a_case("gated_delta_net_chunk", tokens=20, state=False), "split_state"),
    ],
)
def test_a_relation_that_does_not_hold_is_found(kernel: type[Delta], case: Case, relation: str) -> None:
    assert relations(kernel, case) == [relation]


def test_relations_may_be_asked_in_turn() -> None:
    case, turns = a_case(state=False, tokens=4, recipe="unit_keys"), itertools.count()
    op = OPS[case.op]
    with runner_of(delta_wrong.IgnoresState) as runner:
        (verdict,) = runner.verdicts(op, [case])
        asked = [metamorphic_findings(op, verdict, Others(runner, op, None), turns) for _ in op.composite.metamorphic]
    assert [[finding.check for finding in findings] for findings in asked] == [["split_state"], [], []]


def test_a_wrong_op_is_named_where_another_one_is_compared_with_it() -> None:
    case, op = a_case("gated_delta_net_chunk"), OPS["gated_delta_net_chunk"]
    with runner_of(delta_wrong.DecaysLate) as runner:
        (verdict,) = runner.verdicts(op, [case])
        (finding,) = metamorphic_findings(op, verdict, Others(runner, op, None))
    named = "gated_delta_net is wrong there by itself, WRONG VALUES, and gated_delta_net_chunk is right"
    assert finding.detail.endswith(f"; {named}")


# --- the bounds ---


def benches(op: str, count: int) -> Benches:
    return drawn_benches(op, count, 1 << 20, number=3)


def ratios(op: str, kernel: type[Delta], count: int) -> list[float]:
    """How many times the largest error of an output the bound is, at the element where it is tightest."""
    found = []
    for bench in benches(op, count):
        for comparison in bench.verdict(kernel()).comparisons:
            some = (comparison.error > 0) & np.isfinite(comparison.bound) & np.isfinite(comparison.got)
            if some.any():
                found.append(float((comparison.bound[some] / comparison.error[some]).min()))
    return found


@pytest.mark.parametrize("op", OPS)
def test_the_bound_is_a_small_multiple_of_the_error_of_a_plain_kernel(op: str) -> None:
    found = ratios(op, Delta, 400)
    assert np.median(found) < 100
    assert min(found) >= 1


@pytest.mark.parametrize("op", OPS)
def test_little_is_left_free(op: str) -> None:
    """Only where float32 overflows or a solve may fail; and only for keys longer than 1."""
    some = (bench for bench in benches(op, 400) if bench.case.keep is None)
    free = [(bench.case.recipe, np.isinf(bench.expected().bound).mean()) for bench in some]
    assert {recipe for recipe, share in free if share} <= {"normal", "wide"}
    assert np.mean([share for _, share in free]) < 0.05


@pytest.mark.parametrize("op", OPS)
def test_one_element_that_is_off_by_twice_the_bound_is_caught(op: str) -> None:
    class Corrupts(Delta):
        def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
            values = values.copy()
            values.flat[-1] += 2.1 * bound[name].flat[-1]
            super().write(buffers, name, values)

    case = a_case(op, sequences=2, tokens=20, heads=2, keys=8, width=8, recipe="unit_keys")
    bench = Bench(case)
    expected = bench.expected()
    bound = {"out": expected.bound, "state_out": expected.others["state_out"].bound}
    wrong = [int(np.count_nonzero(comparison.wrong)) for comparison in bench.verdict(Corrupts()).comparisons]
    assert wrong == [1, 1]


def test_the_bound_follows_growth_outside_the_contractive_regime() -> None:
    """Keys of length 2 with β = 1: each step turns a column's part along k over and makes it three times as large."""
    short, long = (with_beta(a_case(tokens=12, keys=1, width=1, recipe="unit_keys"), 1) for _ in range(2))
    values = inputs_of(long, OPS[long.op])
    values["k"] = np.full(values["k"].shape, 2, np.float32).view(np.uint32)
    values["g"] = np.zeros(values["g"].shape, np.uint32)
    grown = Bench(long.with_data(data_of(values))).expected()
    contractive = Bench(short).expected()
    growth = grown.bound[0, :, 0, 0] / contractive.bound[0, :, 0, 0]
    assert growth[-1] > 3**10
    assert grown.bound[0, -1, 0, 0] < 1e-4 * np.abs(grown.value[0, -1, 0, 0])


def test_a_state_that_overflows_float32_leaves_its_column_free() -> None:
    case = a_case(tokens=4, keys=1, width=2, recipe="small_int")
    values = inputs_of(case, OPS[case.op])
    state = np.array([[[[3e38, 1.0]]]], np.float32)
    values |= {"state": state.view(np.uint32), "k": np.full(values["k"].shape, 2, np.float32).view(np.uint32)}
    bound = Bench(replace(case, data=data_of(values))).expected().bound
    assert np.isinf(bound[..., 0]).all()
    assert np.isfinite(bound[..., 1]).all()
