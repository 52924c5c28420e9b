"""The CUDA kernels on the CPU: every kernel file as it is, built by g++ with host.h, run and watched by host.cpp.

It shows what a kernel computes and how it uses memory and barriers, on any machine. What it does not show: what
depends on the hardware (warps that diverge, fused operations, registers) and how fast anything is.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from opconform.backends.cache import cache_folder, keep, key_of
from opconform.backends.cuda.backend import NUMERICS, CudaKernels
from opconform.backends.cuda.geometry import Grid
from opconform.backends.kernels.own_buffers import Source, fields
from opconform.backends.kernels.source import complaint, kernels_in, place_of, source_of
from opconform.harness.model.buffers import GUARD, Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.run.backend import Device, KernelFault, Loaded, Unavailable
from opconform.harness.run.sanitizer import Sanitizer
from opconform.harness.run.script import Script, ScriptRequest

_HERE = Path(__file__).parent
#: Lines as addr2line reads them where #line names the file; fortified, longjmp would refuse to change stacks.
COMMON = ("-std=c++17", "-O2", "-g1", "-gdwarf-4", "-fPIC", "-U_FORTIFY_SOURCE")
#: Every access to memory is reported to host.cpp, every index and every alignment checked. Nothing is fused.
CHECKED = ("-fsanitize=thread", "-fsanitize=bounds,alignment", "-ffp-contract=off", "-fno-math-errno")
#: What a launch may ask for on every device (CUDA C++ Programming Guide, "Compute Capabilities").
_MOST_SHARED = 48 << 10  # bytes that a kernel declares
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
_MOST_THREADS = (1024, 1024, 64)


class CudaHostBackend(CudaKernels):
    """The kernels beside this file on the CPU, one thread at a time, in the worker's own memory."""

    name = "cuda-host"
    needs = "g++ on Linux"

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        if device != "0":
            raise Unavailable(f"there is no device {device!r}", "there is one: cuda-host:0")
        self._runtime = _runtime()
        self._libraries: dict[str, _Library] = {}

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", f"the CUDA kernels on the CPU ({platform.machine()})", {"g++": compiler()[1]}, NUMERICS)]

    @classmethod
    def script(cls, request: ScriptRequest) -> Script:
        from opconform.backends.cuda.script import host_script

        regions = [
            replace(region, name=region.name + suffix)
            for suffix, case, plan in request.cases
            for region in regions_of(case, plan)
        ]
        host = {"regions": regions, "common": list(COMMON), "checked": list(CHECKED)}
        return host_script(request, cls.table, cls.source, host)

    @classmethod
    def sanitizer(cls) -> Sanitizer:
        """Nothing to run under: host.cpp checks every run."""
        cannot = "what depends on warps, and atomics, which no kernel here uses"
        return Sanitizer("host.cpp", lambda log: ((), {}), lambda log, case: [], cannot=cannot)

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        return self._load(case, buffers)

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        """Run the case again; its intermediate results by name."""
        loaded = self._load(case, buffers)
        loaded.launch()
        loaded.fetch()
        return loaded.scratch

    def _load(self, case: Case, buffers: Buffers) -> _Loaded:
        kernel = self.table[case.op]
        scratch = {name: np.empty(shape, np.float32) for name, shape in kernel.scratch(case).items()}
        for intermediate in scratch.values():
            intermediate.view(np.uint8).fill(0xFF)
        library = self._library(case.op)
        numbers = fields(kernel, library.source.struct, case)
        return _Loaded(self._runtime, library, case, buffers, numbers, self.grids(case), scratch)

    def _library(self, op: str) -> _Library:
        if op not in self._libraries:
            self._libraries[op] = _Library(self._source(op))
        return self._libraries[op]


@dataclass(frozen=True)
class _Loaded:
    """A case where it stands: the kernels run on the memory in its buffers."""

    runtime: ctypes.CDLL
    library: _Library
    case: Case
    buffers: Buffers
    numbers: list[int]
    grids: list[Grid]
    scratch: Mapping[str, np.ndarray]

    def launch(self) -> None:
        """Raises `KernelFault` where a kernel does what it must not."""
        base, arguments = self.buffers.memory.ctypes.data, regions_of(self.case, self.buffers.plan)
        windows = {name: base + slot.start - GUARD for name, slot in self.buffers.plan.slots.items()}
        windows |= {name: intermediate.ctypes.data for name, intermediate in self.scratch.items()}
        regions = [region.as_c(base) for region in arguments]
        regions += [_Region(it.ctypes.data, it.nbytes, 1, _shift(it.itemsize)) for it in self.scratch.values()]
        self.runtime.host_case((_Region * len(regions))(*regions), len(regions))
        for grid in self.grids:
            self.library.check(grid)
            if not self.library.run(grid, self.numbers, windows):
                fault = _Fault.in_dll(self.runtime, "host_found")
                raise _in_words(fault, self.library, [*(region.name for region in arguments), *self.scratch])

    def fetch(self) -> None:
        """The memory is the host's own."""


