"""Every quantised type on ggml's CPU device: GET_ROWS, CPY and MUL_MAT really run, and pass."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from opconform.backends.ggml.declarations import TYPES
from opconform.backends.ggml.library import REMEDY, VARIABLE
from opconform.cases.families.conversions import ROUNDED
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import QUANTISED
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.run.process import devices_of
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from tests.lacking import lacking

#: Types into which nothing is rounded: supports_op of CPY says no to an output of theirs, to copies of blocks as well.
NO_OUTPUT = ("iq1_m", "iq1_s", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_s", "iq3_xxs")


@pytest.fixture(scope="module")
def cpu() -> Iterator[Runner]:
    if not os.environ.get(VARIABLE):
        lacking("ggml", f"{VARIABLE} is not set; {REMEDY}")
    options = {"ggml_lib": os.environ[VARIABLE]}
    device = next(each for each in devices_of("ggml", options) if each.id == "CPU")
    with Runner(Target("ggml", device, options)) as runner:
        yield runner


def cases_of(tried: str, name: str) -> list[Case]:
    """Three rows of two blocks: values that are encoded, blocks that are drawn, and blocks with any scales."""
    n = 2 * QUANTISED[name].block
    rows, floats = (Layout.contiguous(dtype, (1, 1, 3, n)) for dtype in (name, "f32"))
    op, inputs, out = {
        "rows": ("get_rows", {"a": rows, "b": Layout.contiguous("i32", (1, 1, 1, 3))}, floats),
        "products": ("mul_mat", {"a": rows, "b": floats}, Layout.contiguous("f32", (1, 1, 3, 3))),
        "floats": ("cpy_blocks", {"x": rows}, floats),
        "copies": ("cpy_blocks", {"x": rows}, rows),
    }[tried]
    return [
        Case(op, {}, inputs, {"out": out}, recipe, seed) for recipe, seed in (("normal", 2), ("normal", 3), ("wide", 5))
    ]


def test_the_adapter_knows_every_quantised_type() -> None:
    assert QUANTISED.keys() <= TYPES.keys()


@pytest.mark.parametrize("tried", ["rows", "products", "floats", "copies"])
@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_type_runs_and_passes(cpu: Runner, name: str, tried: str) -> None:
    cases = cases_of(tried, name)
    verdicts = cpu.verdicts(ops()[cases[0].op], cases)
    if tried == "copies" and name in NO_OUTPUT:
        assert all("cannot make" in str(verdict.unsupported) for verdict in verdicts)
        assert all("says no to CPY" in str(reason) for reason in cpu.supports(cases))
    else:
        assert [(verdict.unsupported, verdict.findings) for verdict in verdicts] == [(None, ())] * len(cases)


@pytest.mark.parametrize("name", ROUNDED)
def test_numbers_become_blocks(cpu: Runner, name: str) -> None:
    floats, made = (Layout.contiguous(dtype, (1, 1, 3, 2 * QUANTISED[name].block)) for dtype in ("f32", name))
    cases = [Case("cpy_blocks", {}, {"x": floats}, {"out": made}, recipe, 1) for recipe in ("small_int", "normal")]
    verdicts = cpu.verdicts(ops()["cpy_blocks"], cases)
    assert [(verdict.unsupported, verdict.findings) for verdict in verdicts] == [(None, ())] * len(cases)
