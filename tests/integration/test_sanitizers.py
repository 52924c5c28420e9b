"""Kernels under their API's own checker: ours are clean, and planted faults are found, named, shrunk and replayed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from opconform.backends.kernels.table import KERNELS
from opconform.backends.opencl import OpenCLBackend
from opconform.backends.vulkan import VulkanBackend
from opconform.harness.run.backend import Unavailable
from tests.lacking import lacking

BACKENDS: dict[str, type[OpenCLBackend] | type[VulkanBackend]] = {"opencl": OpenCLBackend, "vulkan": VulkanBackend}
CHECKERS = {"opencl": "oclgrind", "vulkan": "vulkan-validationlayers"}  #: the packages that bring them


def need(name: str) -> None:
    """Skip where the backend or its checker is missing; under CI that is an error."""
    piece = name
    try:
        BACKENDS[name].devices({})
        piece = CHECKERS[name]
        BACKENDS[name].sanitizer()
    except Unavailable as missing:
        lacking(piece, str(missing))


def opconform(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("opconform")), *words]
    command += ["--history", "none", "--repro-dir", "none"] if words[0] == "test" else []
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)


@pytest.mark.long
@pytest.mark.parametrize("name", BACKENDS)
def test_our_kernels_are_clean(name: str, tmp_path: Path) -> None:
    need(name)
    words = ("--sanitize", "--max-examples", "8", "--max-bytes", "2K", "--seed", "3", "--op", ",".join(KERNELS))
    time = ("--minutes", "1")  # the validation layers of 2025 take minutes for a kernel with long loops and barriers
    done = opconform("test", "--backend", name, *words, *time, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}:0@sanitized" in done.stdout


@dataclass(frozen=True)
class Fault:
    """A line of cumsum's kernel, what stands there in the faulty copy, and what is to be found at that line."""

    backend: str
    name: str
    line: str
    instead: str
    kind: str
    says: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.name}"


#: The work-items of a group look at each other's sums without a barrier, and never use what they see.
RACE = """
    __local float tile[64];
    for (int i = 0; i < 64; i++) { tile[i] = 0.0f; }
    tile[get_local_id(0)] = sum;
    if (tile[(get_local_id(0) + 1) % get_local_size(0)] == 12345.678f) { out[out_line / 4] = 0.0f; }
}
"""

FAULTS = (
    Fault("opencl", "race", "    }\n}\n", "    }" + RACE, "DATA RACE", r"(Read|Write)-write data race at local memory"),
    Fault(
        "opencl",
        "write-into-other-memory",
        "        sum += x[from / 4];\n",
        "        sum += x[from / 4]; if (n == 1) { out[to / 4 + 5000] = sum; }\n",
        "OUT OF BOUNDS",
        r"Invalid write of size 4 at global memory",
    ),
    Fault(
        "opencl",
        "uninitialised-local",
        "        sum += x[from / 4];\n",
        "        float part[2]; part[n == 0 ? 0 : 1] = x[from / 4]; sum += part[1];\n",
        "UNINITIALISED READ",
        r"Uninitialized value written to global memory",
    ),
    Fault(
        "vulkan",
        "out-of-bounds",
        "        sum += load(from);\n",
        "        sum += load(from) + uintBitsToFloat(words[to / 4 + 900000]);\n",
        "OUT OF BOUNDS",
        r"access out of bounds",
    ),
)


