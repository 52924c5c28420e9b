"""Pieces on real builds of ggml: right where they are right, and the fault that two of them have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from opconform.backends.ggml import GgmlBackend
from opconform.harness.draw.known import known_cases
from opconform.harness.model.limits import Freedom
from opconform.harness.model.ops import ops
from opconform.harness.run.runner import Runner
from tests.integration.test_ggml_composite import BROKEN, FIXED, VARIABLE, backend, drawn, numerics_of, runner
from tests.judge import Bench

__all__ = ["backend", "runner"]

OVERWRITTEN = known_cases()["moe_routing/vulkan-overwritten-logits"].case
PIECES = (
    "rms_norm_mul_add",
    "adds",
    "silu_mul",
    "moe_routing",
    "rope_set_rows",
    "mul_mat_add",
    "ssm_conv_add_silu",
    "group_norm_mul_add",
    "rms_norm_mul_rope",
    "rms_norm_mul_rope_set_rows",
    "mul_mat_add_swiglu",
    "mul_mat_id_add_id_swiglu_oai",
)


def passes(runner: Runner, **params: bool) -> bool:
    case = replace(OVERWRITTEN, params={**OVERWRITTEN.params, **params})
    verdict = runner.verdicts(ops()[case.op], [case])[0]
    assert verdict is not None
    return verdict.passed


@pytest.mark.parametrize("variable", [BROKEN, FIXED])
def test_experts_that_lie_over_the_logits_are_found(variable: str, runner: Callable[[str, str], Runner]) -> None:
    """llama.cpp#19768, on b7836 and b8121: only where the graph makes the logits, and only on Vulkan."""
    assert not passes(runner(variable, "Vulkan0"))
    assert passes(runner(variable, "Vulkan0"), made=False)
    assert passes(runner(variable, "CPU"))


def test_they_are_right_in_a_newer_build(runner: Callable[[str, str], Runner]) -> None:
    assert passes(runner(VARIABLE, "Vulkan0"))


@pytest.mark.parametrize("op", PIECES)
def test_pieces_are_right(op: str, backend: GgmlBackend) -> None:
    limits = tuple(limit for limit in backend.limits() if limit.op in (op, "*"))
    ran = 0
    for case in drawn(op, Freedom(limits, 1 << 16), 0):
        if backend.supports(case) is None:
            numerics = numerics_of(backend, case)
            assert Bench(case).passes(backend, numerics), case
            ran += 1
    assert ran > 4
