"""What the backend ggml says of pieces fits what the cases say, and limits of single ops reach the pieces."""

from __future__ import annotations

import pytest

from opconform.backends.ggml.caching import STORED
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.limits import limits_of
from opconform.backends.ggml.pieces import BUILDS, steps_of
from opconform.harness.draw.known import checked, known_cases
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.limits import Limit
from opconform.harness.model.ops import ops
from tests.judge import drawn_cases

SHAPE = (1, 2, 3, 4)


def limits(device: str, build: str = "v0.5.0") -> set[Limit]:
    return set(limits_of(device, True, "", build, True))


@pytest.mark.parametrize("op", BUILDS)
def test_the_nodes_read_what_a_case_has_and_what_they_have_made(op: str) -> None:
    inputs, steps = ops()[op].inputs, steps_of(op, ops()[op].inputs)
    made: set[str] = set()
    for name, row in steps:
        assert set(row.tensors) <= {*inputs, *made}
        made.add(name)
    assert set(inputs) == {tensor for _, row in steps for tensor in row.tensors} - made


@pytest.mark.parametrize("op", BUILDS)
def test_what_may_be_kept_is_a_result_before_the_last(op: str) -> None:
    before = {name for name, _ in steps_of(op, ops()[op].inputs)[:-1]}
    kept = {str(case.params["kept"]) for case in drawn_cases(op, 200, 1 << 14)} - {"none"}
    assert kept
    assert kept <= before


def test_pieces_have_the_limits_of_the_ops_of_their_nodes() -> None:
    on_cpu = {(limit.op, limit.subject): limit for limit in limits("CPU")}
    assert on_cpu["add_rms_norm_mul", "a"].allowed == LayoutClass.ROWS
    assert on_cpu["adds", "l"].allowed == LayoutClass.ROWS  # the last operand may be turned
    assert ("add_rms_norm_mul", "normed") not in on_cpu
    assert {limit.subject for limit in limits("Vulkan0") if limit.op == "mul_mat_add"} >= {"a", "b", "repeats_ne3"}
    pinned = {limit.pinned for limit in limits("Vulkan0") if limit.op in BUILDS} - {None}
    assert {str(name).partition("/")[0] for name in pinned} <= set(BUILDS)  # those of single ops stay theirs


def test_no_other_limit_keeps_the_case_of_a_known_bug_from_being_run() -> None:
    for build in ("b6673", "b7836", "b8121", "v0.5.0"):
        for device in ("CPU", "Vulkan0"):
            found = limits(device, build)
            for bug in found:
                if bug.pinned and bug.op in {*BUILDS, *STORED}:
                    case = known_cases()[bug.pinned].case
                    traits = ops()[case.op].traits(case)
                    forbidding = [it for it in found if it.op == case.op and it.forbids(case, traits)]
                    assert bug in forbidding
                    assert {it.kind for it in forbidding} == {"bug"}, (build, forbidding)


def test_every_limit_on_a_piece_is_about_something_that_it_has() -> None:
    for build in ("b6673", "b7836", "b8121", "v0.5.0"):
        for limit in (*limits("CPU", build), *limits_of("Vulkan0", True, "llvmpipe", build, True)):
            if limit.op in GRAPHS and limit.op in {*BUILDS, *STORED, "moe_routing"}:
                known = next(known.case for known in known_cases().values() if known.case.op == limit.op)
                limit.forbids(known, ops()[limit.op].traits(known))  # raises LookupError where there is no such thing


def piece(**changed: object) -> Case:
    layout = Layout.contiguous("f32", SHAPE)
    params = {"eps": 1e-6, "kept": "none", "made": False, "turned": False, **changed}
    w = Layout.contiguous("f32", (1, 1, 1, 4))
    outputs = {"out": layout, **({"mid": layout} if params.pop("mid", False) else {})}
    return Case("rms_norm_mul", params, {"x": layout, "w": w}, outputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (piece(kept="normed"), "kept is normed, and outputs are out; mid holds what is kept"),
        (piece(mid=True), "kept is none, and outputs are out, mid; mid holds what is kept"),
        (piece(kept="weighed", mid=True), "kept is 'weighed'; it must be one of none, normed"),
        (piece(turned=True), "w has shape (1, 1, 1, 4); turned, it must be that of x"),
    ],
)
def test_what_does_not_fit_together_is_refused(case: Case, says: str) -> None:
    with pytest.raises(CaseError) as error:
        checked(case)
    assert says in str(error.value)


def test_an_addend_may_be_left_out_only_at_the_end() -> None:
    layout = Layout.contiguous("f32", SHAPE)
    case = Case(
        "adds", {"kept": "none", "made": False, "turned": False}, dict.fromkeys("abce", layout), {"out": layout}
    )
    with pytest.raises(CaseError, match="only the last of them may be left out"):
        checked(case)
