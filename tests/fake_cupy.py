"""As much of CuPy as the CUDA backend uses, on the CPU: memory is NumPy's, and g++ builds a module as for cuda-host.

With it the way from a case to a launch is run where there is no GPU: what is uploaded, what a kernel is given, what
comes back. It checks what CuPy would: that a struct is passed as an array of one element, all else as CuPy's own.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from opconform.backends.cuda import host
from opconform.backends.kernels.source import kernels_in, source_of

__version__ = "0.0"


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for an error of the runtime."""


class CUDADriverError(RuntimeError):
    """What CuPy raises for an error of the driver."""


class CompileException(Exception):
    """What CuPy raises for a source that NVRTC refuses."""


class ndarray:  # noqa: N801 (CuPy's own name)
    """Device memory."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.nbytes = memory.nbytes
        self.data = SimpleNamespace(memset=self._memset, copy_from_device_async=self._copy, of=self)

    def _memset(self, value: int, size: int) -> None:
        self.memory.view(np.uint8)[:size] = value

    def _copy(self, source: Any, size: int) -> None:
        self.memory.view(np.uint8)[:size] = source.of.memory.view(np.uint8)[:size]

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
        """The memory on the host."""
        if out is None:
            return self.memory.copy()
        out[...] = self.memory
        return out


def asarray(memory: np.ndarray) -> ndarray:
    """Upload."""
    return ndarray(memory.copy())


def empty(size: int, dtype: type) -> ndarray:
    """Memory that holds anything."""
    return ndarray(np.full(size, 0x5A, dtype))


class RawModule:
    """A source that is compiled."""

    failing: CUDARuntimeError | None = None  #: what every launch raises

    def __init__(self, *, code: str, options: tuple[str, ...], backend: str) -> None:
        assert backend == "nvrtc"
        assert all(option.startswith("-") for option in options)
        self._code = code

    def compile(self) -> None:
        """Compile it, as `get_function` would."""
        exported = "".join(f"HOST_KERNEL({name})\n" for name in kernels_in(self._code))
        text = source_of(Path(host.__file__).parent / "host.h") + self._code + exported
        host._runtime().host_case((host._Region * 0)(), 0)
        try:
            self._library = ctypes.CDLL(str(host.build(Path("fake.cu"), text, ())))
        except RuntimeError as error:
            raise CompileException(str(error)) from None

    def get_function(self, name: str) -> Any:
        """A kernel."""
        if not hasattr(self, "_library"):
            self.compile()
        launch = getattr(self._library, f"{name}_launch")

        def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
            if RawModule.failing is not None:
                raise RawModule.failing
            values = [_address(argument) for argument in arguments]
            pointers = (ctypes.c_void_p * len(values))(*(address for address, _ in values))
            assert launch((ctypes.c_uint * 6)(*grid, *block), pointers) == 0

        return kernel


def _address(argument: object) -> tuple[int, object]:
    """Where a kernel's argument stands, and what must live as long."""
    if isinstance(argument, np.ndarray):
        assert argument.size == 1, "CuPy passes NumPy arrays of one element only"
        return argument.ctypes.data, argument
    assert argument is None or isinstance(argument, ndarray)
    pointer = ctypes.c_void_p(None if argument is None else argument.memory.ctypes.data)
    return ctypes.addressof(pointer), pointer


class Event:
    """A place in the order of what a device does; the stand-in does it at once."""

    def record(self) -> None:
        """It is reached now."""
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Wait until it is reached: it must have been recorded."""
        assert self.at


def _elapsed(begin: Event, end: Event) -> float:
    """Milliseconds, as CUDA counts."""
    return (end.at - begin.at) * 1000


def matmul(a: ndarray, b: ndarray) -> ndarray:
    """The product of two matrices."""
    return ndarray(a.memory @ b.memory)


class _Device:
    def __init__(self, number: int) -> None:
        self.number = number

    def use(self) -> None:
        """Make it the current one."""


cuda = SimpleNamespace(
    Device=_Device,
    Event=Event,
    get_elapsed_time=_elapsed,
    compiler=SimpleNamespace(CompileException=CompileException),
    driver=SimpleNamespace(CUDADriverError=CUDADriverError),
    nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)),
    set_allocator=lambda allocator: None,
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 2,
        driverGetVersion=lambda: 12040,
        runtimeGetVersion=lambda: 12090,
        deviceSynchronize=lambda: None,
        getDeviceProperties=lambda index: {"name": b"Fake", "major": 9, "minor": 0, "totalGlobalMem": 1 << 30},
    ),
)
