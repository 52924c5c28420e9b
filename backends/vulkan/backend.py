"""The Vulkan backend: the whole arena of a case in one storage buffer, and one shader per op, or for a family of them.

Kompute does the API work: a tensor is a device buffer with a staging buffer, an algorithm a pipeline bound to it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from opconform.backends.kernels.own_buffers import Source, source_for
from opconform.backends.kernels.table import KERNELS, Kernel, limits
from opconform.backends.vulkan import shaders
from opconform.backends.vulkan.dispatches import (
    LOCAL_SIZE,
    TABLE_WORDS,
    WORDS,
    Blocks,
    Dispatch,
    dispatches,
    groups_of,
    pushed,
    values_of,
    with_scratch,
)
from opconform.backends.vulkan.physical import Physical, layers, physical_devices
from opconform.backends.vulkan.sanitizer import LAYER, REMEDY, validation_layer
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Backend, Device, Loaded, Unavailable
from opconform.harness.run.sanitizer import OPTION, Sanitizer
from opconform.harness.run.script import Script, ScriptRequest

_EVICTING = 128 << 20  #: bytes that fill the caches of any GPU
_SMALLEST = 1 << 16  #: bytes; copying fewer takes no less time

#: What Vulkan promises of float32 where no execution mode says more (Vulkan 1.3, "Precision and Operation of SPIR-V
#: Instructions"): denormals may be flushed, + − × may round either way, a division is off by up to 2.5 ulp. Kompute
#: cannot ask for the float controls that promise more.
_NUMERICS = Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5, exp_ulps_per_unit=2.0, sqrt_ulps=5.0)


@dataclass
class _Arena:
    """Device memory of one capacity with its pipelines.

    `staging` is the host's side of the tensor, as bytes, and `table` that of the table beside it, as words; `upload` is
    the recorded copy of all of both to the device, `download` that of the tensor back.
    """

    capacity: int
    tensors: list[Any]
    staging: np.ndarray
    table: np.ndarray
    upload: Any
    download: Any
    algorithms: dict[tuple[str, int, int], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Shader:
    """An op's shader: its source, and the blocks of fields that it has."""

    source: Source
    blocks: Blocks


_HERE = Path(__file__).parent


