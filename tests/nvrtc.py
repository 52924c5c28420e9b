"""NVRTC, CUDA's compiler at run time, by ctypes: it needs no driver and no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Compiled:
    """What came of one file: whether it compiled, and what the compiler said."""

    good: bool
    log: str


class Nvrtc:
    """One NVRTC library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._must("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self._must("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._must("nvrtcGetSupportedArchs", known)
        self.version = f"{major.value}.{minor.value}"
        self.architectures = [arch for arch in known if arch >= 70]  # from Volta on

    def compile(self, source: str, name: str, options: tuple[str, ...]) -> Compiled:
        """Compile `source`, the text of a file called `name`."""
        program = ctypes.c_void_p()
        self._must("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        good = self._library.nvrtcCompileProgram(program, len(options), given) == 0
        size = ctypes.c_size_t()
        self._must("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._must("nvrtcGetProgramLog", program, log)
        self._must("nvrtcDestroyProgram", ctypes.byref(program))
        return Compiled(good, log.value.decode(errors="replace").strip())

    def takes(self, option: str) -> bool:
        """Whether this version has an option."""
        return self.compile("", "nothing.cu", (option,)).good

    def _must(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"{function} returned {status}")


def installed() -> list[Path]:
    """The NVRTC libraries that PyPI's packages for CUDA 12 and 13 have brought."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    return sorted(found for folder in folders for found in folder.glob("*/lib/libnvrtc.so.*"))
