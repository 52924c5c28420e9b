"""The CUDA backend without a GPU: a stand-in for CuPy shows the way from a case to a launch.

On a GPU, `pytest --backend cuda` is the test.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from opconform.backends.cuda import CudaBackend, backend
from opconform.backends.kernels.table import KERNELS
from opconform.cli import main
from opconform.harness.explain.facts import Facts
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device, Unavailable
from opconform.harness.run.target import Target
from opconform.reports.repro.scripts import asked, script
from tests import fake_cupy
from tests.judge import Bench, cases_for, drawn_cases
from tests.repro_samples import one_failure


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in, and a driver that loads."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(backend, "_DRIVER", None)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("op", sorted(KERNELS.keys() & ops().keys()))
def test_every_drawn_case_passes_on_the_stand_in(op: str) -> None:
    opened = CudaBackend("1", {})
    for case in cases_for(opened, op, 24, 1 << 14):
        assert Bench(case).passes(opened, opened.devices({})[0].numerics), case


@pytest.mark.usefixtures("cupy")
def test_intermediate_results_have_the_shapes_of_their_stages() -> None:
    case = next(case for case in drawn_cases("mla_absorbed", 200, 1 << 14) if case.params["form"] == "two_part")
    bench = Bench(case)
    shown = CudaBackend("0", {}).stages(case, Buffers(case, bench.before.copy(), bench.plan))
    batch, heads, queries, _ = case.inputs["q_nope"].shape
    assert shown["q_absorbed"].shape == (batch, heads, queries, case.inputs["c_kv"].shape[3])
    assert shown["scores"].dtype == np.float32
    assert not np.isnan(shown["weights"]).any() or case.keep is not None


@pytest.mark.usefixtures("cupy")
def test_the_script_of_a_bundle_launches_as_the_backend_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Target("cuda", Device("1", "a GPU"), {})
    facts = Facts(one_failure(where), where)
    scope: dict[str, Any] = {"__name__": "script"}
    exec(compile(script(facts, asked(facts)), "repro.py", "exec"), scope)
    monkeypatch.setattr(sys, "argv", ["repro.py"])
    assert scope["main"]() == 0
    assert capsys.readouterr().out == "Fake\nthe fault is gone\n"


@pytest.mark.usefixtures("cupy")
def test_a_device_names_its_architecture_and_versions() -> None:
    first, second = CudaBackend.devices({})
    assert (first.id, second.id, first.description) == ("0", "1", "Fake (sm_90)")
    assert first.versions == {"driver": "for CUDA 12.4", "runtime": "12.9", "nvrtc": "12.9", "cupy": "0.0"}


@pytest.mark.usefixtures("cupy")
def test_an_unknown_device_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="choose one from 0 to 1"):
        CudaBackend("2", {})


@pytest.mark.usefixtures("cupy")
def test_a_case_larger_than_the_device_is_unsupported() -> None:
    x = Layout.contiguous("f32", (1, 1, 1, 1 << 28))
    assert "this device has 1073741824" in str(CudaBackend("0", {}).supports(Case("cont", {}, {"x": x}, {"out": x})))


@pytest.mark.usefixtures("cupy")
def test_an_error_that_the_context_gets_over_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.RawModule, "failing", fake_cupy.CUDARuntimeError("cudaErrorMemoryAllocation"))
    with pytest.raises(fake_cupy.CUDARuntimeError, match="cudaErrorMemoryAllocation"):
        Bench(drawn_cases("cont", 8, 1 << 10)[0]).after(CudaBackend("0", {}))


@pytest.mark.usefixtures("cupy")
def test_an_error_that_the_context_does_not_get_over_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost() -> None:
        raise fake_cupy.CUDARuntimeError("cudaErrorIllegalAddress")

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(fake_cupy.RawModule, "failing", fake_cupy.CUDARuntimeError("cudaErrorIllegalAddress"))
    monkeypatch.setattr(fake_cupy.cuda.runtime, "deviceSynchronize", lost)
    monkeypatch.setattr(backend.os, "_exit", end)
    with pytest.raises(SystemExit, match="1"):
        Bench(drawn_cases("cont", 8, 1 << 10)[0]).after(CudaBackend("0", {}))
    assert "cudaErrorIllegalAddress" in capsys.readouterr().err


def test_without_a_driver_it_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_DRIVER", "libnothing.so.1")
    with pytest.raises(Unavailable, match="there is no NVIDIA driver") as caught:
        CudaBackend.devices({})
    assert caught.value.hardware
    assert "cupy-cuda12x or cupy-cuda13x" in caught.value.remedy
    assert "--backend cuda-host" in caught.value.remedy


@pytest.mark.usefixtures("cupy")
def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(Unavailable, match="cupy is not installed; pip install cupy-cuda12x") as caught:
        CudaBackend.devices({})
    assert not caught.value.hardware


@pytest.mark.usefixtures("cupy")
def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise fake_cupy.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(fake_cupy.cuda.runtime, "getDeviceCount", none)
    with pytest.raises(Unavailable, match="CUDA finds no device: cudaErrorNoDevice") as caught:
        CudaBackend.devices({})
    assert caught.value.hardware


def reason_for_no_device() -> str:
    try:
        CudaBackend.devices({})
    except Unavailable as reason:
        return str(reason)
    return ""


def test_the_list_names_both_ways_to_run_the_kernels() -> None:
    lines = CliRunner().invoke(main, ["list"]).output.splitlines()
    assert any(line.startswith("cuda-host:0  the CUDA kernels on the CPU") for line in lines)
    reason = reason_for_no_device()
    assert f"cuda  not available: {reason}" in lines if reason else any(line.startswith("cuda:0  ") for line in lines)


def test_asked_for_by_name_without_a_device_it_is_an_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--backend", "cuda", "--collect-only")
    reason = reason_for_no_device()
    if reason:
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: --backend cuda cannot run: {reason}"])
    else:
        assert result.ret != pytest.ExitCode.USAGE_ERROR
