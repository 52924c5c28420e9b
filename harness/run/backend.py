"""The contract between the harness and a backend. A backend is one class; only `run`, or `load`, must be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.text import printable_lines
from opconform.harness.model.usage import UsageError
from opconform.harness.run.script import Script, ScriptRequest

if TYPE_CHECKING:
    from opconform.harness.model.graph import WholeGraph
    from opconform.harness.model.piece import Piece
    from opconform.harness.run.lines import Lines
    from opconform.harness.run.sanitizer import Sanitizer
    from opconform.harness.run.watching import Watcher, WatchRequest


class Unavailable(Exception):
    """A backend that cannot run here: `reason` says why, `remedy` what would make it run. `hardware`: what is missing
    is a machine, which no installation brings, so that CI does without it.

    Drivers and libraries have their say in both: each line of them is made printable.
    """

    def __init__(self, reason: str, remedy: str, hardware: bool = False) -> None:
        self.reason = printable_lines(reason)
        self.remedy = printable_lines(remedy)
        super().__init__(f"{self.reason}; {self.remedy}")
        self.hardware = hardware

    def __reduce__(self) -> tuple[type[Unavailable], tuple[str, str, bool]]:
        return Unavailable, (self.reason, self.remedy, self.hardware)


class KernelFault(Exception):
    """What a backend has seen a kernel do that its API does not define; raised by `Backend.run`.

    `kind`, of severity MEMORY, becomes that of the verdict; the text says the file and line.
    """

    def __init__(self, kind: Kind, says: str) -> None:
        super().__init__(says)
        self.kind = kind


@dataclass(frozen=True)
class Device:
    """A device of a backend. `id` is what stands after the colon (`ggml:Vulkan0`); `description` is its name;
    `versions` what a bug report must say (driver, library, build)."""

    id: str
    description: str
    versions: Mapping[str, str] = field(default_factory=dict)
    numerics: Numerics = Numerics()


class Loaded(Protocol):
    """A case that stands on the device: its arguments are uploaded and its kernels are built."""

    def launch(self) -> None:
        """Compute, and return once the device has done so. May be called again: inputs that the op writes in place
        then hold what the last launch left there."""

    def fetch(self) -> None:
        """Bring all of the device's memory of the case back into the buffers that it was loaded from."""

    # `opconform perf` also calls `timed(repeats: int) -> float` where there is one: the seconds of so many computations
    # back to back, by the device's clock. Without it `launch` is timed by the host's.


@dataclass(frozen=True)
class _Run:
    """What `Backend.run` makes of loading: everything happens in the launch."""

    backend: Backend
    case: Case
    buffers: Buffers

    def launch(self) -> None:
        self.backend.run(self.case, self.buffers)

    def fetch(self) -> None:
        """Nothing is left to do."""


def loaded(backend: Backend, case: Case, buffers: Buffers) -> Loaded:
    """The case on the device, ready to launch. A class that overrides only `run` computes with that, even where the
    class above it has `load`."""
    for each in type(backend).__mro__:
        if "load" in vars(each):
            break
        if "run" in vars(each):
            return _Run(backend, case, buffers)
    return backend.load(case, buffers)


@dataclass(frozen=True)
class Named:
    """An op by the name that a backend's own library has for it.

    kind: what sort of op, in the library's words; "view", "group" and "callback" compute nothing of their own. ops: the
    ops here that test it. why: why none does.
    """

    name: str
    kind: str
    ops: tuple[str, ...]
    why: str = ""


