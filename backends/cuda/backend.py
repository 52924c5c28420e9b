"""The CUDA backend: one buffer per argument, guards included, and one source file per op, compiled by NVRTC."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from opconform.backends.cuda.arguments import LAUNCHES, Launch
from opconform.backends.cuda.sanitizer import compute_sanitizer
from opconform.backends.cuda.source import complaint, source_of
from opconform.backends.element_types import refusal
from opconform.backends.own_buffers import scratch_of
from opconform.harness.model.buffers import GUARD, Buffers, Plan, Slot
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Backend, Device, Unavailable
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
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class CudaKernels(Backend):
    """What both ways to run the kernels beside this file share."""

    kernels: ClassVar[Path] = Path(__file__).parent  #: where <op>.cu lies; a subclass may have its own
    script_reads = ("kernels",)
    launches: ClassVar[Mapping[str, Callable[[Case], list[Launch]]]] = LAUNCHES

    def supports(self, case: Case) -> str | None:
        if case.op not in self.launches:
            return f"no kernel for {case.op}: add backends/cuda/{case.op}.cu and its fields to arguments.py"
        return refusal(case, f"{case.op}.cu")


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
        self._modules: dict[str, Any] = {}
        if OPTION in options:
            self._cupy.cuda.set_allocator(None)

    @classmethod
    def script(cls, request: ScriptRequest) -> Script:
        from opconform.backends.cuda.script import cuda_script

        return cuda_script(request, cls.kernels)

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
            size = Plan.of(case).size + sum(4 * math.prod(shape) for shape in scratch_of(case).values())
            if size > self._memory:
                return f"the case takes {size} bytes; this device has {self._memory}"
        return reason

    def run(self, case: Case, buffers: Buffers) -> None:
        self._compute(case, buffers)

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        """Run the case again; its intermediate results by name."""
        shapes = scratch_of(case)
        found = self._compute(case, buffers)
        return {name: found[name].get().view(np.float32).reshape(shape) for name, shape in shapes.items()}

    def _compute(self, case: Case, buffers: Buffers) -> dict[str, Any]:
        """Upload, launch, download; gives back the scratch buffers, still on the device."""
        cupy, slots = self._cupy, buffers.plan.slots
        memory = {slot.start: _window(buffers, slot) for slot in slots.values()}  # in place, two slots are one
        try:
            arguments = {start: cupy.asarray(window) for start, window in memory.items()}
            scratch = {name: self._nothing_but_nan(shape) for name, shape in scratch_of(case).items()}
            device = {name: arguments[slot.start] for name, slot in slots.items()} | scratch
            for launch in self.launches[case.op](case):
                fields = np.array(launch.fields, np.uint64).view(f"V{8 * len(launch.fields)}")  # a struct, by value
                kernel = self._kernel(case.op, launch.kernel)
                kernel(launch.blocks, launch.threads, (fields, *(device.get(name) for name in launch.buffers)))
            for start, window in memory.items():
                arguments[start].get(out=window)
        except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
            self._end_if_lost(error)
            raise
        return scratch

    def _nothing_but_nan(self, shape: tuple[int, ...]) -> Any:
        """A buffer of float32, every bit set: a kernel that counts on zeros, or on an earlier case, is found out."""
        buffer = self._cupy.empty(4 * math.prod(shape), np.uint8)
        if buffer.nbytes:
            buffer.data.memset(0xFF, buffer.nbytes)
        return buffer

    def _end_if_lost(self, error: Exception) -> None:
        """End this process where the error is one that a context does not get over (an illegal address): whatever it
        ran next would fail too. The harness takes it for a crash of this case and goes on in another process."""
        try:
            self._cupy.cuda.runtime.deviceSynchronize()
        except Exception:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)

    def _kernel(self, op: str, name: str) -> Any:
        """A kernel of `op`. CuPy keeps what NVRTC made of a file, on disk too (in ~/.cupy)."""
        if op not in self._modules:
            file = self.kernels / f"{op}.cu"
            module = self._cupy.RawModule(code=source_of(file), options=OPTIONS, backend="nvrtc")
            try:
                module.compile()
            except self._cupy.cuda.compiler.CompileException as error:
                raise complaint(file, str(error)) from None
            self._modules[op] = module
        return self._modules[op].get_function(name)


def _window(buffers: Buffers, slot: Slot) -> np.ndarray:
    """An argument's memory with the guards either side; the windows of all arguments make up the whole arena."""
    return buffers.memory[slot.start - GUARD : slot.start + slot.size + GUARD]


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
