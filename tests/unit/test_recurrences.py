"""RWKV_WKV6, RWKV_WKV7, GATED_LINEAR_ATTN and SSM_SCAN: a plain kernel passes, and each everyday fault is named."""

from __future__ import annotations

import re
import sys

import pytest

from opconform.harness.explain import diagnosis
from opconform.harness.explain.diagnosis import hint
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from tests.judge import Bench, drawn_cases
from tests.kernels.base import Fault, Kernel
from tests.kernels.recurrences import FAULTS, OPS, AddsBackwards, Recurrence


def a_case(op: str) -> Case:
    """Two sequences of three tokens, two heads."""
    if op == "ssm_scan":
        shapes = {"state": (3, 2, 4, 5), "x": (2, 3, 2, 4), "dt": (1, 2, 3, 2), "a": (1, 1, 2, 1)}
        shapes |= {"b": (2, 3, 1, 5), "c": (2, 3, 1, 5), "ids": (1, 1, 1, 2)}
        outputs = {"out": (2, 3, 2, 4), "state_out": (2, 2, 4, 5)}
    else:
        shapes = {**dict.fromkeys(ops()[op].inputs, (1, 6, 2, 4)), "state": (1, 1, 2, 32)}
        shapes |= {"tf": (1, 1, 2, 4)} if "tf" in shapes else {}
        outputs = {"out": (1, 1, 6, 8), "state_out": (1, 1, 2, 32)}
    inputs = {name: Layout.contiguous("i32" if name == "ids" else "f32", its) for name, its in shapes.items()}
    params = {"scale": 0.125} if ops()[op].params else {}
    return Case(op, params, inputs, {name: Layout.contiguous("f32", its) for name, its in outputs.items()}, "normal")


def runner_of(kernel: type[Kernel]) -> Runner:
    """A runner of a kernel in this process."""
    spec = f"{sys.modules[kernel.__module__].__file__}:{kernel.__name__}"
    return Runner(Target(spec, Device("0", "NumPy")), isolated=False)


@pytest.mark.parametrize("kernel", [Recurrence, AddsBackwards])
@pytest.mark.parametrize("op", OPS)
def test_a_right_kernel_is_not_blamed(op: str, kernel: type[Recurrence]) -> None:
    for case in (a_case(op), *drawn_cases(op, 200, 1 << 13)):
        verdict = Bench(case).verdict(kernel())
        assert verdict.passed, f"{case}: {verdict.findings}"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_named_and_nothing_else_is(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "SECONDS", 600.0)  # a busy machine is no reason to give up
    op = ops()[fault.op]
    with runner_of(fault.kernel) as runner:
        (verdict,) = runner.verdicts(op, [a_case(fault.op)])
        assert verdict.failed
        found = hint(op, runner, verdict)
    plainest, _, others = found.partition("; or (no case run here tells which): ")
    assert fault.hint in (re.sub(r" \((in place only|explains|but) .*", "", plainest), *others.split("; "))
    assert bool(fault.hint) == bool(found)