class Backend:
    """A backend on one device.

    The harness makes one instance in a worker process of its own: an abort, a segfault or a hang in `run` is a verdict
    on the case, and the next case gets a fresh worker.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[str] = ""  #: what to install, in one line, for `opconform list`
    clock: str = "host clock"  #: what `Loaded.timed` reads, in two words
    script_reads: ClassVar[tuple[str, ...]] = ()  #: attributes that `script` follows, where a subclass changes them

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        """Open `device` (an id that `devices` listed). `options` are the command line's, such as `ggml_lib`."""
        self.device = device
        self.options = options

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        """The devices here. Raises `Unavailable` where there is none."""
        return [Device("0", cls.name or cls.__name__)]

    @classmethod
    def sanitizer(cls) -> Sanitizer:
        """The checker of this backend's API. Raises `Unavailable` where it is not installed, or there is none."""
        raise Unavailable(f"the backend {cls.name} has no checker to run under", "leave it out, or --sanitize")

    @classmethod
    def script(cls, request: ScriptRequest) -> Script | None:
        """The part of a bundle's `repro.py` that calls the API: how it runs the failing case without Opconform.

        None stands for the default: the class itself runs in the script, on copies of the files that it imports. A
        subclass that changes how cases are computed, in anything but what `script_reads` names, has the default too.
        Called in a process of its own, without a device. Raises `CannotWriteError` with the reason.
        """
        return None

    @classmethod
    def watcher(cls, request: WatchRequest) -> Watcher:
        """A model to be run and watched on a device. Raises `UsageError` where the class runs none, or not that one,
        and `Unavailable` for a build that has no models."""
        raise UsageError(f"the backend {cls.name or cls.__name__} runs no models; see `opconform watch --help`")

    @classmethod
    def architectures(cls) -> tuple[str, ...]:
        """The names that a request for a tiny model with random weights may have."""
        return ()

    @classmethod
    def replay_piece(cls, piece: Piece, request: WatchRequest) -> WholeGraph:
        """A piece in one go against its nodes one by one. Raises `UsageError` where the class cannot compute it, and
        `Unavailable` for a build or a device that there is not."""
        raise UsageError(f"the backend {cls.name or cls.__name__} computes no pieces of graphs")

    @classmethod
    def lines(cls, options: Mapping[str, str]) -> Lines:
        """What reads and writes cases as lines that the library's own tools take. Raises `UsageError` where the class
        has no such lines, and `Unavailable` for a library that there is not."""
        raise UsageError(f"the backend {cls.name or cls.__name__} has no tools that read cases from a file")

    def limits(self) -> tuple[Limit, ...]:
        """What this device does not take. The search steers by it, so that no draw is wasted."""
        return ()

    def supports(self, case: Case) -> str | None:
        """None where `run` can compute the case, else the reason, in words a person can act on."""
        return None

    def names(self) -> Sequence[Named] | None:
        """Every op that the library behind this backend itself names; None where it names none. `opconform coverage`
        asks."""
        return None

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        """The case on the device, ready to launch; by default one that `run` computes.

        A backend that can keep uploading, computing and downloading apart gives this instead of `run`. What the device
        holds for the case is freed with the `Loaded`.
        """
        return _Run(self, case, buffers)

    def run(self, case: Case, buffers: Buffers) -> None:
        """Compute the case on the memory in `buffers`, and leave there what the device's memory holds afterwards."""
        found = self.load(case, buffers)
        if isinstance(found, _Run):
            raise NotImplementedError(f"{type(self).__name__} has neither run nor load")
        found.launch()
        found.fetch()

    def numerics(self, case: Case) -> Numerics | None:
        """The arithmetic of one case where it is lower than what `Device.numerics` promises (products in float16, say);
        None where it is not. The bound follows it, and a failure says so."""
        return None

    def evict(self) -> None:
        """Fill the device's caches with other data. The default is right for a device that computes on the CPU."""
        from opconform.harness.run import host

        host.evict()

    def copying(self, size: int) -> Loaded:
        """The device's own copy of `size` bytes from one place of its memory to another, ready to launch and to time:
        what an op that moves elements is measured by. The default copies in the host's memory."""
        from opconform.harness.run import host

        return host.Copy(size)

    def product(self, n: int) -> Loaded | None:
        """The product of two n×n matrices of float32, which an op that multiplies is measured by: by the device's own
        library, or where its API has none by a plain kernel. n is a multiple of 4. None where there is neither."""
        return None

    def memory(self, case: Case, buffers: Buffers) -> Mapping[str, int]:
        """Bytes that a case takes for intermediate results: "planned" by the library's allocator, "allocated" by
        the device. Empty where it has none, or nobody counts them. A case that was loaded before is gone."""
        return {}

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray] | None:
        """What `run` does, and the intermediates by the name of the op's `Stage`; None where there are none to show.

        Called for failures only. The arrays have the shapes that the op's module gives.
        """
        return None
