"""The CUDA kernels run on the CPU: right ones pass, and what is wrong with a copy of one is found with its line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.cuda import CudaHostBackend
from opconform.backends.cuda.host import compiler
from opconform.backends.kernels.own_buffers import SHARED
from opconform.backends.kernels.source import source_of
from opconform.backends.kernels.table import KERNELS
from opconform.harness.draw.known import known_cases
from opconform.harness.explain.failure import Failure
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import KernelFault, Unavailable
from opconform.harness.run.registry import backend_class
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.judge import Bench, cases_for, drawn_cases

CUDA = CudaHostBackend.kernels


def missing() -> str:
    try:
        compiler()
    except Unavailable as reason:
        return str(reason)
    return ""


MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING) and os.environ.get("CI") != "true", reason=MISSING)


@pytest.fixture(scope="module")
def backend() -> CudaHostBackend:
    return CudaHostBackend("0", {})


# ---- copies of the kernels with a fault ------------------------------------------------------------------------------

BACKEND = """
from dataclasses import replace
from pathlib import Path

from opconform.backends.cuda import CudaHostBackend


class Faulty(CudaHostBackend):
    name = "faulty"
    kernels = Path(__file__).parent


class AlongZ(Faulty):
    @classmethod
    def grids(cls, case):
        return [replace(grid, blocks=grid.blocks[::-1]) for grid in super().grids(case)]
"""


@dataclass(frozen=True)
class Fault:
    """A fault in a file: `right` becomes `wrong`, and the search must find a failure of `kind`. `lines` are parts of
    the wrong file's lines that the failure must name."""

    file: str
    right: str
    wrong: str
    kind: str
    lines: tuple[str, ...] = ()
    backend: str = "Faulty"
    op: str = ""


FAULTS = {
    "the outermost dimension is dropped": Fault(
        "acc.cl",
        "if (id >= p.b_ne[0] * p.b_ne[1] * p.b_ne[2] * p.b_ne[3]) {",
        "if (id >= p.b_ne[0] * p.b_ne[1] * p.b_ne[2]) {",
        "WRONG VALUES",
    ),
    # ggml-org/llama.cpp#18448
    "the barrier stands after the carry instead of before it": Fault(
        "cumsum.cu",
        """        __syncthreads();  // all have read the carry, and of the tile what they need
        if (thread == width - 1) {
            carry += sums[thread];
        }
""",
        """        if (thread == width - 1) {
            carry += sums[thread];
        }
        __syncthreads();
""",
        "DATA RACE",
        ("carry += sums[thread];", "carry + (p.exclusive"),
    ),
    "a barrier in a branch that not all threads take": Fault(
        "cumsum.cu",
        "        __syncthreads();  // all have read the carry, and of the tile what they need\n",
        """        if (n < length) {
            __syncthreads();
        } else {
            __syncthreads();  // the others
        }
""",
        "API MISUSE",
        ("__syncthreads();  // the others",),
    ),
    "a barrier that some threads leave out by returning": Fault(
        "cumsum.cu",
        """    if (thread == 0) {
        carry = 0.0f;
    }
""",
        """    if (thread >= length) {
        return;
    }
    if (thread == 0) {
        carry = 0.0f;
    }
""",
        "API MISUSE",
    ),
    "no barrier between reading and writing": Fault(
        "cumsum.cu",
        "            __syncthreads();  // all have read before any writes\n",
        "",
        "DATA RACE",
        ("sums[thread] += left;", "sums[thread - step]"),
    ),
    "an index into shared memory that is off by one": Fault(
        "lanes.h",
        "            parts[thread] += parts[thread + half];",
        "            parts[thread] += parts[thread + half + 1];",
        "UNINITIALISED READ",
        ("parts[thread + half + 1];",),
        op="sum_rows",
    ),
    "an index past the end of shared memory": Fault(
        "cumsum.cu",
        "        const float before = thread > 0 ? sums[thread - 1] : 0.0f;",
        "        const float before = thread > 0 ? sums[thread + 255] : 0.0f;",
        "OUT OF BOUNDS",
        ("sums[thread + 255]",),
    ),
    "shared memory is not set before it is read": Fault(
        "cumsum.cu",
        "        carry = 0.0f;",
        "",
        "UNINITIALISED READ",
        ("carry + (p.exclusive",),
    ),
    "the tail of the last block is not masked": Fault(
        "gather.cl",
        "if (id >= p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3]) {",
        "if (p.out_ne[0] * p.out_ne[1] * p.out_ne[2] * p.out_ne[3] == 0) {",
        "DATA RACE",  # the threads beyond begin again at the first element
        op="cont",
    ),
    "the tail of the last tile is not masked": Fault(
        "cumsum.cu",
        "sums[thread] = n < length ? x[(x_line + i * x_step) / 4] : 0.0f;",
        "sums[thread] = x[(x_line + i * x_step) / 4];",
        "OUT OF BOUNDS",
        ("sums[thread] = x[",),
    ),
    "rows are counted along z, which takes 65535": Fault(
        "row.cl",
        "const ulong id = row_id();",
        "const ulong id = blockIdx.z;",
        "API MISUSE",
        ("__kernel void row",),
        backend="AlongZ",
        op="sum_rows",
    ),
    "more shared memory than a block has": Fault(
        "cumsum.cu",
        "sums[256];",
        "sums[16384];",
        "API MISUSE",
        ('extern "C" __global__ void cumsum',),
    ),
    "blocks of one launch wait for each other": Fault(
        "solve_tri.cl",
        "    const ulong i3 = id / (p.b_ne[across] * p.b_ne[2]);",
        "    const ulong i3 = id / (p.b_ne[across] * p.b_ne[2]) / 2 * 2;",
        "DATA RACE",
    ),
}


