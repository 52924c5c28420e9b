"""The OpenCL backend: one buffer per argument, guards included, and the kernels of `backends/kernels`."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from opconform.backends.kernels.launch import Launch, Shapes
from opconform.backends.kernels.own_buffers import SHARED, Source, fields, product_source, source_for, windows
from opconform.backends.kernels.table import KERNELS, Kernel, limits
from opconform.backends.opencl.sanitizer import oclgrind
from opconform.harness.model.buffers import GUARD, Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Backend, Device, Loaded, Unavailable
from opconform.harness.run.sanitizer import OPTION, Sanitizer
from opconform.harness.run.script import Script, ScriptRequest

_LOCAL_SIZE = 64
_CORRECT_DIVISION = "-cl-fp32-correctly-rounded-divide-sqrt"
_DRIVER = "apt-get install pocl-opencl-icd ocl-icd-libopencl1"


class OpenCLBackend(Backend):
    """The kernels on one OpenCL device.

    Every case gets fresh buffers of just the size of its arguments with their guards: making one costs as little as
    writing to one that is kept, and a sanitizer (oclgrind) sees where each argument ends.
    """

    name = "opencl"
    needs = "pyopencl and an OpenCL driver"
    kernels: ClassVar[Path] = SHARED  #: where <op>.cl lies; what a subclass's own folder lacks is taken from there
    table: ClassVar[Mapping[str, Kernel]] = KERNELS
    clock = "profiling events"
    script_reads = ("kernels", "table")

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
        self._sources: dict[str, Source] = {}
        self._kernels: dict[tuple[str, str], Any] = {}
        self._kept: list[Any] = []
        self._profiling: Any = None
        self._other: Any = None
        self._multiply: Any = None

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

        return opencl_script(request, cls.table, cls.source)

    @classmethod
    def sanitizer(cls) -> Sanitizer:
        return oclgrind((cls.kernels, SHARED))

    @classmethod
    def source(cls, op: str) -> Source:
        """The kernel file of an op, with all that it includes."""
        return source_for(op, cls.table[op], (cls.kernels, SHARED), ".cl")

    def limits(self) -> tuple[Limit, ...]:
        """The element types of the kernels that move elements."""
        return limits(self.table)

    def supports(self, case: Case) -> str | None:
        if case.op not in self.table:
            return f"no kernel for {case.op}: add backends/kernels/{case.op}.cl and its row to table.py beside it"
        kernel = self.table[case.op]
        refused = kernel.refusal(case, f"{kernel.stem(case.op)}.cl")
        if refused:
            return refused
        most = self._device.max_mem_alloc_size
        largest = max(slot.size for slot in Plan.of(case).slots.values()) + 2 * GUARD
        if largest > most:
            return f"an argument takes {largest} bytes; a buffer of this device has {most}"
        for name, shape in kernel.scratch(case).items():
            if 4 * math.prod(shape) > most:
                return f"the intermediate {name} takes {4 * math.prod(shape)} bytes; a buffer of this device has {most}"
        return None

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        return self._load(case, buffers)

    def evict(self) -> None:
        """Fill twice as much memory as the device's cache holds."""
        size = max(2 * int(self._device.global_mem_cache_size), 1 << 20)
        size = min(size, int(self._device.max_mem_alloc_size)) // 4 * 4
        if self._other is None:
            self._other = self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size)
        self._cl.enqueue_fill_buffer(self._queue, self._other, np.uint32(0), 0, size)
        self._queue.finish()

    def copying(self, size: int) -> _Copy:
        flags = self._cl.mem_flags
        source, target = (
            self._cl.Buffer(self._context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=np.ones(size, np.uint8))
            for _ in range(2)
        )
        return _Copy(self._cl, self.profiling(), source, target)

    def product(self, n: int) -> _Product:
        """By a kernel of ours: OpenCL has no library that multiplies."""
        if self._multiply is None:
            self._multiply = self._cl.Program(self._context, product_source()).build().product
        flags, ones = self._cl.mem_flags, np.ones((n, n), np.float32)
        a, b, c = (
            self._cl.Buffer(self._context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=ones) for _ in range(3)
        )
        return _Product(self._cl, self.profiling(), self._multiply, n, (a, b, c))

    def profiling(self) -> Any:
        """A queue whose commands tell when they began and ended."""
        if self._profiling is None:
            properties = self._cl.command_queue_properties.PROFILING_ENABLE
            self._profiling = self._cl.CommandQueue(self._context, properties=properties)
        return self._profiling

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        """Run the case again; its intermediate results by name."""
        loaded = self._load(case, buffers)
        loaded.launch()
        loaded.fetch()
        return loaded.intermediates()

    def _load(self, case: Case, buffers: Buffers) -> _Loaded:
        kernel = self.table[case.op]
        memory = windows(buffers)
        arguments = {start: self._upload(window) for start, window in memory.items()}
        scratch = {name: self._nothing_but_nan(shape) for name, shape in kernel.scratch(case).items()}
        device = {name: arguments[slot.start] for name, slot in buffers.plan.slots.items()} | scratch
        struct = np.array(fields(kernel, self._source(case.op).struct, case), dtype=np.uint64)
        launches = []
        for launch in kernel.launches(case):
            given = [device.get(name) for name in launch.buffers]  # None is a null pointer
            launches.append((self._kernel(case.op, launch.kernel), _whole_groups(launch), (struct, *given)))
        if OPTION in self.options:  # Oclgrind mistakes what was written to memory that it gives out once more
            self._kept += [*arguments.values(), *scratch.values()]
        shapes = kernel.scratch(case)
        return _Loaded(self, self._cl, self._queue, launches, memory, arguments, scratch, shapes)

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

    def _source(self, op: str) -> Source:
        if op not in self._sources:
            self._sources[op] = self.source(op)
        return self._sources[op]

    def _kernel(self, op: str, name: str) -> Any:
        """A kernel of `op`. Each file is built once per process; across processes pyopencl caches the binary under a
        key of source, options and driver, or leaves it to the driver where that has a cache (PoCL, NVIDIA)."""
        if (op, name) not in self._kernels:
            options = [_CORRECT_DIVISION] if _divides_correctly(self._device) else []
            program = self._cl.Program(self._context, self._source(op).text).build(options)
            self._kernels |= {(op, kernel.function_name): kernel for kernel in program.all_kernels()}
        return self._kernels[op, name]