class VulkanBackend(Backend):
    """The shaders beside this file, on one Vulkan device."""

    name = "vulkan"
    needs = "a Vulkan driver, glslc, and Kompute (`make setup` builds it)"
    kernels: ClassVar[Path] = _HERE  #: where <op>.comp lies; what a subclass's own folder lacks is taken from here
    table: ClassVar[Mapping[str, Kernel]] = KERNELS
    clock = "timestamps"
    script_reads = ("kernels", "table")

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        self._checked = OPTION in options
        if not self._checked:
            _without_layers()
        elif LAYER not in layers():
            raise Unavailable(f"the Vulkan loader does not find {LAYER}, under which this run was to be", REMEDY)
        found = _physical()
        if not device.isdecimal() or int(device) >= len(found):
            raise Unavailable(f"there is no Vulkan device {device!r}", f"choose one from 0 to {len(found) - 1}")
        self._physical = found[int(device)]
        self._kp = importlib.import_module("kp")
        self._manager = self._kp.Manager(int(device))
        opened = self._manager.get_device_properties()["device_name"]
        if opened != self._physical.name:
            raise Unavailable(
                f"device {device} is {self._physical.name}, but Kompute opens {opened} under that number",
                "leave one driver visible with VK_DRIVER_FILES",
            )
        self._shaders: dict[str, _Shader] = {}
        self._code: dict[str, bytes] = {}
        self._other: _Timed | None = None
        self._arenas: dict[int, list[_Arena]] = {}  # those that no case stands in, by capacity

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        kompute = {"kompute": _kompute_version()}
        return [
            Device(str(index), found.name, {"driver": found.driver, "vulkan": found.api, **kompute}, _NUMERICS)
            for index, found in enumerate(_physical())
        ]

    @classmethod
    def script(cls, request: ScriptRequest) -> Script:
        from opconform.backends.vulkan.script import vulkan_script

        return vulkan_script(request, cls.table, cls.source)

    @classmethod
    def sanitizer(cls) -> Sanitizer:
        return validation_layer()

    @classmethod
    def source(cls, op: str) -> Source:
        """The shader of an op, with all that it includes."""
        return source_for(op, cls.table[op], (cls.kernels, _HERE), ".comp", glsl=True)

    def limits(self) -> tuple[Limit, ...]:
        """The element types of the kernels that move elements."""
        return limits(self.table)

    def supports(self, case: Case) -> str | None:
        if case.op not in self.table:
            return f"no kernel for {case.op}: add backends/vulkan/{case.op}.comp and its row to kernels/table.py"
        kernel = self.table[case.op]
        refused = kernel.refusal(case, f"{kernel.stem(case.op)}.comp")
        if refused:
            return refused
        size = _capacity(with_scratch(kernel, case, Plan.of(case)).size)
        most = min(self._physical.max_buffer, 1 << 31)  # Kompute counts bytes in 32 bits
        if size > most:
            return f"the case takes {size} bytes; a storage buffer of this device has {most}"
        return None

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        return self._load(case, buffers)

    def evict(self) -> None:
        """Copy other data, through the CPU's caches and through the device's."""
        super().evict()
        if self._other is None:
            self._other = self.copying(_EVICTING)
        self._other.launch()

    def copying(self, size: int) -> _Timed:
        words = max(size // 4, 1)
        tensors = [self._manager.tensor_t(np.ones(words, dtype=np.uint32)) for _ in range(2)]
        self._manager.sequence().record(self._kp.OpTensorSyncDevice(tensors)).eval()
        return _Timed(self, self.watched(self._kp.OpTensorCopy(tensors)), tensors)

    def product(self, n: int) -> _Timed:
        """By a shader of ours: Vulkan has no library that multiplies."""
        matrices = [self._manager.tensor_t(np.ones(n * n, dtype=np.float32)) for _ in range(3)]
        self._manager.sequence().record(self._kp.OpTensorSyncDevice(matrices)).eval()
        code, groups = shaders.spirv(_HERE / "product.comp"), -(-((n // 4) ** 2) // LOCAL_SIZE)
        pipeline = self._manager.algorithm(
            matrices, code, (groups, 1, 1), np.array([n], np.uint32), np.zeros(1, np.uint32)
        )
        return _Timed(self, self.watched(self._kp.OpAlgoDispatch(pipeline)), matrices)

    def watched(self, operation: Any) -> Any:
        """A sequence of one operation that writes down when it begins and ends."""
        return self._manager.sequence(0, 2).record(operation)

    def seconds(self, sequences: list[Any], repeats: int) -> float:
        """What the device takes for sequences that were made by `watched`, without the gaps between them."""
        ticks = 0
        for _ in range(repeats):
            for sequence in sequences:
                sequence.eval()
                begin, end = sequence.get_timestamps()
                ticks += end - begin
        return ticks * self._physical.tick * 1e-9

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        """Run the case again; its intermediate results by name."""
        loaded = self._load(case, buffers)
        loaded.launch()
        loaded.fetch()
        return loaded.intermediates()

    def _load(self, case: Case, buffers: Buffers) -> _Loaded:
        """Upload, and record the dispatches.

        The upload and every dispatch is a submission of its own that the host waits for: the barriers that Kompute
        records inside a sequence cover neither a shader that writes where an upload wrote nor one that reads what
        another shader wrote. A dispatch gets a new sequence, for a command buffer of Kompute's must not be recorded
        twice.
        """
        kernel, blocks = self.table[case.op], self._shader(case.op).blocks
        plan, size = with_scratch(kernel, case, buffers.plan), buffers.memory.size
        arena = self._arena(plan.size if self._checked else _capacity(plan.size))  # the layer sees where it ends
        loaded = _Loaded(self, arena, buffers, plan)
        arena.staging[:size] = buffers.memory
        arena.staging[size : plan.size] = 0xFF  # NaN: who counts on zeros, or on an earlier case, is found out
        values = values_of(kernel, case, plan)
        table = values.numbers(blocks.table)
        arena.table[: len(table)] = table
        arena.upload.eval()
        same = values.numbers(blocks.pushed)
        for dispatch in dispatches(kernel, case):
            algorithm = self._algorithm(arena, case.op, dispatch)
            constants = pushed(blocks.pushed, same, dispatch)
            loaded.operations.append(self._kp.OpAlgoDispatch(algorithm, constants))
            loaded.sequences.append(self._manager.sequence().record(loaded.operations[-1]))
        return loaded

    def _arena(self, capacity: int) -> _Arena:
        """Device memory that no other case stands in."""
        free = self._arenas.setdefault(capacity, [])
        if free:
            return free.pop()
        tensors = [self._manager.tensor_t(np.zeros(size, dtype=np.uint32)) for size in (capacity // 4, TABLE_WORDS)]
        upload = self._manager.sequence().record(self._kp.OpTensorSyncDevice(tensors))
        memory, table = (tensor.data() for tensor in tensors)
        download = self._manager.sequence().record(self._kp.OpTensorSyncLocal(tensors[:1]))
        return _Arena(capacity, tensors, memory.view(np.uint8), table, upload, download)

    def _free(self, arena: _Arena) -> None:
        self._arenas[arena.capacity].append(arena)

    def _shader(self, op: str) -> _Shader:
        if op not in self._shaders:
            source = self.source(op)
            self._shaders[op] = _Shader(source, Blocks.of(source.text))
        return self._shaders[op]

    def _algorithm(self, arena: _Arena, op: str, dispatch: Dispatch) -> Any:
        """The pipeline of a part of `op` on `arena`, with workgroups for all items or as many as a dispatch gets."""
        groups = groups_of(dispatch.items)
        if (op, dispatch.part, groups) not in arena.algorithms:
            if op not in self._code:
                source = self._shader(op).source
                self._code[op] = shaders.spirv(source.file, source.text)
            part, constants = np.array([dispatch.part], dtype=np.uint32), np.zeros(WORDS, dtype=np.uint32)
            arena.algorithms[op, dispatch.part, groups] = self._manager.algorithm(
                arena.tensors, self._code[op], (groups, 1, 1), part, constants
            )
        return arena.algorithms[op, dispatch.part, groups]


@dataclass
class _Loaded:
    """A case in an arena, which is free for the next case once this is gone."""

    backend: VulkanBackend
    arena: _Arena
    buffers: Buffers
    plan: Plan
    operations: list[Any] = field(default_factory=list)
    sequences: list[Any] = field(default_factory=list)
    watched: list[Any] = field(default_factory=list)

    def __del__(self) -> None:
        self.backend._free(self.arena)

    def launch(self) -> None:
        for sequence in self.sequences:
            sequence.eval()

    def timed(self, repeats: int) -> float:
        if not self.watched:
            self.watched = [self.backend.watched(operation) for operation in self.operations]
        return self.backend.seconds(self.watched, repeats)

    def fetch(self) -> None:
        self.arena.download.eval()
        self.buffers.memory[:] = self.arena.staging[: self.buffers.memory.size]

    def intermediates(self) -> Mapping[str, np.ndarray]:
        """What the shaders have left in the intermediate results."""
        slots = {name: slot for name, slot in self.plan.slots.items() if name not in self.buffers.plan.slots}
        memory, words = self.arena.staging, np.dtype(np.float32)
        return {name: slot.layout.array(memory[slot.start :], words).copy() for name, slot in slots.items()}


@dataclass(frozen=True)
class _Timed:
    """A copy of one tensor to another on the device, or a product of two; ready to launch and to time."""

    backend: VulkanBackend
    sequence: Any
    tensors: list[Any]

    def launch(self) -> None:
        self.sequence.eval()

    def fetch(self) -> None:
        """Nothing is left to do."""

    def timed(self, repeats: int) -> float:
        return self.backend.seconds([self.sequence], repeats)


def _capacity(size: int) -> int:
    """The power of two that holds an arena of `size` bytes. One tensor per capacity, so that a small case never pays
    for copying what a large one needed."""
    return max(1 << (size - 1).bit_length(), _SMALLEST)


def _without_layers() -> None:
    """Hide the explicit layers from this process: Kompute turns the validation layer on wherever it is installed."""
    if "VK_INSTANCE_LAYERS" not in os.environ:
        os.environ.setdefault("VK_LAYER_PATH", os.devnull)


def _physical() -> list[Physical]:
    """The devices, once all that this backend needs is there. Raises `Unavailable` for the first thing that is not."""
    if importlib.util.find_spec("kp") is None:
        raise Unavailable(
            "the Python package kp (Kompute) is not installed",
            "`make setup` builds it (a source package that needs cmake, g++, libvulkan-dev and libfmt-dev)",
        )
    shaders.find_compiler()
    return physical_devices()


def _kompute_version() -> str:
    try:
        return importlib.metadata.version("kp")
    except importlib.metadata.PackageNotFoundError:
        return "not told"