def copy_with(folder: Path, fault: Fault) -> Path:
    """The kernels in `folder`, one of them with the fault."""
    for file in (*CUDA.glob("*.cu"), *SHARED.glob("*.cl"), *SHARED.glob("*.h")):
        shutil.copy(file, folder)
    (folder / "faulty.py").write_text(BACKEND)
    text = (folder / fault.file).read_text()
    assert text.count(fault.right) == 1, fault.file
    (folder / fault.file).write_text(text.replace(fault.right, fault.wrong))
    return folder / fault.file


def found(folder: Path, op: str, backend: str = "Faulty") -> Failure | None:
    """What the search finds in a copy of the kernels."""
    target = Target(f"{folder / 'faulty.py'}:{backend}", CudaHostBackend.devices({})[0])
    settings = Settings(examples=200, seed=1, isolated=False)
    known = [case for case in known_cases().values() if case.case.op == op]
    with Runner(target, isolated=False) as runner:
        return Search(ops()[op], runner, settings, known).run().failure


@pytest.mark.parametrize("fault", FAULTS.values(), ids=[name.replace(" ", "-") for name in FAULTS])
def test_a_seeded_fault_is_found_with_its_line(tmp_path: Path, fault: Fault) -> None:
    file = copy_with(tmp_path, fault)
    failure = found(tmp_path, fault.op or Path(fault.file).stem, fault.backend)
    assert failure is not None
    assert failure.kind == fault.kind, failure.findings
    for part in fault.lines:
        (line,) = (number for number, text in enumerate(file.read_text().splitlines(), 1) if part in text)
        assert f"{fault.file}:{line}" in failure.findings[0].detail


def test_a_copy_without_a_fault_passes(tmp_path: Path) -> None:
    copy_with(tmp_path, Fault("row.cl", "struct arguments {", "struct arguments {  // as it is", ""))
    assert found(tmp_path, "sum_rows") is None


def test_a_finding_shrinks(tmp_path: Path) -> None:
    copy_with(tmp_path, FAULTS["the tail of the last block is not masked"])
    failure = found(tmp_path, "cont")
    assert failure is not None
    assert failure.case.outputs["out"].shape == (1, 1, 1, 1)


# ---- the kernels as they are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted(KERNELS.keys() & ops().keys()))
def test_every_drawn_case_passes(backend: CudaHostBackend, op: str) -> None:
    numerics = backend.devices({})[0].numerics
    for case in cases_for(backend, op, 60, 1 << 18):
        assert Bench(case).passes(backend, numerics), case


def test_more_blocks_than_65535(backend: CudaHostBackend) -> None:
    case = known_cases()["sum_rows/kb041-rows"].case
    assert CudaHostBackend.grids(case)[0].blocks[0] > 65_535
    assert Bench(case).passes(backend)


def test_every_byte_of_the_arena_makes_the_round_trip(backend: CudaHostBackend) -> None:
    a, b = Layout.contiguous("f16", (1, 1, 1, 7)), Layout.contiguous("f16", (1, 1, 1, 0))
    case = Case("set", {"nb1": 8, "nb2": 8, "nb3": 8, "offset": 0}, {"a": a, "b": b}, {"out": a}, inplace="a")
    before = np.random.default_rng(0).integers(0, 256, Plan.of(case).size, dtype=np.uint8)
    after = before.copy()
    backend.run(case, Buffers(case, after))
    np.testing.assert_array_equal(after, before)


