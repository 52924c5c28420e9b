"""The backend `torch`: strided torch tensors over the arena, torch's ops on them, the result copied back into `out`."""

from __future__ import annotations

import platform
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from opconform.backends.rows import rows_of
from opconform.backends.torch import activations, delta_net, mla, ops, products, small_ops, windows
from opconform.harness.model.buffers import Buffers, Slot
from opconform.harness.model.case import Case
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Backend, Device, Unavailable
from opconform.harness.run.script import Script, ScriptRequest

if TYPE_CHECKING:
    import torch

_EVICTING = 256 << 20  #: bytes that fill the caches of any GPU

_INVERTED = Numerics(inverted_blocks=128)
REMEDY = "pip install torch (a CPU build is at https://download.pytorch.org/whl/cpu)"

#: torch takes roots from Intel's MKL where it has that ("Vector Mathematical Functions", HA: below 1 ulp); its own
#: vectors compute erf by formula 7.1.26 of Abramowitz and Stegun (ATen/cpu/vec/vec512/vec512_float.h), which is off by
#: 1.5e-7 before it is rounded.
CPU_NUMERICS = Numerics(sqrt_ulps=1.0, erf_absolute=2.0**-20)

LIMITS = (
    Limit("set_rows", "dtype", ("f32", "f16", "bf16"), "torch has no type that is made of blocks", "torch.dtype"),
    Limit(
        "upscale", "to_one_column", (False,),
        "F.interpolate with antialias gives each row of an image of one column the value of the first on the CPU",
        "torch 2.13, aten/src/ATen/native/cpu/UpSampleKernel.cpp",
        kind="bug", device="cpu", pinned="upscale/torch-one-column",
    ),
)  # fmt: skip

#: What computes an op: the case's tensors by argument name to the output, or to outputs and stages by name.
Computes = Callable[[Case, Mapping[str, "torch.Tensor"]], "torch.Tensor | dict[str, torch.Tensor]"]

#: Every op with its row, those that other packages register among them.
_OPS: Mapping[str, Computes] = {
    "acc": ops.acc,
    "set": ops.set_,
    "cumsum": ops.cumsum,
    "solve_tri": ops.solve_tri,
    **small_ops.OPS,
    **activations.OPS,
    **products.OPS,
    **windows.OPS,
    "gated_delta_net": delta_net.gated_delta_net,
    "gated_delta_net_chunk": delta_net.gated_delta_net_chunk,
    "mla_absorbed": mla.mla_absorbed,
    **ChainMap(*rows_of("torch")),
}


class TorchBackend(Backend):
    """torch's own ops on "cpu", "cuda", "cuda:1" … or "mps".

    On the CPU the tensors are views of the arena itself. A GPU gets the arena as one tensor of bytes and gives all of
    it back, so that a stray write shows there too.
    """

    name = "torch"
    needs = "pip install torch"
    ops: ClassVar[Mapping[str, Computes]] = _OPS
    script_reads = ("ops",)

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        self.torch = _torch()
        self._other: torch.Tensor | None = None
        if device.startswith("cuda"):
            self.clock = "CUDA events"
        self.torch.set_num_threads(1)  # cases are small, and each worker is a process of its own
        self.torch.backends.cuda.matmul.allow_tf32 = False  # blocked solves multiply; TF32 keeps 10 bits of 23

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        """The CPU, then every CUDA (or ROCm) device, then Apple's GPU. Raises `Unavailable` where torch is missing."""
        torch = _torch()
        found = [Device("cpu", f"CPU ({platform.machine()})", _cpu_versions(torch), CPU_NUMERICS)]
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                name = f"cuda:{index}" if index else "cuda"
                found.append(Device(name, torch.cuda.get_device_name(index), _cuda_versions(torch, index)))
        if torch.backends.mps.is_available():
            versions = {"torch": torch.__version__, "macOS": platform.mac_ver()[0]}
            found.append(Device("mps", "Apple GPU", versions, Numerics(flushes_denormals=True)))
        return found

    @classmethod
    def script(cls, request: ScriptRequest) -> Script | None:
        from opconform.backends.torch.script import torch_script

        return torch_script(request, cls.ops)

    def supports(self, case: Case) -> str | None:
        if case.op not in self.ops:
            return f"the torch backend has no {case.op}; it has {', '.join(self.ops)}"
        blocks = [name for name in case.outputs if case.outputs[name].type.block > 1]
        return f"torch has no {case.outputs[blocks[0]].dtype}" if blocks else None

    def numerics(self, case: Case) -> Numerics | None:
        """Triangular solves of cuBLAS, MAGMA and rocBLAS invert diagonal blocks and multiply with the inverses."""
        return _INVERTED if case.op == "solve_tri" and self.device.startswith("cuda") else None

    def limits(self) -> tuple[Limit, ...]:
        """What torch has no type for, and what it is known to compute wrong."""
        return tuple(limit for limit in LIMITS if self.device.startswith(limit.device))

    def load(self, case: Case, buffers: Buffers) -> _Loaded:
        return _Loaded(self, case, buffers)

    def evict(self) -> None:
        if self.device == "cpu":
            super().evict()
            return
        if self._other is None:
            self._other = self.torch.zeros(_EVICTING, dtype=self.torch.uint8, device=self.device)
        self._other.add_(1)
        self.synchronize()

    def copying(self, size: int) -> _Timed:
        source, target = (self.torch.ones(size, dtype=self.torch.uint8, device=self.device) for _ in range(2))
        return _Timed(self, lambda: target.copy_(source))

    def product(self, n: int) -> _Timed:
        a, b, out = (self.torch.ones((n, n), device=self.device) for _ in range(3))
        return _Timed(self, lambda: self.torch.matmul(a, b, out=out))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.startswith("cuda"):
            self.torch.cuda.synchronize(self.device)
        elif self.device == "mps":
            self.torch.mps.synchronize()

    def timed(self, compute: Callable[[], object], repeats: int) -> float:
        """Seconds that `compute` takes so many times, by events of a CUDA device, else by the host's clock."""
        if not self.device.startswith("cuda"):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                compute()
            self.synchronize()
            return time.perf_counter() - start
        with self.torch.cuda.device(self.device):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(repeats):
                compute()
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def stages(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray] | None:
        loaded = self.load(case, buffers)
        loaded.launch()
        loaded.fetch()
        shown = {name: tensor.cpu().numpy() for name, tensor in loaded.found.items() if name not in case.outputs}
        return shown or None


