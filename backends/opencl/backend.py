"""The OpenCL backend: one buffer per argument, guards included, and one source file per op."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from opconform.backends.element_types import refusal
from opconform.backends.opencl.arguments import LAUNCHES, Launch
from opconform.backends.opencl.sanitizer import oclgrind
from opconform.backends.own_buffers import scratch_of
from opconform.harness.model.buffers import GUARD, Buffers, Plan, Slot
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Backend, Device, Unavailable
from opconform.harness.run.sanitizer import OPTION, Sanitizer
from opconform.harness.run.script import Script, ScriptRequest

_LOCAL_SIZE = 64
_CORRECT_DIVISION = "-cl-fp32-correctly-rounded-divide-sqrt"
_DRIVER = "apt-get install pocl-opencl-icd ocl-icd-libopencl1"


class OpenCLBackend(Backend):
    """The kernels beside this file, on one OpenCL device.

    Every case gets fresh buffers of just the size of its arguments with their guards: making one costs as little as
    writing to one that is kept, and a sanitizer (oclgrind) sees where each argument ends.
    """

    name = "opencl"
    needs = "pyopencl and an OpenCL driver"
    kernels: ClassVar[Path] = Path(__file__).parent  #: where <op>.cl lies; a subclass may have its own
    script_reads = ("kernels",)

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        found = _opencl_devices()
        if not device.isdecimal() or int(device) >= len(found):
            raise Unavailable(f"there is no OpenCL device {device!r}", f"choose one from 0 to {len(found) - 1}")
        self._cl = importlib.import_module("pyopencl")
        self._device = found[int(device)]
        if OPTION in options and "oclgrind" not in self._device.platform.name.lower():
            raise Unavailable(f"device {device} is not Oclgrind's, under which this run was to be", "choose that one")
        self._context = self._cl.Context([self._device])
        self._queue = self._cl.CommandQueue(self._context)  # in order: a launch sees what the one before it wrote
        self._kernels: dict[str, Any] = {}
        self._kept: list[Any] = []

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [
            Device(
                str(index),
                f"{found.name.strip()} ({found.platform.name.strip()})",
                {"driver": found.driver_version.strip(), "opencl": found.version.strip()},
                _numerics(found),
            )
            for index, found in enumerate(_opencl_devices())
        ]

    @classmethod
    def script(cls, request: ScriptRequest) -> Script:
        from opconform.backends.opencl.script import opencl_script

        return opencl_script(request, cls.kernels)

    @classmethod
    def sanitizer(cls) -> Sanitizer:
        return oclgrind()

    def supports(self, case: Case) -> str | None:
        if case.op not in LAUNCHES:
            return f"no kernel for {case.op}: add backends/opencl/{case.op}.cl and its fields to arguments.py"
        refused = refusal(case, f"{case.op}.cl")
        if refused:
            return refused
        most = self._device.max_mem_alloc_size
        largest = max(slot.size for slot in Plan.of(case).slots.values()) + 2 * GUARD
        if largest > most:
            return f"an argument takes {largest} bytes; a buffer of this device has {most}"
        for name, shape in scratch_of(case).items():
            if 4 * math.prod(shape) > most:
                return f"the intermediate {name} takes {4 * math.prod(shape)} bytes; a buffer of this device has {most}"
        return None

    def run(self, case: Case, buffers: Buffers) -> None:
        self._compute(case, buffers)

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        """Run the case again; its intermediate results by name."""
        shown = {}
        for name, memory in self._compute(case, buffers).items():
            shown[name] = np.empty(scratch_of(case)[name], np.float32)
            if shown[name].size:
                self._cl.enqueue_copy(self._queue, shown[name], memory)
        return shown

    def _compute(self, case: Case, buffers: Buffers) -> dict[str, Any]:
        """Upload, launch, download; gives back the scratch buffers, still on the device."""
        slots = buffers.plan.slots
        memory = {slot.start: _window(buffers, slot) for slot in slots.values()}  # in place, two slots are one
        arguments = {start: self._upload(window) for start, window in memory.items()}
        scratch = {name: self._nothing_but_nan(shape) for name, shape in scratch_of(case).items()}
        device = {name: arguments[slot.start] for name, slot in slots.items()} | scratch
        for launch in LAUNCHES[case.op](case):
            kernel = self._kernel(case.op, launch.kernel)
            fields = np.array(launch.fields, dtype=np.uint64)
            kernel.set_args(fields, *(device.get(name) for name in launch.buffers))  # None is a null pointer
            self._cl.enqueue_nd_range_kernel(self._queue, kernel, (_whole_groups(launch),), (_LOCAL_SIZE,))
        for start, window in memory.items():
            self._cl.enqueue_copy(self._queue, window, arguments[start])
        if OPTION in self.options:  # Oclgrind mistakes what was written to memory that it gives out once more
            self._kept += [*arguments.values(), *scratch.values()]
        return scratch

    def _upload(self, window: np.ndarray) -> Any:
        flags = self._cl.mem_flags
        return self._cl.Buffer(self._context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=window)

    def _nothing_but_nan(self, shape: tuple[int, ...]) -> Any:
        """A buffer of float32, every bit set: a kernel that counts on zeros, or on an earlier case, is found out."""
        size = max(4 * math.prod(shape), 4)
        buffer = self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size)
        if OPTION not in self.options:  # Oclgrind knows what was never written, and takes what was filled for that too
            self._cl.enqueue_fill_buffer(self._queue, buffer, np.uint32(0xFFFFFFFF), 0, size)
        return buffer

    def _kernel(self, op: str, name: str) -> Any:
        """A kernel of `op`. Each file is built once per process; across processes pyopencl caches the binary under a
        key of source, options and driver, or leaves it to the driver where that has a cache (PoCL, NVIDIA)."""
        if name not in self._kernels:
            source = (self.kernels / f"{op}.cl").read_text(encoding="utf-8")
            options = [_CORRECT_DIVISION] if _divides_correctly(self._device) else []
            program = self._cl.Program(self._context, source).build(options)
            self._kernels |= {kernel.function_name: kernel for kernel in program.all_kernels()}
        return self._kernels[name]


def _window(buffers: Buffers, slot: Slot) -> np.ndarray:
    """An argument's memory with the guards either side; the windows of all arguments make up the whole arena."""
    return buffers.memory[slot.start - GUARD : slot.start + slot.size + GUARD]


