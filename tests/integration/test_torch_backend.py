"""The torch backend against the reference, on every device that torch finds here."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest

from opconform.backends.torch import TorchBackend
from opconform.cases.cumsum import OP as CUMSUM
from opconform.harness.draw.sample import cases_drawn
from opconform.harness.explain.stages import judged_stages
from opconform.harness.judge.judging import Verdict, judge
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from opconform.harness.run.backend import Device, Unavailable
from tests.judge import drawn_cases
from tests.lacking import needs_torch

OPS = {name: ops()[name] for name in TorchBackend.ops}
FREEDOM = Freedom(max_bytes=4 << 20)
INSTALLED = importlib.util.find_spec("torch") is not None
DEVICES = [device.id for device in TorchBackend.devices({})] if INSTALLED else ["cpu"]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    needs_torch()
    return next(found for found in TorchBackend.devices({}) if found.id == request.param)


@pytest.fixture(scope="module")
def backend(device: Device) -> TorchBackend:
    return TorchBackend(device.id, {})


def verdict_on(backend: TorchBackend, device: Device, op: Op, case: Case) -> Verdict:
    values = inputs_of(case, op)
    before = Buffers(case, np.zeros(Plan.of(case).size, np.uint8))
    before.fill(values)
    after = Buffers(case, before.memory.copy())
    if (reason := backend.supports(case)) is not None:
        return Verdict(case, unsupported=reason)
    backend.run(case, after)
    return judge(case, op, values, before.memory, after.memory, device.numerics)


def test_a_loaded_case_gives_the_same_at_every_launch(backend: TorchBackend) -> None:
    case = drawn_cases("cumsum", 12, 1 << 12)[0]
    before = Buffers(case, np.zeros(Plan.of(case).size, np.uint8))
    before.fill(inputs_of(case, ops()["cumsum"]))
    once, often = (Buffers(case, before.memory.copy()) for _ in range(2))
    backend.run(case, once)
    loaded = backend.load(case, often)
    for _ in range(3):
        loaded.launch()
    loaded.fetch()
    assert (often.memory == once.memory).all()
    assert (once.memory != before.memory).any()


@pytest.mark.parametrize("name", OPS)
def test_every_drawn_case_passes(backend: TorchBackend, device: Device, name: str) -> None:
    op, passed = OPS[name], 0
    limits = tuple(limit for limit in backend.limits() if limit.op == name)
    for case in cases_drawn(op, replace(FREEDOM, limits=limits), 40):
        verdict = verdict_on(backend, device, op, case)
        assert not verdict.findings, verdict.case
        passed += verdict.passed
    assert passed > 100


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.composite.stages is not None])
def test_every_stage_that_is_shown_is_right_by_itself(backend: TorchBackend, device: Device, name: str) -> None:
    op = OPS[name]
    for case in drawn_cases(name, 80, 1 << 16):
        buffers = Buffers(case, np.zeros(Plan.of(case).size, np.uint8))
        buffers.fill(inputs_of(case, op))
        stages = backend.stages(case, buffers)
        assert stages, "nothing is shown"
        outputs = {name: layout.type.decode(np.array(buffers.raw(name))) for name, layout in case.outputs.items()}
        shown = {name: values.astype(np.float64) for name, values in stages.items()}
        said = judged_stages(op, case, {**shown, **outputs}, device.numerics)
        assert said.startswith("none is wrong by itself"), f"{case}: {said}"


def row_sums(recipe: str = "small_int", size: int = 2, exclusive: bool = False, reverse: bool = False) -> Case:
    layout = Layout.contiguous("f32", (1, 1, 1, size))
    params = {"axis": 0, "exclusive": exclusive, "reverse": reverse}
    return Case("cumsum", params, {"x": layout}, {"out": layout}, recipe)


def got_of(verdict: Verdict) -> F64:
    assert not verdict.findings
    assert verdict.comparison is not None
    return verdict.comparison.got.ravel()


@pytest.mark.parametrize(
    ("reverse", "x", "sums"), [(False, [1.0, 2.0**30], [0.0, 1.0]), (True, [2.0**30, 1.0], [1.0, 0.0])]
)
def test_exclusive_sums_do_not_cancel(
    backend: TorchBackend, device: Device, reverse: bool, x: list[float], sums: list[float]
) -> None:
    case = row_sums(exclusive=True, reverse=reverse).with_data({"x": np.array(x, np.float32).tobytes()})
    assert got_of(verdict_on(backend, device, CUMSUM, case)).tolist() == sums


def test_denormals_survive_unless_the_device_says_that_it_flushes(backend: TorchBackend, device: Device) -> None:
    got = got_of(verdict_on(backend, device, CUMSUM, row_sums("denormal", size=64)))
    assert device.numerics.flushes_denormals or (got != 0).all()


def test_an_unknown_op_is_unsupported_with_the_list_of_known_ones(backend: TorchBackend) -> None:
    case = row_sums()
    unknown = Case("fft", {}, case.inputs, case.outputs)
    assert backend.supports(unknown) == f"the torch backend has no fft; it has {', '.join(OPS)}"


def test_the_cpu_is_listed_first_with_its_versions(device: Device) -> None:
    first = TorchBackend.devices({})[0]
    assert first.id == "cpu"
    assert {"torch", "BLAS"} <= first.versions.keys()


def test_without_torch_it_is_unavailable_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unavailable, match="pip install torch"):
        TorchBackend.devices({})
