"""The OpenCL backend on every OpenCL device here, and its kernels under oclgrind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from opconform.backends.kernels.own_buffers import SHARED
from opconform.backends.kernels.table import KERNELS
from opconform.backends.opencl import OpenCLBackend
from opconform.backends.opencl.backend import _numerics
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device, Unavailable
from tests.judge import Bench, cases_for, drawn_cases

OPS = sorted(KERNELS.keys() & ops().keys())


def listed() -> tuple[list[Device], str]:
    """The devices, and where there is none, why."""
    try:
        return OpenCLBackend.devices({}), ""
    except Unavailable as reason:
        return [], str(reason)


DEVICES, MISSING = listed()


def needs_opencl() -> None:
    if MISSING:
        pytest.fail(MISSING) if os.environ.get("CI") == "true" else pytest.skip(MISSING)


@pytest.fixture(scope="module", params=DEVICES or (None,), ids=[device.description for device in DEVICES] or ["none"])
def device(request: pytest.FixtureRequest) -> Device:
    needs_opencl()
    found: Device = request.param
    return found


@pytest.fixture(scope="module")
def backend(device: Device) -> OpenCLBackend:
    return OpenCLBackend(device.id, {})


def untouched(dtype: str, size: int) -> Case:
    """A case that changes nothing: SET in place with an empty b."""
    a, b = Layout.contiguous(dtype, (1, 1, 1, size)), Layout.contiguous(dtype, (1, 1, 1, 0))
    params = {"nb1": 8, "nb2": 8, "nb3": 8, "offset": 0}
    return Case("set", params, {"a": a, "b": b}, {"out": a}, inplace="a")


def column_over_transposed(rows: int) -> Case:
    """SET of one column of a 2-column matrix that lies transposed: one work item for each of its elements."""
    a = Layout("f32", (1, 1, rows, 2), (8 * rows, 8 * rows, 4, 4 * rows))
    b = Layout.contiguous("f32", (1, 1, rows, 1))
    params = {"nb1": 8, "nb2": 8 * rows, "nb3": 8 * rows, "offset": 4}
    return Case("set", params, {"a": a, "b": b}, {"out": Layout.contiguous("f32", a.shape)}, recipe="index")


def short_lines(lines: int) -> Case:
    """CUMSUM along the outermost axis of one element: one work item for every element."""
    x = Layout.contiguous("f32", (1, 1, 1, lines))
    return Case("cumsum", {"axis": 3, "exclusive": False, "reverse": False}, {"x": x}, {"out": x}, recipe="index")


@pytest.mark.parametrize("op", OPS)
def test_every_drawn_case_passes(backend: OpenCLBackend, device: Device, op: str) -> None:
    for case in cases_for(backend, op, 200, 1 << 20):
        assert Bench(case).passes(backend, device.numerics), case


def test_shapes_of_fewer_than_four_sizes_pass(backend: OpenCLBackend, device: Device) -> None:
    line, matrix = Layout.contiguous("f32", (7,)), Layout.contiguous("f32", (5, 5), offset=8)
    sums = Case("cumsum", {"axis": 0, "exclusive": True, "reverse": True}, {"x": line}, {"out": line}, "normal")
    sides = {"a": matrix, "b": Layout.contiguous("f32", (3, 5))}
    solved = Case("solve_tri", {"left": False, "lower": True, "unit": False}, sides, {"out": sides["b"]}, "normal")
    for case in (sums, solved):
        assert Bench(case).passes(backend, device.numerics), case


@pytest.mark.parametrize(("dtype", "size"), [("f32", 1), ("f16", 7), ("i32", 100_003)])
def test_every_byte_of_the_arena_makes_the_round_trip(backend: OpenCLBackend, dtype: str, size: int) -> None:
    case = untouched(dtype, size)
    before = np.random.default_rng(size).integers(0, 256, Plan.of(case).size, dtype=np.uint8)
    after = before.copy()
    backend.run(case, Buffers(case, after))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("case", [column_over_transposed(2_097_121), short_lines(4_194_241)], ids=["set", "cumsum"])
def test_more_items_than_65535_workgroups_of_64(backend: OpenCLBackend, device: Device, case: Case) -> None:
    assert case.outputs["out"].size > 65_535 * 64
    assert Bench(case).passes(backend, device.numerics)


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_build_without_a_warning(device: Device, op: str) -> None:
    fresh = OpenCLBackend(device.id, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Bench(drawn_cases(op, 8, 1 << 10)[0]).after(fresh)


def test_an_op_without_a_kernel_is_unsupported(backend: OpenCLBackend) -> None:
    fft = Case("fft", {}, untouched("f32", 1).inputs, untouched("f32", 1).outputs)
    assert str(backend.supports(fft)).startswith("no kernel for fft: add backends/kernels/fft.cl")


def test_a_type_without_a_kernel_is_unsupported(backend: OpenCLBackend) -> None:
    x = Layout.contiguous("f16", (1, 1, 1, 4))
    half = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": x}, {"out": x})
    assert backend.supports(half) == "cumsum.cl computes f32, not f16"


def test_an_argument_larger_than_a_buffer_is_unsupported(backend: OpenCLBackend) -> None:
    assert "a buffer of this device has" in str(backend.supports(short_lines(1 << 45)))


def test_a_device_names_its_platform_driver_and_version(device: Device) -> None:
    assert re.fullmatch(r".+ \(.+\)", device.description)
    assert {"driver", "opencl"} <= device.versions.keys()


@pytest.mark.parametrize(
    ("config", "flushes", "either_way", "ulps"),
    [(0b1000_0101, False, False, 0.5), (0b0000_0100, True, False, 2.5), (0b1000_1001, False, True, 0.5)],
)
def test_numerics_are_what_the_device_promises(config: int, flushes: bool, either_way: bool, ulps: float) -> None:
    needs_opencl()
    numerics = _numerics(SimpleNamespace(single_fp_config=config))
    assert (numerics.flushes_denormals, numerics.any_rounding, numerics.division_ulps) == (flushes, either_way, ulps)


def test_an_unknown_device_is_unavailable() -> None:
    needs_opencl()
    with pytest.raises(Unavailable, match=f"choose one from 0 to {len(DEVICES) - 1}"):
        OpenCLBackend("99", {})


def test_without_a_driver_it_is_unavailable_and_says_what_to_install() -> None:
    needs_opencl()
    listing = "from opconform.backends.opencl import OpenCLBackend; OpenCLBackend.devices({})"
    without = {**os.environ, "OCL_ICD_VENDORS": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", listing], env=without, capture_output=True, text=True)
    assert "apt-get install pocl-opencl-icd ocl-icd-libopencl1" in done.stderr


def test_without_pyopencl_it_is_unavailable_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(Unavailable, match="pip install pyopencl"):
        OpenCLBackend.devices({})


def test_the_product_that_others_are_measured_by_is_right(backend: OpenCLBackend) -> None:
    """Of whole numbers, so that every order of the sums gives the same; 12 is no multiple of a work-group."""
    rng, n = np.random.default_rng(0), 12
    a, b = (rng.integers(-9, 10, (n, n)).astype(np.float32) for _ in range(2))
    product, found = backend.product(n), np.empty((n, n), np.float32)
    for there, matrix in zip(product.matrices, (a, b)):
        backend._cl.enqueue_copy(product.queue, there, matrix)
    assert product.timed(2) > 0
    backend._cl.enqueue_copy(product.queue, found, product.matrices[2])
    np.testing.assert_array_equal(found, a @ b)


def test_an_index_is_divided_as_64_bits_where_it_does_not_fit_into_32(backend: OpenCLBackend) -> None:
    """Also where the index alone, or one size alone, is that large."""
    kernel = """
    __kernel void of(const ulong id, const ulong ne0, const ulong ne1, const ulong ne2, __global ulong *out) {
        const struct indices i = indices_of(id, ne0, ne1, ne2);
        out[0] = i.i0, out[1] = i.i1, out[2] = i.i2, out[3] = i.i3;
    }"""
    text = "".join((SHARED / name).read_text() for name in ("api.h", "places.h")) + kernel
    of, found = backend._cl.Program(backend._context, text).build().of, np.empty(4, np.uint64)
    there = backend._cl.Buffer(backend._context, backend._cl.mem_flags.READ_WRITE, found.nbytes)
    top = (1 << 32) - 1
    for id_, *ne in [
        *((123456, 7, 11, 13), (top, 3, 5, 7), (top, top, 1, 1), (top + 1, 3, 5, 7), (top, top + 1, 2, 2)),
        *(((1 << 40) + 12345, 1 << 20, 3, 5), (2 * top + 9, 1, top + 2, 3), (5 * top, 1, 2, top + 7)),
    ]:
        of(backend._queue, (1,), None, *map(np.uint64, (id_, *ne)), there)
        backend._cl.enqueue_copy(backend._queue, found, there)
        row, matrix = id_ // ne[0], id_ // (ne[0] * ne[1])
        assert list(map(int, found)) == [id_ % ne[0], row % ne[1], matrix % ne[2], matrix // ne[2]], (id_, ne)
