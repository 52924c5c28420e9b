"""FLASH_ATTN_EXT and SOFT_MAX: a plain kernel passes, and each everyday fault is named by its hint."""

from __future__ import annotations

import re
import sys

import pytest

from opconform.harness.explain.failure import Failure
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.judge import drawn_benches
from tests.kernels.attention import FAULTS, Attention
from tests.kernels.base import Fault


@pytest.mark.parametrize("op", ["flash_attn_ext", "soft_max"])
def test_a_right_kernel_is_not_blamed(op: str) -> None:
    for bench in drawn_benches(op, 200, 1 << 16):
        verdict = bench.verdict(Attention())
        assert verdict.passed, f"{bench.case}: {verdict.findings}"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_named_and_nothing_else_is(fault: Fault) -> None:
    found = failure_found(fault).hint
    plainest, _, others = found.partition("; or (no case run here tells which): ")
    assert fault.hint in (re.sub(r" \((in place only|explains|but) .*", "", plainest), *others.split("; "))
    assert bool(fault.hint) == bool(found)


def failure_found(fault: Fault) -> Failure:
    spec = f"{sys.modules[fault.kernel.__module__].__file__}:{fault.kernel.__name__}"
    with Runner(Target(spec, Device("0", "NumPy")), isolated=False) as runner:
        failure = Search(ops()[fault.op], runner, Settings(seed=1)).run().failure
    assert failure is not None
    return failure
