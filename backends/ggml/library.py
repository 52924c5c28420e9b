"""A libggml: finding its files, loading them, taking its log, and naming the build."""

from __future__ import annotations

import atexit
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from opconform.backends.ggml import structs
from opconform.backends.ggml.binding import Binding, MissingError
from opconform.backends.ggml.declarations import CONSTANTS, TYPES
from opconform.harness.run.backend import Unavailable

VARIABLE = "OPCONFORM_GGML_LIB"
FLOAT16_VARIABLE = "OPCONFORM_GGML_F16"  #: set to anything: GPUs may compute products of float32 in float16
REMEDY = (
    f"set {VARIABLE} (or --ggml-lib) to a folder with libggml-base.so and libggml.so: "
    "`npm pack @node-llama-cpp/linux-x64-vulkan@3.16.2`, unpacked, has one in package/bins/linux-x64-vulkan; "
    "so do llama.cpp's build/bin and llama-cpp-python's lib"
)

_SHOWN = (CONSTANTS["GGML_LOG_LEVEL_WARN"], CONSTANTS["GGML_LOG_LEVEL_ERROR"])
_CONTINUED = CONSTANTS["GGML_LOG_LEVEL_CONT"]

_DEVICE_LINE = re.compile(r"^(?:ggml_(vulkan): (\d+) = |\s+Device (\d+): )(.+)$")
_BACKEND_LINE = re.compile(r"^load_backend: loaded (\S+) backend from (.+)$")
_BUILD_IN_NAME = re.compile(r"^libggml\.(?:.*\.)?((?:b|v)\d[\w.]*?)\.(?:so|dylib)$")


class Library:
    """A loaded libggml. `c` has its functions."""

    def __init__(self, folder: Path) -> None:
        """Load what lies in `folder`. Raises `Unavailable` where that is no libggml."""
        self.folder = folder
        base, registry = library_files(folder)
        # ggml reads these when it loads: Vulkan passes over CPU-type devices (lavapipe) unless they are asked for,
        # and an abort would start a debugger to print a backtrace.
        os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        # On a device with 16-bit floats Vulkan's matrix products round float32 operands to float16. With that a bound
        # is some thousand times wider, so it is done only where a person asks for it.
        self.float16 = bool(os.environ.get(FLOAT16_VARIABLE))
        if not self.float16:
            os.environ.setdefault("GGML_VK_DISABLE_F16", "1")
        try:
            self.c = Binding([path for path in (base, registry) if path])
        except OSError as error:
            raise Unavailable(f"libggml in {folder} cannot be loaded: {error}", REMEDY) from None
        try:
            self.build = build_of(self.c, registry)
            self.c.what += f" ({self.build})"
            structs.check(self.c)
            self.log = _Log(self.c)
            self.c.ggml_backend_load_all_from_path(os.fsencode(folder))
        except MissingError as lack:
            raise Unavailable(f"{lack}: it is too old or not ggml", REMEDY) from None

    @cached_property
    def types(self) -> frozenset[str]:
        """The element types that this build has. It aborts at any other."""
        return frozenset(name for name, number in TYPES.items() if structs.has_type(self.c, number))

    @cached_property
    def counts_snapshots(self) -> bool | None:
        """Whether ggml_gated_delta_net takes a count of state snapshots as its last argument; None where there is none.

        It came without (7 Mar 2026), then read the count from the state's ne1 (16 May), then took it (10 Jun); nothing
        in the library says which. A surplus argument does no harm in C's calling conventions, so a tensor of
        one element, which every version accepts as every source, tells them apart: the result holds one element of
        output and as many of state as there are snapshots.
        """
        c = self.c
        if not c.has("ggml_gated_delta_net"):
            return None
        context = c.ggml_init(c.ffi.new("struct ggml_init_params *", [16 * c.ggml_tensor_overhead(), c.null, True])[0])
        one = c.ggml_new_tensor_1d(context, CONSTANTS["GGML_TYPE_F32"], 1)
        size = c.ggml_nbytes(c.ggml_gated_delta_net(context, *[one] * 6, 2))
        c.ggml_free(context)
        return bool(size == (1 + 2) * 4)

    def devices(self) -> dict[str, Any]:
        """Every device that the loaded backends found: its name and its handle."""
        handles = [self.c.ggml_backend_dev_get(i) for i in range(self.c.ggml_backend_dev_count())]
        return {self.c.text(self.c.ggml_backend_dev_name(handle)): handle for handle in handles}

    def is_cpu(self, device: Any) -> bool:
        """Whether a device (its handle) is ggml's own CPU device."""
        return bool(self.c.ggml_backend_dev_type(device) == CONSTANTS["GGML_BACKEND_DEVICE_TYPE_CPU"])

    def set_threads(self, device: Any, backend: Any, count: int) -> None:
        """Bound the CPU device's threads; other devices have no such function."""
        registry = self.c.ggml_backend_dev_backend_reg(device)
        address = self.c.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        if address:
            self.c.ffi.cast("ggml_backend_set_n_threads_t", address)(backend, count)


