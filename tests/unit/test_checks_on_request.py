"""The checks on request look at every batch slice, or say why they do not; NaN is blamed on the right slice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from opconform.harness.run.backend import Device
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from tests.judge import Bench, drawn_cases
from tests.kernels.base import F32
from tests.kernels.correct import Correct
from tests.kernels.delta import Delta
from tests.kernels.mla import Mla
from tests.kernels.small_wrong import TriangleTimesZero
from tests.kernels.wrong import TouchesNeighbour

BATCH = ON_REQUEST["batch_invariant"]
LEFT_OUT = "batch_invariant: all but 32 slices of a case that has more"


def packed(*ne: int) -> Layout:
    return Layout.contiguous("f32", (*ne, 1, 1, 1)[3::-1])


def cumsum(*ne: int, axis: int = 0) -> Case:
    layout = packed(*ne)
    params = {"axis": axis, "exclusive": False, "reverse": False}
    return Case("cumsum", params, {"x": layout}, {"out": layout}, recipe="normal")


def twins(case: Case) -> list[str] | str:
    op = ops()[case.op]
    found = BATCH.twins(case, op, inputs_of(case, op))
    return found if isinstance(found, str) else [twin.says for twin in found]


def test_every_slice_of_every_batch_axis_is_run_alone() -> None:
    assert twins(cumsum(3, 2, 2, 2)) == [f"slice i3 = {i3}, i2 = {i2}" for i3 in (0, 1) for i2 in (0, 1)]
    assert twins(cumsum(3, 2, 2, 2, axis=2)) == ["slice i3 = 0", "slice i3 = 1"]
    assert twins(cumsum(3, 2)) == []


def test_of_many_slices_some_are_run_the_first_and_the_last_among_them() -> None:
    found = twins(cumsum(1, 1, 1, 1000))
    assert isinstance(found, list)
    assert len(found) == 32
    assert (found[0], found[-1]) == ("slice i3 = 0, i2 = 0", "slice i3 = 999, i2 = 0")


@pytest.mark.parametrize(("count", "said"), [(32, ()), (33, (LEFT_OUT,)), (1000, (LEFT_OUT,))])
def test_slices_that_are_not_run_alone_are_said(count: int, said: tuple[str, ...]) -> None:
    with Runner(Target(f"{__file__}:Correct", Device("0", "NumPy")), isolated=False) as runner:
        (verdict,) = runner.verdicts(ops()["cumsum"], [cumsum(1, 1, 1, count)])
        found = related(runner, ops()["cumsum"], verdict, [BATCH])
    assert found.passed
    assert found.unchecked == said


#: Ops that declare no slices: the check says so for each of their cases. A new op is not to be among them unseen.
NO_SLICES = {
    *("add_id", "argmax", "argsort", "concat", "count_equal", "diag_mask_inf", "geglu"),
    *("geglu_erf", "geglu_quick", "get_rows", "group_norm", "mul_mat", "mul_mat_id", "out_prod"),
    *("reglu", "rope", "set_rows", "soft_max", "sum", "swiglu", "top_k"),
    *("cross_entropy_loss", "cross_entropy_loss_back", "diag_mask_zero", "get_rows_back", "opt_step_adamw"),
    *("opt_step_sgd", "rope_back", "rwkv_wkv6", "rwkv_wkv7", "gated_linear_attn", "ssm_scan", "lightning_indexer"),
    *("dsv4_hc_comb", "dsv4_hc_pre", "dsv4_hc_post", "flash_attn_ext", "arange", "timestep_embedding"),
    *("add_rel_pos", "get_rel_pos", "pad_circular", "roll", "win_part", "win_unpart"),
    *("im2col", "im2col_3d", "im2col_back", "col2im_1d"),
    *("moe_routing", "mul_mat_add", "mul_mat_add_add", "mul_mat_id_add_id_mul", "mul_mat_id_mul", "rope_set_rows"),
    *("mul_mat_mul", "mul_mat_id_add_id", "mul_mat_swiglu", "mul_mat_geglu", "mul_mat_add_swiglu"),
    "mul_mat_id_swiglu",
    *("mul_mat_id_add_id_swiglu_oai", "rms_norm_mul_rope", "rms_norm_mul_rope_set_rows"),
    *("ssm_conv_add_silu", "ssm_conv_silu", "group_norm_mul_add"),
    *("conv_2d", "conv_2d_dw", "conv_3d", "conv_transpose_1d", "conv_transpose_2d"),
}
#: Of these most cases have none: a view that lies in no corner crosses the slices of what it views.
MOSTLY_NONE = {
    "acc": "the view of a crosses its slices",
    "set": "the view of a crosses its slices",
    "repeat": "x is repeated",
}


LOOKED_AT, DRAWN = 60, 600


@pytest.mark.parametrize("op", list(ops()))
def test_every_op_has_slices_to_run_alone_or_says_why_not(op: str) -> None:
    """In each of the first cases; of an op that has slices, in as many more as it takes to see some."""
    found, with_slices = [], 0
    for case in drawn_cases(op, DRAWN, 1 << 14):
        enough = op in NO_SLICES or (MOSTLY_NONE[op] in found if op in MOSTLY_NONE else with_slices >= 10)
        if enough and len(found) >= LOOKED_AT:
            break
        found.append(twins(case))
        with_slices += isinstance(found[-1], list) and found[-1] != []
    assert "" not in found
    if op in NO_SLICES:
        assert {*map(type, found)} == {str}
    elif op in MOSTLY_NONE:
        assert MOSTLY_NONE[op] in found
    else:
        assert with_slices >= 10


def test_a_view_that_has_a_block_of_each_slice_is_checked() -> None:
    a, b = packed(4, 3, 2, 2), packed(2, 2, 2, 2)
    params = {"nb1": 16, "nb2": 48, "nb3": 96, "offset": 20}
    assert twins(Case("acc", params, {"a": a, "b": b}, {"out": a})) == ["slice i3 = 0", "slice i3 = 1"]


class LastSliceDiffers(Correct):
    """The last slice along i2 is summed in another order."""

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        super().cumsum(case, buffers)
        x = np.array(buffers.array("x"))
        if x.shape[1] > 1:
            buffers.array("out")[:, -1] = x[:, -1].astype(np.float64).cumsum(-1).astype(np.float32)


def test_a_slice_that_is_not_the_first_and_not_of_the_outermost_axis_is_looked_at() -> None:
    bench = Bench(cumsum(65, 2, 3, 2))
    assert bench.passes(LastSliceDiffers())
    finding = bench.twin_finding(LastSliceDiffers(), "batch_invariant")
    assert finding is not None
    assert finding.detail == "not the same bits alone and in company: slice i3 = 0, i2 = 2"
    twin = BATCH.twin_found(bench.case, bench.op, bench.values, finding.detail)
    assert twin is not None
    assert twin.parts["out"][:2] == (slice(0, 1), slice(2, 3))


class FailsAlone(Correct):
    """Does not take a slice that stands alone."""

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        if case.inputs["x"].shape[:2] == (1, 1):
            raise RuntimeError("there is one slice only")
        super().cumsum(case, buffers)


def test_a_twin_that_gives_no_answer_has_a_verdict_of_its_own() -> None:
    case = cumsum(3, 2, 2, 2)
    with Runner(Target(f"{__file__}:FailsAlone", Device("0", "NumPy")), isolated=False) as runner:
        (verdict,) = runner.verdicts(ops()["cumsum"], [case])
        assert verdict.passed
        found = related(runner, ops()["cumsum"], verdict, [BATCH])
    assert (found.kind, found.findings[0].detail) == ("ERROR", "RuntimeError: there is one slice only")
    assert found.case.inputs["x"].shape[:2] == (1, 1)


@pytest.mark.parametrize(("op", "kernel"), [("gated_delta_net", Delta), ("mla_absorbed", Mla)])
def test_a_right_kernel_gives_the_same_bits_alone(op: str, kernel: type[Correct]) -> None:
    ran = 0
    for case in drawn_cases(op, 300, 1 << 14):
        if twins(case) not in ([], str) and ran < 20:
            assert Bench(replace(case, keep=None)).twin_finding(kernel(), "batch_invariant") is None
            ran += 1
    assert ran == 20


class RepeatsFirstState(Delta):
    """The states of all sequences but the first one lose their last bit in company."""

    def stored(self, case: Case, states: list[F32]) -> F32:
        found = super().stored(case, states)
        if case.inputs["v"].shape[0] > 1:
            found = found.copy()
            found[1:] = (found[1:].view(np.uint32) ^ 1).view(np.float32)
        return found


def test_the_states_of_every_sequence_are_compared_at_every_snapshot() -> None:
    several = Counter[bool]()
    for case in drawn_cases("gated_delta_net", 300, 1 << 14):
        if case.keep is None and isinstance(twins(case), list) and twins(case):
            assert Bench(case).twin_finding(RepeatsFirstState(), "batch_invariant") is not None
            several[case.params["snapshots"] != 1] += 1
    assert min(several.values()) >= 5


# --- whose NaN it is ---


def test_nan_of_an_elements_own_spoilt_slice_is_not_said_to_come_from_another() -> None:
    layout = packed(4, 4, 3, 2)
    bench = Bench(Case("tri", {"kind": "lower"}, {"x": layout}, {"out": layout}, keep=2))
    kinds = [finding.kind for finding in bench.verdict(TriangleTimesZero()).findings]
    assert kinds == ["NAN/INF", "WRONG VALUES"]  # and −0 where +0 is to stand


def test_nan_of_another_slice_is_still_named() -> None:
    bench = Bench(replace(cumsum(3, 2, 2, 2), keep=2))
    (finding,) = bench.verdict(TouchesNeighbour()).findings
    assert finding.kind == "SLICES MIXED"


@pytest.mark.parametrize(("a", "b", "dim"), [((2, 2, 2, 2), (2, 2, 2, 1), 3), ((2, 2, 2, 2), (2, 2, 3, 2), 2)])
def test_nan_is_only_nan_where_the_slices_of_the_output_are_not_those_of_an_input(
    a: tuple[int, ...], b: tuple[int, ...], dim: int
) -> None:
    out = (*a[:dim], a[dim] + b[dim], *a[dim + 1 :])
    case = Case("concat", {"dim": dim}, {"a": packed(*a), "b": packed(*b)}, {"out": packed(*out)}, keep=0)

    class MakesNan(Correct):
        def concat(self, case: Case, buffers: Buffers) -> None:
            found = np.concatenate([self.read(buffers, "a"), self.read(buffers, "b")], 3 - dim)
            found[0, 0, 0, 0] = np.nan
            self.write(buffers, "out", found)

    assert [finding.kind for finding in Bench(case).verdict(MakesNan()).findings] == ["NAN/INF"]


def test_padding_that_a_slice_of_nan_spoils_is_its_own() -> None:
    """What comes from no element of x may be in any slice: nobody else is blamed."""
    x, out = packed(2, 2, 2, 2), packed(2, 2, 2, 3)
    params = {f"{side}{k}": int(side == "rp" and k == 3) for k in range(4) for side in ("lp", "rp")}
    bench = Bench(Case("pad", params, {"x": x}, {"out": out}, keep=1))

    class RepeatsLast(Correct):
        def pad(self, case: Case, buffers: Buffers) -> None:
            x = np.array(self.read(buffers, "x"))
            self.write(buffers, "out", np.concatenate([x, x[-1:]]))

    assert [finding.kind for finding in bench.verdict(RepeatsLast()).findings] == ["NAN/INF"]