@dataclass(frozen=True)
class _Loaded:
    """A case in buffers of its own: the memory of its arguments on the host and on the device, by where it begins."""

    backend: OpenCLBackend
    cl: Any
    queue: Any
    launches: list[tuple[Any, int, tuple[Any, ...]]]
    memory: Mapping[int, np.ndarray]
    arguments: Mapping[int, Any]
    scratch: Mapping[str, Any]
    shapes: Shapes

    def launch(self) -> None:
        self._enqueue(self.queue)
        self.queue.finish()

    def timed(self, repeats: int) -> float:
        """What the device takes for the kernels, without the gaps between them."""
        queue = self.backend.profiling()
        events = [event for _ in range(repeats) for event in self._enqueue(queue)]
        queue.finish()
        return _seconds(events)

    def _enqueue(self, queue: Any) -> list[Any]:
        events = []
        for kernel, items, given in self.launches:
            kernel.set_args(*given)
            events.append(self.cl.enqueue_nd_range_kernel(queue, kernel, (items,), (_LOCAL_SIZE,)))
        return events

    def fetch(self) -> None:
        copies = [
            self.cl.enqueue_copy(self.queue, window, self.arguments[start], is_blocking=False)
            for start, window in self.memory.items()
        ]
        self.queue.finish()
        copies.clear()  # not before: an event that goes is waited for

    def intermediates(self) -> Mapping[str, np.ndarray]:
        """What the kernels have left in the intermediate results."""
        shown = {}
        for name, memory in self.scratch.items():
            shown[name] = np.empty(self.shapes[name], np.float32)
            if shown[name].size:
                self.cl.enqueue_copy(self.queue, shown[name], memory)
        return shown


@dataclass(frozen=True)
class _Copy:
    """A copy from one buffer to another, ready to launch and to time."""

    cl: Any
    queue: Any
    source: Any
    target: Any

    def launch(self) -> None:
        self.timed(1)

    def fetch(self) -> None:
        """Nothing is left to do."""

    def timed(self, repeats: int) -> float:
        events = [self.cl.enqueue_copy(self.queue, self.target, self.source) for _ in range(repeats)]
        self.queue.finish()
        return _seconds(events)


@dataclass(frozen=True)
class _Product:
    """The third of three n×n matrices is the product of the first two; ready to launch and to time."""

    cl: Any
    queue: Any
    kernel: Any
    n: int
    matrices: tuple[Any, Any, Any]

    def launch(self) -> None:
        self.timed(1)

    def fetch(self) -> None:
        """Nothing is left to do."""

    def timed(self, repeats: int) -> float:
        self.kernel.set_args(np.uint64(self.n), *self.matrices)
        sizes = (-(-((self.n // 4) ** 2) // _LOCAL_SIZE) * _LOCAL_SIZE,), (_LOCAL_SIZE,)
        events = [self.cl.enqueue_nd_range_kernel(self.queue, self.kernel, *sizes) for _ in range(repeats)]
        self.queue.finish()
        return _seconds(events)


def _seconds(events: list[Any]) -> float:
    """How long commands that have ended took; a profile counts nanoseconds."""
    return float(sum(event.profile.end - event.profile.start for event in events)) * 1e-9


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
