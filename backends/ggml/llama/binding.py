"""libllama, beside libggml: finding it, loading it, and the devices that a model can be on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opconform.backends.ggml.binding import MissingError
from opconform.backends.ggml.declarations import CONSTANTS, Declarations
from opconform.backends.ggml.library import REMEDY, VARIABLE, Library, library_files
from opconform.harness.run.backend import Unavailable

Pointer = Any  #: of cffi

LLAMA_REMEDY = (
    "name a folder that has libllama beside libggml: llama.cpp's build/bin, llama-cpp-python's lib, and the npm "
    "package @node-llama-cpp/linux-x64-vulkan, unpacked, have both"
)
_PATTERNS = ("libllama.so*", "libllama.dylib", "libllama.*.so", "libllama.*.dylib")
_ERROR, _WARN = CONSTANTS["GGML_LOG_LEVEL_ERROR"], CONSTANTS["GGML_LOG_LEVEL_WARN"]
_CONTINUED = CONSTANTS["GGML_LOG_LEVEL_CONT"]
_VAGUE = re.compile(r"failed to load model$")
_KEPT = 8  #: errors

#: What is called of libllama, and what only some builds have of it.
DECLARATIONS = Declarations.read((Path(__file__).parent / "llama.h").read_text(encoding="ascii"))
OPTIONAL = frozenset({"llama_model_init_from_user", "gguf_init_from_file"})


def llama_file(folder: Path) -> Path:
    """The libllama in `folder`. Raises `Unavailable` where there is no such file, or no libggml beside it."""
    library_files(folder)
    for pattern in _PATTERNS:
        found = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
        if found:
            return found[0]
    raise Unavailable(f"there is no libllama in {folder}", LLAMA_REMEDY)


def folder_of(options: Mapping[str, str]) -> Path:
    """The build that `options` (ggml_lib) or the environment names. Raises `Unavailable` where neither does."""
    chosen = options.get("ggml_lib") or os.environ.get(VARIABLE)
    if not chosen:
        raise Unavailable(f"no libggml was given: {VARIABLE} is not set", REMEDY)
    return Path(chosen).expanduser().resolve()


class Llama(Library):
    """A loaded libllama with its libggml: `c` has the functions of both."""

    def __init__(self, folder: Path) -> None:
        """Load what lies in `folder`. Raises `Unavailable` where there is no libllama, or one that cannot be used."""
        self.file = llama_file(folder)
        super().__init__(folder)
        try:
            self.c.add(self.file, DECLARATIONS)
            for name in DECLARATIONS.functions.keys() - OPTIONAL:
                self.c.require(name)
        except (OSError, MissingError) as error:
            raise Unavailable(f"{self.file.name} in {folder} cannot be used: {error}", LLAMA_REMEDY) from None
        self.errors: list[str] = []  #: what libllama complained of, the last few
        self._level = 0
        # Kept alive for as long as libllama may call it. libllama gives it to ggml, too.
        self._listener = self.c.ffi.callback("ggml_log_callback", self._listen)
        self.c.llama_log_set(self._listener, self.c.null)
        self.c.llama_backend_init()

    def _listen(self, level: int, message: Any, _: Any) -> None:
        """Warnings and errors go on to stderr; the last errors are kept for a message."""
        self._level = self._level if level == _CONTINUED else level
        if self._level not in (_WARN, _ERROR):
            return
        raw = self.c.ffi.string(message)
        os.write(2, raw)
        if level == _ERROR and raw.strip():
            self.errors = [*self.errors[1 - _KEPT :], raw.decode(errors="replace").strip()]

    @property
    def complaint(self) -> str:
        """The last error that says what went wrong, and not only that something did."""
        telling = [line for line in self.errors if not _VAGUE.search(line)]
        return (telling or self.errors or ["it does not say why"])[-1]

    def device(self, name: str) -> Pointer:
        """The device `name`. Raises `Unavailable` where there is none."""
        devices = self.devices()
        if name not in devices:
            raise Unavailable(f"this libggml has no device {name!r} here", f"it has: {', '.join(devices)}")
        return devices[name]

    def address(self, pointer: Pointer) -> int:
        """An address as a number; 0 for NULL."""
        return int(self.c.ffi.cast("uintptr_t", pointer))

    def cast(self, name: str, signature: str) -> Callable[..., Any]:
        """The function `name` under another signature."""
        found: Callable[..., Any] = self.c.ffi.cast(signature, getattr(self.c, name))
        return found