class _Log:
    """Takes ggml's log: warnings and errors go on to stderr, the rest is dropped but for facts about the devices."""

    def __init__(self, c: Binding) -> None:
        self.driver: dict[str, str] = {}  #: what a backend said of its devices, by device id
        self.file: dict[str, str] = {}  #: the file that a backend came from, by its name
        self._level = 0
        self._ffi = c.ffi
        # Kept alive for as long as ggml may call it.
        self._callback = c.ffi.callback("void(enum ggml_log_level, const char *, void *)", self._take)
        c.ggml_log_set(self._callback, c.null)
        # ggml may log while the process ends, when Python can no longer be called.
        atexit.register(c.ggml_log_set, c.null, c.null)

    def _take(self, level: int, message: Any, _: Any) -> None:
        text = self._ffi.string(message)
        self._level = self._level if level == _CONTINUED else level
        if self._level in _SHOWN:
            os.write(2, text)
            return
        line = text.decode(errors="replace").rstrip()
        if match := _DEVICE_LINE.match(line):
            name = f"Vulkan{match[2]}" if match[1] else f"CUDA{match[3]}"
            self.driver[name] = match[4]
        elif match := _BACKEND_LINE.match(line):
            self.file[match[1]] = Path(match[2]).name


def library_files(folder: Path) -> tuple[Path | None, Path]:
    """libggml-base (None where libggml has it inside) and the libggml with the device registry.

    Raises `Unavailable` for a path that is no folder or has no libggml.
    """
    if not folder.is_dir():
        raise Unavailable(f"{folder} is not a folder", REMEDY)
    base = _first(folder, ("libggml-base.so*", "libggml-base.dylib", "libggml-base.*.dylib"))
    registry = _first(folder, ("libggml.so*", "libggml.dylib", "libggml.*.so", "libggml.*.dylib"))
    if registry is None:
        raise Unavailable(f"there is no libggml in {folder}", REMEDY)
    return base, registry


def build_of(c: Binding, registry: Path) -> str:
    """The build as a person quotes it: llama.cpp's release, else ggml's own version and commit, else the file's
    name."""
    try:
        metadata = json.loads((registry.parent / "_nlcBuildMetadata.json").read_text())
        return str(metadata["buildOptions"]["llamaCpp"]["release"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if match := _BUILD_IN_NAME.match(registry.name):
        return match[1]
    return version(c) or registry.name


def version(c: Binding) -> str:
    """ggml's version and commit, or nothing where the library does not say."""
    return " ".join(c.text(getattr(c, name)()) for name in ("ggml_version", "ggml_commit") if c.has(name))


def names_function(folder: Path, name: str) -> bool:
    """Whether a libggml has a function, by the names in its files: it is not loaded."""
    return any(b"\0%s\0" % name.encode() in file.read_bytes() for file in library_files(folder) if file)


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    """The file with the shortest name (the plain one, before `.so.0.9.5`) of the first pattern that has any."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
        if found:
            return found[0]
    return None


_loaded: Library | None = None


def load(options: Mapping[str, str]) -> Library:
    """The libggml of `options["ggml_lib"]`, else of the environment's OPCONFORM_GGML_LIB; loaded once a process.

    Raises `Unavailable` where there is none, or where this process holds another one.
    """
    global _loaded
    chosen = options.get("ggml_lib") or os.environ.get(VARIABLE)
    if not chosen:
        raise Unavailable(f"no libggml was given: {VARIABLE} is not set", REMEDY)
    folder = Path(chosen).expanduser().resolve()
    library_files(folder)
    if _loaded is None:
        _loaded = Library(folder)
    elif _loaded.folder != folder:
        raise Unavailable(
            f"this process has loaded ggml from {_loaded.folder} and cannot load a second one from {folder}",
            "use one libggml per process",
        )
    return _loaded
