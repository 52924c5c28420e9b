"""Every CUDA kernel is compiled for every architecture from Volta on that the installed NVRTC knows."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

from opconform.backends.cuda import CudaBackend
from opconform.backends.cuda.backend import OPTIONS
from opconform.backends.kernels.own_buffers import SHARED, product_source
from opconform.backends.kernels.source import complaint, files_of, kernels_in, place_of, source_of, whole
from opconform.backends.kernels.table import KERNELS
from opconform.harness.model.ops import ops
from tests import nvrtc
from tests.judge import drawn_cases

FOLDER = CudaBackend.kernels
LIBRARIES = nvrtc.installed()


@cache
def opened(path: Path) -> nvrtc.Nvrtc:
    return nvrtc.Nvrtc(path)


@pytest.fixture(scope="module", params=LIBRARIES or (None,), ids=[path.name for path in LIBRARIES] or ["none"])
def compiler(request: pytest.FixtureRequest) -> nvrtc.Nvrtc:
    if request.param is None:
        why = "NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    return opened(request.param)


@pytest.mark.parametrize("op", [*KERNELS, "product"])
def test_every_kernel_compiles_for_every_architecture_without_a_warning(compiler: nvrtc.Nvrtc, op: str) -> None:
    """For the newest one as they are used; for the others without most of the optimiser, where NVRTC can do so."""
    text = product_source() if op == "product" else CudaBackend.source(op).text
    assert len(compiler.architectures) > 5
    quickly = ("--Ofast-compile=max",) if compiler.takes("--Ofast-compile=max") else ()
    for architecture in compiler.architectures:
        options = (*OPTIONS, f"-arch=sm_{architecture}")
        if architecture != max(compiler.architectures):
            options += quickly
        compiled = compiler.compile(text, "kernels.cu", options)
        assert compiled.good, f"sm_{architecture}: {compiled.log}"
        assert not re.search(r"\.(cu|cl|h)\(\d+\)", compiled.log), f"sm_{architecture}: {compiled.log}"


def test_the_newest_nvrtc_for_cuda_12_knows_volta_and_blackwell(compiler: nvrtc.Nvrtc) -> None:
    if compiler.version.startswith("12."):
        assert {70, 75, 80, 90, 100, 120} <= set(compiler.architectures)


def test_an_error_names_the_file_and_line(compiler: nvrtc.Nvrtc, tmp_path: Path) -> None:
    file = tmp_path / "cumsum.cu"
    file.write_text((FOLDER / "cumsum.cu").read_text().replace("if (thread == 0) {", "if (thrread == 0) {"))
    line = 1 + file.read_text().splitlines().index("    if (thrread == 0) {")
    compiled = compiler.compile(
        whole(file.name, files_of(file, (FOLDER, SHARED))), "kernels.cu", (*OPTIONS, "-arch=sm_80")
    )
    assert not compiled.good
    last = str(complaint(file, compiled.log)).splitlines()[-1]
    assert f'cumsum.cu({line}): error: identifier "thrread" is undefined' in last


def test_more_shared_memory_than_a_block_has_does_not_compile(compiler: nvrtc.Nvrtc) -> None:
    source = CudaBackend.source("cumsum").text.replace("sums[256]", "sums[16384]")
    assert "uses too much shared data" in compiler.compile(source, "kernels.cu", (*OPTIONS, "-arch=sm_80")).log


def test_every_file_belongs_to_an_op() -> None:
    files = [*FOLDER.glob("*.cu"), *SHARED.glob("*.cl")]
    measures = {"product"}
    assert {file.stem for file in files} - measures == {kernel.stem(op) for op, kernel in KERNELS.items()}


@pytest.mark.parametrize("op", sorted(KERNELS.keys() & ops().keys()))
def test_every_kernel_is_launched_and_every_launch_has_one(op: str) -> None:
    launches = {launch.kernel for case in drawn_cases(op, 400, 1 << 14) for launch in KERNELS[op].launches(case)}
    assert launches == set(kernels_in(CudaBackend.source(op).text))


def test_an_included_file_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("int a;\n")
    (tmp_path / "b.cu").write_text('// b\n#include "a.h"\nint b;\n')
    text = '#line 1 "b.cu"\n// b\n#line 1 "a.h"\nint a;\n#line 3 "b.cu"\nint b;\n'
    assert source_of(tmp_path / "b.cu") == text
    assert [place_of(text, f"int {name};") for name in "ab"] == ["a.h:1", "b.cu:3"]
