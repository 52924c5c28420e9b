"""Every CUDA kernel is compiled for every architecture from Volta on that the installed NVRTC knows."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from opconform.backends import cuda
from opconform.backends.cuda.arguments import LAUNCHES
from opconform.backends.cuda.backend import OPTIONS
from opconform.backends.cuda.source import complaint, kernels_in, source_of
from opconform.backends.element_types import DTYPES
from tests import nvrtc

FOLDER = Path(cuda.__file__).parent
KERNELS = sorted(FOLDER.glob("*.cu"))
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


@pytest.mark.parametrize("file", KERNELS, ids=[file.stem for file in KERNELS])
def test_every_kernel_compiles_for_every_architecture_without_a_warning(compiler: nvrtc.Nvrtc, file: Path) -> None:
    assert len(compiler.architectures) > 5
    for architecture in compiler.architectures:
        options = (*OPTIONS, f"-arch=sm_{architecture}")
        compiled = compiler.compile(source_of(file), "kernels.cu", options)
        assert compiled.good, f"sm_{architecture}: {compiled.log}"
        assert f"{file.name}(" not in compiled.log, f"sm_{architecture}: {compiled.log}"


def test_the_newest_nvrtc_for_cuda_12_knows_volta_and_blackwell(compiler: nvrtc.Nvrtc) -> None:
    if compiler.version.startswith("12."):
        assert {70, 75, 80, 90, 100, 120} <= set(compiler.architectures)


def test_an_error_names_the_file_and_line(compiler: nvrtc.Nvrtc, tmp_path: Path) -> None:
    file = tmp_path / "cumsum.cu"
    file.write_text((FOLDER / "cumsum.cu").read_text().replace("if (thread == 0) {", "if (thrread == 0) {"))
    line = 1 + file.read_text().splitlines().index("    if (thrread == 0) {")
    compiled = compiler.compile(source_of(file), "kernels.cu", (*OPTIONS, "-arch=sm_80"))
    assert not compiled.good
    last = str(complaint(file, compiled.log)).splitlines()[-1]
    assert f'cumsum.cu({line}): error: identifier "thrread" is undefined' in last


def test_more_shared_memory_than_a_block_has_does_not_compile(compiler: nvrtc.Nvrtc) -> None:
    source = source_of(FOLDER / "cumsum.cu").replace("sums[256]", "sums[16384]")
    assert "uses too much shared data" in compiler.compile(source, "kernels.cu", (*OPTIONS, "-arch=sm_80")).log


def test_every_op_has_a_file_and_every_file_an_op() -> None:
    assert {file.stem for file in KERNELS} == set(LAUNCHES) == set(DTYPES)


@pytest.mark.parametrize("file", KERNELS, ids=[file.stem for file in KERNELS])
def test_every_kernel_is_one_that_is_launched(file: Path) -> None:
    assert kernels_in(source_of(file))
    assert file.read_text().count("__global__") == len(kernels_in(source_of(file)))


def test_an_included_file_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.cuh").write_text("int a;\n")
    (tmp_path / "b.cu").write_text('// b\n#include "a.cuh"\nint b;\n')
    text = '#line 1 "b.cu"\n// b\n#line 1 "a.cuh"\nint a;\n#line 3 "b.cu"\nint b;\n'
    assert source_of(tmp_path / "b.cu") == text