def faulty(fault: Fault, folder: Path) -> str:
    """A backend whose cumsum has the fault, as `--backend` takes it."""
    base = BACKENDS[fault.backend]
    source = base.source("cumsum").file
    text = source.read_text(encoding="utf-8")
    assert text.count(fault.line) == 1
    (folder / source.name).write_text(text.replace(fault.line, fault.instead), encoding="utf-8")
    mine = f"""
from pathlib import Path
from {base.__module__} import {base.__name__}

class Mine({base.__name__}):
    kernels = Path(__file__).parent
"""
    (folder / "mine.py").write_text(mine)
    return f"{folder / 'mine.py'}:Mine"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_found_named_with_its_line_shrunk_and_replayed(fault: Fault, tmp_path: Path) -> None:
    need(fault.backend)
    spec = faulty(fault, tmp_path)
    words = ("--sanitize", "--op", "cumsum", "--max-examples", "200", "--seed", "5", "--also-seconds", "0")
    done = opconform("test", "--backend", spec, *words, folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^{fault.kind}  cumsum on ", done.stdout, re.MULTILINE), done.stdout
    said = " ".join(done.stdout.split())
    assert re.search(fault.says, said), done.stdout
    suffix = {"opencl": "cl", "vulkan": "comp"}[fault.backend]
    text = (tmp_path / f"cumsum.{suffix}").read_text().splitlines()
    named = [int(line) for line in re.findall(rf"cumsum\.{suffix}:(\d+)", said)]
    planted = [number for number, line in enumerate(text, 1) if line.strip() and line.strip() in fault.instead]
    near = 6 if fault.backend == "vulkan" else 2  # the layer names the beginning of the loop
    assert any(abs(place - line) <= near for line in named for place in planted), (named, planted)
    sizes = re.search(r"ne_x=\[([\d,]+)\]", done.stdout)
    assert sizes is not None
    assert max(map(int, sizes[1].split(","))) <= 3, done.stdout

    (case,) = (tmp_path / "opconform-out" / "cases").glob("cumsum-*.json")
    again = opconform("replay", str(case), "--backend", spec, "--sanitize", folder=tmp_path)
    assert again.returncode == 1, again.stdout + again.stderr
    mended = opconform("replay", str(case), "--backend", fault.backend, "--sanitize", folder=tmp_path)
    assert mended.returncode == 0, mended.stdout + mended.stderr


#: Uploads and computes in one sequence: Kompute's barrier covers a shader that reads what was uploaded, not
#: one that writes.
NO_BARRIER = """
from opconform.backends.vulkan import VulkanBackend, dispatches as base

class Mine(VulkanBackend):
    def run(self, case, buffers):
        kernel, blocks = self.table[case.op], self._shader(case.op).blocks
        size, plan = buffers.memory.size, base.with_scratch(kernel, case, buffers.plan)
        arena = self._arena(plan.size)
        arena.staging[:size] = buffers.memory
        together = self._manager.sequence().record(self._kp.OpTensorSyncDevice(arena.tensors))
        same = base.values_of(kernel, case, plan).numbers(blocks.pushed)
        for dispatch in base.dispatches(kernel, case):
            words = base.pushed(blocks.pushed, same, dispatch)
            together.record(self._kp.OpAlgoDispatch(self._algorithm(arena, case.op, dispatch), words))
        together.record(self._kp.OpTensorSyncLocal(arena.tensors[:1])).eval()
        buffers.memory[:] = arena.staging[:size]
        self._free(arena)
"""


def test_a_missing_barrier_between_an_upload_and_a_shader_is_found(tmp_path: Path) -> None:
    need("vulkan")
    (tmp_path / "mine.py").write_text(NO_BARRIER)
    words = ("--sanitize", "--op", "cumsum", "--max-examples", "40", "--seed", "5", "--also-seconds", "0")
    done = opconform(
        "test",
        "--backend",
        f"{tmp_path / 'mine.py'}:Mine",
        *words,
        "--repro-dir",
        "none",
        "--history",
        "none",
        folder=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^DATA RACE  cumsum on ", done.stdout, re.MULTILINE), done.stdout
    assert "SYNC-HAZARD-WRITE-AFTER-WRITE" in done.stdout


def test_layers_that_are_hidden_from_this_process_are_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Vulkan backend hides them from a process that it runs in without a checker."""
    need("vulkan")
    monkeypatch.setenv("VK_LAYER_PATH", os.devnull)
    words = ("--sanitize", "--op", "diag", "--max-examples", "8", "--seed", "5")
    assert opconform("test", "--backend", "vulkan", *words, folder=tmp_path).returncode == 0
    with pytest.raises(Unavailable, match="does not find VK_LAYER_KHRONOS_validation"):
        VulkanBackend("0", {"sanitize": "yes"})


def test_a_backend_without_a_checker_is_a_usage_error(tmp_path: Path) -> None:
    done = opconform("test", "--backend", "torch", "--sanitize", folder=tmp_path)
    assert done.returncode == 2
    assert "the backend torch has no checker to run under" in done.stderr