# ---- building --------------------------------------------------------------------------------------------------------


@cache
def compiler() -> tuple[str, str]:
    """The path of g++ and its version. Raises `Unavailable` where PATH has none."""
    if sys.platform != "linux":
        raise Unavailable("host.cpp is written for Linux", "run it there, or --backend cuda with an NVIDIA GPU")
    path = shutil.which("g++")
    if path is None:
        raise Unavailable("there is no g++ on PATH", "apt-get install g++")
    return path, subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()


def build(file: Path, text: str, options: tuple[str, ...]) -> Path:
    """The shared library that g++ makes of `text`, the source of `file`; from the cache where it is there.

    Raises `RuntimeError` with the compiler's words where it refuses the source.
    """
    path, version = compiler()
    key = key_of(*map(str.encode, (text, *COMMON, *options, version, platform.machine())))
    entry = cache_folder("cuda-host") / f"{file.stem}-{key}.so"
    if entry.exists():
        return entry
    folder = Path(tempfile.mkdtemp(prefix="opconform-"))
    made, whole = folder / "kernels.o", folder / entry.name
    command = [path, *COMMON, *options, "-x", "c++", "-c", "-", "-o", str(made)]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        shutil.rmtree(folder)
        raise complaint(file, done.stderr)
    subprocess.run([path, "-shared", "-Wl,-Bsymbolic", str(made), "-lm", "-o", str(whole)], check=True)
    keep(entry, whole.read_bytes())
    if entry.exists():
        shutil.rmtree(folder)
        return entry
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the cache cannot be written
    return whole


@cache
def _runtime() -> ctypes.CDLL:
    """host.cpp, loaded so that the kernels' libraries find it."""
    file = _HERE / "host.cpp"
    runtime = ctypes.CDLL(str(build(file, source_of(file), ())), mode=ctypes.RTLD_GLOBAL)
    runtime.host_case.restype = None
    return runtime


class _Library:
    """The kernels of one file, built and loaded. `_runtime` must have been called."""

    def __init__(self, source: Source) -> None:
        self.source = source
        names = kernels_in(source.text)
        exported = "".join(f"HOST_KERNEL({name})\n" for name in names)
        self._path = build(source.file, f"{source_of(_HERE / 'host.h')}{source.text}{exported}", CHECKED)
        self._loaded = ctypes.CDLL(str(self._path))
        self._shared = _shared_bytes(self._path, names)

    def run(self, grid: Grid, numbers: list[int], windows: Mapping[str, int]) -> bool:
        """Run a kernel on buffers at these addresses. False where it does what it must not."""
        struct = (ctypes.c_uint64 * len(numbers))(*numbers)
        pointers = [ctypes.c_void_p(windows.get(name)) for name in grid.buffers]
        values = [ctypes.addressof(struct), *(ctypes.addressof(pointer) for pointer in pointers)]
        geometry = (ctypes.c_uint * 6)(*grid.blocks, *grid.threads)
        arguments = (ctypes.c_void_p * len(values))(*values)
        return bool(getattr(self._loaded, f"{grid.kernel}_launch")(geometry, arguments) == 0)

    def check(self, grid: Grid) -> None:
        """Raises `KernelFault` for a launch that CUDA refuses."""
        refused = _refused(grid, self._shared.get(grid.kernel, 0))
        if refused:
            place = place_of(self.source.text, rf" {grid.kernel}\(")
            raise KernelFault(Kind.API_MISUSE, f"{place}: {grid.kernel} is launched with {refused}")

    def line_at(self, address: int) -> str:
        """The file and line of the call before a place in the code, counted from the start of the library."""
        if shutil.which("addr2line") is None:
            return self.source.file.name
        command = ["addr2line", "-e", str(self._path), hex(address - 1)]
        return Path(subprocess.run(command, capture_output=True, text=True).stdout.split(" ")[0].strip()).name


def _refused(grid: Grid, shared: int) -> str:
    """What a launch of a kernel with `shared` bytes of shared memory asks too much of; "" where CUDA takes it."""
    for axis, blocks, most in zip("xyz", grid.blocks, _MOST_BLOCKS):
        if not 1 <= blocks <= most:
            return f"{blocks} blocks along {axis}; CUDA takes 1 to {most}"
    for axis, threads, most in zip("xyz", grid.threads, _MOST_THREADS):
        if not 1 <= threads <= most:
            return f"{threads} threads along {axis}; CUDA takes 1 to {most}"
    if math.prod(grid.threads) > _MOST_THREADS[0]:
        return f"{math.prod(grid.threads)} threads in a block; CUDA takes {_MOST_THREADS[0]}"
    if shared > _MOST_SHARED:
        return f"{shared} bytes of shared memory; CUDA takes {_MOST_SHARED}"
    return ""