def _whole_groups(launch: Launch) -> int:
    """Work-items in whole work-groups, at least one; the kernel leaves out those past the last item."""
    return max(-(-launch.items // _LOCAL_SIZE), 1) * _LOCAL_SIZE


def _opencl_devices() -> list[Any]:
    """Every device of every platform, in listing order. Raises `Unavailable` where there is none."""
    if importlib.util.find_spec("pyopencl") is None:
        raise Unavailable("the Python package pyopencl is not installed", "pip install pyopencl")
    try:
        cl = importlib.import_module("pyopencl")
    except ImportError as error:
        raise Unavailable(f"pyopencl does not load: {error}", _DRIVER) from error
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:
        raise Unavailable(f"OpenCL lists no platform: {error}", _DRIVER) from error
    found: list[Any] = []
    for platform in platforms:
        with suppress(cl.Error):  # a driver that fails must not hide the devices of the others
            found += platform.get_devices()
    if not found:
        raise Unavailable("OpenCL lists no device", _DRIVER)
    return found


def _divides_correctly(device: Any) -> bool:
    """Whether the device offers a correctly rounded float32 division; the kernels are then built with it."""
    cl = importlib.import_module("pyopencl")
    return bool(device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT)


def _numerics(device: Any) -> Numerics:
    """What CL_DEVICE_SINGLE_FP_CONFIG promises; a division is otherwise off by up to 2.5 ulp (OpenCL C, "Relative
    Error as ULPs")."""
    offered = importlib.import_module("pyopencl").device_fp_config
    config = device.single_fp_config
    return Numerics(
        flushes_denormals=not config & offered.DENORM,
        any_rounding=not config & offered.ROUND_TO_NEAREST,
        division_ulps=0.5 if _divides_correctly(device) else 2.5,
        sqrt_ulps=0.5 if _divides_correctly(device) else 3.0,
    )
