"""The backends with kernels load, launch and fetch, each by itself."""

from __future__ import annotations

import os

import numpy as np
import pytest

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.run.backend import Backend, Unavailable
from opconform.harness.run.registry import backend_class
from tests.judge import Bench


@pytest.fixture(scope="module", params=["opencl", "vulkan", "cuda-host"])
def backend(request: pytest.FixtureRequest) -> Backend:
    kind = backend_class(request.param)
    try:
        return kind(kind.devices({})[0].id, {})
    except Unavailable as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


def sums(rows: int) -> Case:
    x, out = Layout.contiguous("f32", (1, 1, rows, 5)), Layout.contiguous("f32", (1, 1, rows, 1))
    return Case("sum_rows", {}, {"x": x}, {"out": out}, "normal", 3)


def added() -> Case:
    """ACC in place: a launch adds b once more."""
    a, b = Layout.contiguous("f32", (1, 1, 2, 3)), Layout.contiguous("f32", (1, 1, 1, 3))
    return Case(
        "acc", {"nb1": 12, "nb2": 24, "nb3": 24, "offset": 0}, {"a": a, "b": b}, {"out": a}, "ones", inplace="a"
    )


def test_two_cases_may_be_loaded_at_once(backend: Backend) -> None:
    benches = [Bench(sums(3)), Bench(sums(4))]
    buffers = [Buffers(bench.case, bench.before.copy(), bench.plan) for bench in benches]
    loaded = [backend.load(bench.case, its) for bench, its in zip(benches, buffers)]
    for its in loaded:
        its.launch()
    for its in reversed(loaded):
        its.fetch()
    for bench, its in zip(benches, buffers):
        alone = bench.before.copy()
        backend.run(bench.case, Buffers(bench.case, alone, bench.plan))
        np.testing.assert_array_equal(its.memory, alone)


def test_a_case_may_be_launched_again(backend: Backend) -> None:
    bench = Bench(sums(3))
    memory = bench.before.copy()
    loaded = backend.load(bench.case, Buffers(bench.case, memory, bench.plan))
    loaded.launch()
    loaded.launch()
    loaded.fetch()
    alone = bench.before.copy()
    backend.run(bench.case, Buffers(bench.case, alone, bench.plan))
    np.testing.assert_array_equal(memory, alone)


def test_a_launch_goes_on_from_what_the_last_one_left_in_place(backend: Backend) -> None:
    case = added()
    values = {"a": np.zeros((1, 1, 2, 3), np.uint32), "b": np.full((1, 1, 1, 3), np.float32(2).view(np.uint32))}
    bench = Bench(case, values)
    memory = bench.before.copy()
    loaded = backend.load(case, Buffers(case, memory, bench.plan))
    for _ in range(3):
        loaded.launch()
    loaded.fetch()
    slot = bench.plan.slots["out"]
    found = slot.layout.array(memory[slot.start :], np.dtype(np.float32))
    np.testing.assert_array_equal(found[0, 0], [[6, 6, 6], [0, 0, 0]])