def every_half() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).reshape(1, 1, 1, -1)


def around_every_half() -> np.ndarray:
    """Float32 values at every finite half, at every middle between two, and next to those on either side."""
    halves = np.unique(np.abs(every_half().view(np.float16).astype(np.float32)))
    halves = halves[halves <= 65504]
    marks = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2, [np.float32(65520)]]).astype(np.float32)
    near = np.concatenate([marks, np.nextafter(marks, np.float32(np.inf)), np.nextafter(marks, np.float32(-np.inf))])
    return np.concatenate([near, -near]).view(np.uint32).reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("came", "goes", "raw"),
    [
        ("f16", "f32", every_half()),
        ("bf16", "f32", every_half()),
        ("f32", "f16", around_every_half()),
        ("f32", "bf16", around_every_half()),
    ],
)
def test_conversions_are_right_to_the_bit(backend: CudaHostBackend, came: str, goes: str, raw: np.ndarray) -> None:
    case = Case("cpy", {}, {"x": Layout.contiguous(came, raw.shape)}, {"out": Layout.contiguous(goes, raw.shape)})
    bench = Bench(case, {"x": raw})
    assert bench.passes(backend), bench.verdict(backend).findings


def test_a_wrong_step_is_named(tmp_path: Path) -> None:
    right, wrong = "kk = j < i ? beta[beta_at / 4] * (kk * factor) : 0.0f;", "kk = j < i ? kk * factor : 0.0f;"
    copy_with(tmp_path, Fault("gated_delta_net_chunk.cu", right, wrong, ""))
    failure = found(tmp_path, "gated_delta_net_chunk")
    assert failure is not None
    assert failure.stage.startswith("Akk"), failure.stage


def test_an_op_without_a_kernel_is_unsupported(backend: CudaHostBackend) -> None:
    x = Layout.contiguous("f32", (1, 1, 1, 1))
    reason = str(backend.supports(Case("fft", {}, {"x": x}, {"out": x})))
    assert reason.startswith("no kernel for fft: add backends/kernels/fft.cl")


def test_a_type_without_a_kernel_is_unsupported(backend: CudaHostBackend) -> None:
    x = Layout.contiguous("f16", (1, 1, 1, 4))
    half = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": x}, {"out": x})
    assert backend.supports(half) == "cumsum.cu computes f32, not f16"


def test_an_error_of_the_compiler_names_the_line(tmp_path: Path) -> None:
    fault = Fault("cumsum.cu", "    if (thread == 0) {", "    if (thrread == 0) {", "")
    file = copy_with(tmp_path, fault)
    line = 1 + file.read_text().splitlines().index(fault.wrong)
    backend = backend_class(f"{tmp_path / 'faulty.py'}:Faulty")("0", {})
    with pytest.raises(RuntimeError, match=rf"cumsum\.cu does not compile: cumsum\.cu:{line}:\d+: error: .thrread."):
        Bench(drawn_cases("cumsum", 8, 1 << 10)[0]).after(backend)


def test_a_run_goes_on_after_a_fault(tmp_path: Path, backend: CudaHostBackend) -> None:
    copy_with(tmp_path, FAULTS["the barrier stands after the carry instead of before it"])
    faulty = backend_class(f"{tmp_path / 'faulty.py'}:Faulty")("0", {})
    long = Layout.contiguous("f32", (1, 1, 3, 1000))
    case = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": long}, {"out": long}, "normal")
    for _ in range(3):
        with pytest.raises(KernelFault, match="with no barrier between"):
            Bench(case).after(faulty)
        assert Bench(case).passes(backend)


@pytest.mark.parametrize("op", sorted(KERNELS.keys() & ops().keys()))
def test_the_kernels_build_without_a_warning(op: str) -> None:
    """g++ sees what NVRTC does not: unused variables, and integers of different signs that are compared."""
    source = source_of(CUDA / "host.h") + CudaHostBackend.source(op).text
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run([compiler()[0], *options], input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_kernels_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPCONFORM_CACHE", str(tmp_path))
    x = Layout.contiguous("f32", (1, 1, 1, 4))
    case = Case("cont", {}, {"x": x}, {"out": x})
    for _ in range(2):
        assert Bench(case).passes(CudaHostBackend("0", {}))
        (kept,) = (tmp_path / "cuda-host").iterdir()
        assert re.fullmatch(r"gather-[0-9a-f]{32}\.so", kept.name)


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match=r"there is no g\+\+ on PATH; apt-get install g\+\+"):
        CudaHostBackend.devices({})
    compiler.cache_clear()


def test_an_unknown_device_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cuda-host:0"):
        CudaHostBackend("1", {})