def _shared_bytes(library: Path, kernels: list[str]) -> dict[str, int]:
    """The bytes of shared memory that each kernel declares; what functions that it may call declare is in each."""
    said = subprocess.run(["nm", "-S", "-C", str(library)], capture_output=True, text=True).stdout
    found = dict.fromkeys(kernels, 0)
    for size, owner in re.findall(r"^\w+ (\w+) d (\w+)(?:\(.*\))?::", said, re.MULTILINE):
        for name in [owner] if owner in kernels else kernels:
            found[name] += int(size, 16)
    return found


# ---- what host.cpp is told, and what it says -------------------------------------------------------------------------


class _Region(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("fresh", ctypes.c_uint32),
        ("shift", ctypes.c_uint32),
    )


def _shift(itemsize: int) -> int:
    return itemsize.bit_length() - 1


@dataclass(frozen=True)
class Region:
    """Memory that the kernels of a case may use, from byte `begin` of the arena. `fresh`: nothing in it may be read
    before it is written."""

    name: str
    begin: int
    size: int
    fresh: bool
    shift: int

    def as_c(self, arena: int) -> _Region:
        """For host.cpp, with the address of the arena."""
        return _Region(arena + self.begin, self.size, int(self.fresh), self.shift)


def regions_of(case: Case, plan: Plan) -> list[Region]:
    """The arguments' own memory, from offset 0 to the end of the last element; those that share it are one."""
    together: dict[int, list[str]] = {}
    for name, slot in plan.slots.items():
        together.setdefault(slot.start, []).append(name)
    found = []
    for start, names in together.items():
        layouts = [case.layouts[name] for name in names]
        size = max(layout.end if layout.size else 0 for layout in layouts)
        fresh = all(name in case.outputs for name in names)
        found.append(Region(", ".join(names), start, size, fresh, _shift(layouts[0].type.itemsize)))
    return found


class _Place(ctypes.Structure):
    _fields_ = (("file", ctypes.c_char_p), ("line", ctypes.c_uint32), ("column", ctypes.c_uint32))

    def __str__(self) -> str:
        return f"{(self.file or b'?').decode()}:{self.line}"


class _Fault(ctypes.Structure):
    """`host_fault` of host.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "writes", "other_writes", "region", "count")),
        *((name, ctypes.c_uint32) for name in ("at", "other_at", "thread", "other_thread")),
        ("block", ctypes.c_uint32 * 3),
        ("value", ctypes.c_int64),
        ("place", _Place),
        ("other_place", _Place),
    )


_OUT_OF_BOUNDS, _RACE, _UNINITIALISED, _BARRIER, _INDEX = range(1, 6)  #: `Kind` of host.cpp
_SEVERAL = 2047  #: in place of a thread: more than one


def _in_words(fault: _Fault, library: _Library, names: list[str]) -> KernelFault:
    """The kind, and one line: the file and line, which thread, and what it does."""
    who = f"thread {fault.thread} of block ({','.join(map(str, fault.block))})"
    at = library.line_at(fault.at) if fault.at else str(fault.place)
    memory = names[fault.region] if fault.region >= 0 else "shared memory"
    verb = "writes" if fault.writes else "reads"
    if fault.kind == _OUT_OF_BOUNDS:
        beyond = f"byte {fault.value} of {memory}" if fault.region >= 0 else "memory of nobody"
        says = f"{at}: {who} {verb} {fault.count} bytes at {beyond}, where no element is"
        return KernelFault(Kind.OUT_OF_BOUNDS, says)
    if fault.kind == _RACE:
        several = fault.other_thread == _SEVERAL
        other = "other threads" if several else f"thread {fault.other_thread}"
        other += " of another block" if fault.count else ""
        does = ("write" if fault.other_writes else "read") + ("" if several else "s")
        there = library.line_at(fault.other_at)
        says = f"{at}: {who} {verb} in {memory} what {other} {does} at {there}, with no barrier between"
        return KernelFault(Kind.DATA_RACE, says)
    if fault.kind == _UNINITIALISED:
        return KernelFault(Kind.UNINITIALISED_READ, f"{at}: {who} reads in {memory} what nobody has written")
    if fault.kind == _BARRIER:
        others = f"wait at {fault.other_place}" if fault.other_place.file else "have ended"
        says = f"{at}: only {fault.count} threads of a block wait at this barrier; others {others}"
        return KernelFault(Kind.API_MISUSE, says)
    if fault.kind == _INDEX:
        return KernelFault(Kind.OUT_OF_BOUNDS, f"{at}: {who} uses index {fault.value}, which the array does not have")
    return KernelFault(Kind.API_MISUSE, f"{at}: {who} uses an address that its type's alignment forbids")
