"""The CUDA backend: one buffer per argument, guards included, and the kernels of this folder and of
`backends/kernels`, compiled by NVRTC."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from opconform.backends.cuda.geometry import THREADS, Grid, grids
from opconform.backends.cuda.sanitizer import compute_sanitizer
from opconform.backends.kernels.launch import Shapes
from opconform.backends.kernels.own_buffers import SHARED, Source, fields, product_source, source_for, windows
from opconform.backends.kernels.source import complaint
from opconform.backends.kernels.table import KERNELS, Kernel, limits
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Backend, Device, Loaded, Unavailable
from opconform.harness.run.sanitizer import OPTION, Sanitizer
from opconform.harness.run.script import Script, ScriptRequest

#: What NVRTC gets. No fast math: CUDA then divides and takes roots as IEEE 754 does, and keeps denormals; a product and
#: a sum may become one fused operation, which every bound allows. With the lines, compute-sanitizer names them.
OPTIONS = ("-std=c++17", "-lineinfo")

#: CUDA C++ Programming Guide, "Mathematical Functions": expf is off by at most 2 ulp; with -prec-div, -prec-sqrt and
#: without -ftz, as NVRTC compiles by default, division and square root are correctly rounded.
NUMERICS = Numerics(exp_ulps=2.0)

_PACKAGES = "pip install cupy-cuda12x or cupy-cuda13x, whichever CUDA version nvidia-smi shows"
_HARDWARE = (
    f"on a machine with an NVIDIA GPU and its driver, {_PACKAGES}; anywhere, --backend cuda-host runs the kernels"
)
_EVICTING = 256 << 20  #: bytes that fill the caches of any GPU
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


_HERE = Path(__file__).parent


class CudaKernels(Backend):
    """What both ways to run the kernels share."""

    #: Where <op>.cu lies, for kernels of blocks and barriers, or <op>.cl; what a subclass's own folder lacks is taken
    #: from here, or from `backends/kernels`.
    kernels: ClassVar[Path] = _HERE
    table: ClassVar[Mapping[str, Kernel]] = KERNELS
    script_reads = ("kernels", "table")

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        self._sources: dict[str, Source] = {}

    @classmethod
    def source(cls, op: str) -> Source:
        """The kernel file of an op, with all that it includes."""
        return source_for(op, cls.table[op], (cls.kernels, _HERE, SHARED), ".cu", ".cl")

    @classmethod
    def grids(cls, case: Case) -> list[Grid]:
        """The launches of a case, in order."""
        return grids(cls.table[case.op], case)

    def limits(self) -> tuple[Limit, ...]:
        """The element types of the kernels that move elements."""
        return limits(self.table)

    def supports(self, case: Case) -> str | None:
        if case.op not in self.table:
            return f"no kernel for {case.op}: add backends/kernels/{case.op}.cl and its row to table.py beside it"
        return self.table[case.op].refusal(case, self._source(case.op).file.name)

    def _source(self, op: str) -> Source:
        if op not in self._sources:
            self._sources[op] = self.source(op)
        return self._sources[op]


class CudaBackend(CudaKernels):
    """The kernels on one CUDA device.

    Every case gets fresh buffers of just the size of its arguments with their guards: from CuPy's pool, or, so that
    a checker sees where each one ends, from CUDA itself.
    """

    name = "cuda"
    needs = "an NVIDIA GPU, its driver, and CuPy (the extra cuda12 or cuda13)"

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        self._cupy, count = _cupy_with_devices()
        if not device.isdecimal() or int(device) >= count:
            raise Unavailable(f"there is no CUDA device {device!r}", f"choose one from 0 to {count - 1}")
        self._cupy.cuda.Device(int(device)).use()
        self._memory = int(self._cupy.cuda.runtime.getDeviceProperties(int(device))["totalGlobalMem"])
        self.clock = "CUDA events"
        self._other: Any = None
        self._modules: dict[str, Any] = {}
        if OPTION in options:
            self._cupy.cuda.set_allocator(None)

    @classmethod
    def script(cls, request: ScriptRequest) -> Script:
        from opconform.backends.cuda.script import cuda_script

        return cuda_script(request, cls.table, cls.source)

    @classmethod
    def sanitizer(cls) -> Sanitizer:
        return compute_sanitizer()

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        cupy, count = _cupy_with_devices()
        runtime = cupy.cuda.runtime
        major, minor = cupy.cuda.nvrtc.getVersion()
        versions = {
            "driver": f"for CUDA {_dotted(runtime.driverGetVersion())}",
            "runtime": _dotted(runtime.runtimeGetVersion()),
            "nvrtc": f"{major}.{minor}",
            "cupy": str(cupy.__version__),
        }
        found = []
        for index in range(count):
            about = runtime.getDeviceProperties(index)
            name = f"{about['name'].decode()} (sm_{about['major']}{about['minor']})"
            found.append(Device(str(index), name, versions, NUMERICS))
        return found

    def supports(self, case: Case) -> str | None:
        reason = super().supports(case)
        if reason is None:
            scratch = self.table[case.op].scratch(case)
            size = Plan.of(case).size + sum(4 * math.prod(shape) for shape in scratch.values())
            if size > self._memory:
                return f"the case takes {size} bytes; this device has {self._memory}"
        return reason

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        return self._load(case, buffers)

    def evict(self) -> None:
        """Fill more memory than any GPU's cache holds."""
        if self._other is None:
            self._other = self._cupy.empty(_EVICTING, np.uint8)
        self._other.data.memset(0, _EVICTING)
        self._cupy.cuda.runtime.deviceSynchronize()

    def copying(self, size: int) -> _Timed:
        source, target = (self._cupy.asarray(np.ones(size, np.uint8)) for _ in range(2))
        return _Timed(self, lambda: target.data.copy_from_device_async(source.data, size))

    def product(self, n: int) -> _Timed:
        """cuBLAS's, where CuPy finds it; else by a kernel of ours."""
        a, b, c = (self._cupy.asarray(np.ones((n, n), np.float32)) for _ in range(3))
        try:
            self._cupy.matmul(a, b)
        except (ImportError, AttributeError):
            module = self._cupy.RawModule(code=product_source(), options=OPTIONS, backend="nvrtc")
            multiply, given = module.get_function("product"), (np.array([n], np.uint64), a, b, c)
            blocks = (-(-((n // 4) ** 2) // THREADS), 1, 1)
            return _Timed(self, lambda: multiply(blocks, (THREADS, 1, 1), given))
        return _Timed(self, lambda: self._cupy.matmul(a, b))

    def seconds(self, compute: Callable[[], object], repeats: int) -> float:
        """How long the device takes for what `compute` gives it so many times."""
        cuda = self._cupy.cuda
        begin, end = cuda.Event(), cuda.Event()
        with self._ending_if_lost():
            begin.record()
            for _ in range(repeats):
                compute()
            end.record()
            end.synchronize()
        return float(cuda.get_elapsed_time(begin, end)) / 1000

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        """Run the case again; its intermediate results by name."""
        loaded = self._load(case, buffers)
        loaded.launch()
        loaded.fetch()
        return loaded.intermediates()

    def _load(self, case: Case, buffers: Buffers) -> _Loaded:
        kernel, memory = self.table[case.op], windows(buffers)
        shapes = kernel.scratch(case)
        with self._ending_if_lost():
            arguments = {start: self._cupy.asarray(window) for start, window in memory.items()}
            scratch = {name: self._nothing_but_nan(shape) for name, shape in shapes.items()}
            device = {name: arguments[slot.start] for name, slot in buffers.plan.slots.items()} | scratch
            numbers = fields(kernel, self._source(case.op).struct, case)
            struct = np.array(numbers, np.uint64).view(f"V{8 * len(numbers)}")  # a struct, by value
            launches = []
            for grid in self.grids(case):
                given = (struct, *(device.get(name) for name in grid.buffers))
                launches.append((self._kernel(case.op, grid.kernel), grid, given))
        return _Loaded(self, launches, memory, arguments, scratch, shapes)

    def _nothing_but_nan(self, shape: tuple[int, ...]) -> Any:
        """A buffer of float32, every bit set: a kernel that counts on zeros, or on an earlier case, is found out."""
        buffer = self._cupy.empty(4 * math.prod(shape), np.uint8)
        if buffer.nbytes:
            buffer.data.memset(0xFF, buffer.nbytes)
        return buffer

    @contextmanager
    def _ending_if_lost(self) -> Iterator[None]:
        """End this process where an error is one that a context does not get over (an illegal address): whatever it
        ran next would fail too. The harness takes it for a crash of this case and goes on in another process."""
        cuda = self._cupy.cuda
        try:
            yield
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            try:
                cuda.runtime.deviceSynchronize()
            except Exception:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            raise

    def _kernel(self, op: str, name: str) -> Any:
        """A kernel of `op`. CuPy keeps what NVRTC made of a file, on disk too (in ~/.cupy)."""
        if op not in self._modules:
            source = self._source(op)
            module = self._cupy.RawModule(code=source.text, options=OPTIONS, backend="nvrtc")
            try:
                module.compile()
            except self._cupy.cuda.compiler.CompileException as error:
                raise complaint(source.file, str(error)) from None
            self._modules[op] = module
        return self._modules[op].get_function(name)


@dataclass(frozen=True)
class _Loaded:
    """A case in buffers of its own: the memory of its arguments on the host and on the device, by where it begins."""

    backend: CudaBackend
    launches: list[tuple[Any, Grid, tuple[Any, ...]]]
    memory: Mapping[int, np.ndarray]
    arguments: Mapping[int, Any]
    scratch: Mapping[str, Any]
    shapes: Shapes

    def launch(self) -> None:
        with self.backend._ending_if_lost():
            self._start()
            self.backend._cupy.cuda.runtime.deviceSynchronize()

    def _start(self) -> None:
        for kernel, grid, given in self.launches:
            kernel(grid.blocks, grid.threads, given)

    def timed(self, repeats: int) -> float:
        return self.backend.seconds(self._start, repeats)

    def fetch(self) -> None:
        with self.backend._ending_if_lost():
            for start, window in self.memory.items():
                self.arguments[start].get(out=window)

    def intermediates(self) -> Mapping[str, np.ndarray]:
        """What the kernels have left in the intermediate results."""
        return {name: self.scratch[name].get().view(np.float32).reshape(shape) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class _Timed:
    """Work for the device, ready to launch and to time."""

    backend: CudaBackend
    compute: Callable[[], object]

    def launch(self) -> None:
        self.backend.seconds(self.compute, 1)

    def fetch(self) -> None:
        """Nothing is left to do."""

    def timed(self, repeats: int) -> float:
        return self.backend.seconds(self.compute, repeats)


def _dotted(version: int) -> str:
    """CUDA's own way to number versions, 12040, as people write it: 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _cupy_with_devices() -> tuple[Any, int]:
    """CuPy, and how many devices it sees. Raises `Unavailable` without a driver, CuPy, or a device."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise Unavailable(f"there is no NVIDIA driver ({_DRIVER})", _HARDWARE, hardware=True) from None
    if importlib.util.find_spec("cupy") is None:
        raise Unavailable("the Python package cupy is not installed", _PACKAGES)
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise Unavailable(f"cupy does not load: {error}", _PACKAGES) from error
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise Unavailable(f"CUDA finds no device: {error}", _HARDWARE, hardware=True) from error
    if count == 0:
        raise Unavailable("CUDA finds no device", _HARDWARE, hardware=True)
    return cupy, count
