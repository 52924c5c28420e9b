"""libllama through cffi: finding it beside libggml, and loading both. One build a process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import cffi

from opconform.backends.ggml.library import FLOAT16_VARIABLE, REMEDY, VARIABLE, library_files
from opconform.harness.run.backend import Unavailable

Pointer = Any  #: a `void *` of cffi

LLAMA_REMEDY = (
    "name a folder that has libllama beside libggml: llama.cpp's build/bin, llama-cpp-python's lib, and the npm "
    "package @node-llama-cpp/linux-x64-vulkan, unpacked, have both"
)
NO_LOG, WARN, ERROR, CONTINUED = 0, 3, 4, 5  #: enum ggml_log_level
CPU_DEVICE = 0  #: enum ggml_backend_dev_type
_PATTERNS = ("libllama.so*", "libllama.dylib", "libllama.*.so", "libllama.*.dylib")
_SYMBOL = re.compile(r"^[^/\n]*?\b(\w+)\(", re.MULTILINE)


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


class Llama:
    """A loaded libllama with its libggml. `lib` has the functions, `ffi` makes what they take."""

    def __init__(self, folder: Path) -> None:
        """Load what lies in `folder`. Raises `Unavailable` where there is no libllama, or one that cannot be used."""
        base, registry = library_files(folder)
        file = llama_file(folder)
        # ggml reads these when it loads: see library.py.
        os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        if not os.environ.get(FLOAT16_VARIABLE):
            os.environ.setdefault("GGML_VK_DISABLE_F16", "1")
        declarations = (Path(__file__).parent / "llama.h").read_text()
        self.ffi = cffi.FFI()
        self.ffi.cdef(declarations)
        everywhere = self.ffi.RTLD_NOW | self.ffi.RTLD_GLOBAL
        try:
            self._below = [self.ffi.dlopen(str(path), everywhere) for path in (base, registry) if path]
            self.lib = self.ffi.dlopen(str(file), everywhere)  # finds the symbols of libggml too, which it depends on
        except OSError as error:
            raise Unavailable(f"libllama in {folder} cannot be loaded: {error}", LLAMA_REMEDY) from None
        self.folder, self.file = folder, file
        self._require(declarations)
        self.errors: list[str] = []  #: what libllama complained of, the last few
        self._level = NO_LOG
        self._log = self.ffi.callback("log_callback", self._take)  # kept alive for as long as libllama may call it
        self.lib.llama_log_set(self._log, self.ffi.NULL)
        self.lib.ggml_backend_load_all_from_path(os.fsencode(folder))
        self.lib.llama_backend_init()

    def has(self, name: str) -> bool:
        """Whether this build has the function `name`."""
        return hasattr(self.lib, name)

    def _require(self, declarations: str) -> None:
        for name in _SYMBOL.findall(declarations):
            if name not in OPTIONAL and not self.has(name):
                raise Unavailable(f"{self.file.name} in {self.folder} has no {name}: it is too old", LLAMA_REMEDY)

    def _take(self, level: int, text: Any, _: Any) -> None:
        """Warnings and errors go on to stderr; the last error is kept for a message."""
        self._level = self._level if level == CONTINUED else level
        if self._level not in (WARN, ERROR):
            return
        raw = self.ffi.string(text)
        os.write(2, raw)
        if self._level == ERROR and level != CONTINUED and raw.strip():
            self.errors = [*self.errors[-7:], raw.decode(errors="replace").strip()]

    @property
    def last_complaint(self) -> str:
        """The error that says most: the one that names what went wrong, before those that say that something did."""
        telling = [line for line in self.errors if "failed to load model" not in line]
        return (telling or self.errors or [""])[-1]

    @cached_property
    def devices(self) -> dict[str, Pointer]:
        """Every device that the loaded backends found: its name and its handle."""
        handles = [self.lib.ggml_backend_dev_get(i) for i in range(self.lib.ggml_backend_dev_count())]
        return {self.text(self.lib.ggml_backend_dev_name(handle)): handle for handle in handles}

    def device(self, name: str) -> Pointer:
        """The device `name`. Raises `Unavailable` where there is none."""
        if name not in self.devices:
            raise Unavailable(f"this libggml has no device {name!r} here", f"it has: {', '.join(self.devices)}")
        return self.devices[name]

    def is_cpu(self, device: Pointer) -> bool:
        """Whether a device is the CPU itself, which libllama uses by itself and wants in no list."""
        return bool(self.lib.ggml_backend_dev_type(device) == CPU_DEVICE)

    def text(self, chars: Any) -> str:
        """A C string as text; nothing for NULL."""
        return self.ffi.string(chars).decode(errors="replace") if chars else ""

    def function(self, name: str, signature: str) -> Callable[..., Any]:
        """The function `name` under another signature."""
        found: Callable[..., Any] = self.ffi.cast(signature, self.ffi.addressof(self.lib, name))
        return found


#: Functions of llama.h that not every build has.
OPTIONAL = ("llama_model_init_from_user",)