@dataclass(frozen=True)
class _Timed:
    """A call of torch, ready to launch and to time."""

    backend: TorchBackend
    compute: Callable[[], object]

    def launch(self) -> None:
        self.compute()
        self.backend.synchronize()

    def fetch(self) -> None:
        """Nothing is left to do."""

    def timed(self, repeats: int) -> float:
        return self.backend.timed(self.compute, repeats)


class _Loaded:
    """A case as torch tensors: on the CPU views of the arena, elsewhere views of a copy of it on the device.

    `found` is what the op's function returned last, by name.
    """

    def __init__(self, backend: TorchBackend, case: Case, buffers: Buffers) -> None:
        self._backend, self._case = backend, case
        self._compute = backend.ops[case.op]
        self._host = backend.torch.from_numpy(buffers.memory)
        self._arena = self._host if backend.device == "cpu" else self._host.to(backend.device)
        self._tensors = {name: self._tensor(buffers.plan.slots[name]) for name in case.layouts}
        self.found: dict[str, torch.Tensor] = {}

    def launch(self) -> None:
        """Call the op's function and write the outputs among what it returns."""
        found = self._compute(self._case, self._tensors)
        self.found = found if isinstance(found, dict) else {next(iter(self._case.outputs)): found}
        for name in self._case.outputs:
            self._tensors[name].copy_(self.found[name])
        self._backend.synchronize()

    def timed(self, repeats: int) -> float:
        """The op's function alone: that its result is copied to where the case wants it, is the harness's doing."""
        return self._backend.timed(lambda: self._compute(self._case, self._tensors), repeats)

    def fetch(self) -> None:
        if self._arena is not self._host:
            self._host.copy_(self._arena)

    def _tensor(self, slot: Slot) -> torch.Tensor:
        """An argument's elements where they lie in the arena; blocks as bytes, along one more axis."""
        layout, size = slot.layout, slot.layout.type.itemsize
        if layout.type.block > 1:
            return self._arena.as_strided((*layout.blocks, size), (*layout.strides, 1), slot.start + layout.offset)
        elements = self._arena.view(ops.dtypes()[layout.dtype])
        strides = [stride // size for stride in layout.strides]
        return elements.as_strided(layout.shape, strides, (slot.start + layout.offset) // size)


def _torch() -> Any:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of its own that cannot be loaded
        raise Unavailable(f"torch cannot be imported: {error}", REMEDY) from error
    return torch


def _cpu_versions(torch: Any) -> dict[str, str]:
    blas = next((line for line in torch.__config__.show().splitlines() if "Math Kernel" in line or "BLAS" in line), "?")
    return {
        "torch": torch.__version__,
        "BLAS": blas.strip(" -").split("-Product")[0],
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def _cuda_versions(torch: Any, index: int) -> dict[str, str]:
    major, minor = torch.cuda.get_device_capability(index)
    runtime = {"ROCm": torch.version.hip} if torch.version.hip else {"CUDA": torch.version.cuda}
    return {"torch": torch.__version__, **runtime, "compute capability": f"{major}.{minor}"}
