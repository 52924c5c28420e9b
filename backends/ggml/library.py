"""libggml through ctypes: finding the files, loading them, declaring what is called, and naming the build.

Everything that is called of ggml stands in `_SIGNATURES` (and, for the ops, in `ops.py`); the functions become
attributes of `Library` with their argument types declared once.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import re
from collections.abc import Mapping
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opconform.backends.ggml.composite import FUNCTIONS
from opconform.backends.ggml.ops import OPS
from opconform.harness.run.backend import Unavailable

VARIABLE = "OPCONFORM_GGML_LIB"
FLOAT16_VARIABLE = "OPCONFORM_GGML_F16"  #: set to anything: GPUs may compute products of float32 in float16
REMEDY = (
    f"set {VARIABLE} (or --ggml-lib) to a folder with libggml-base.so and libggml.so: "
    "`npm pack @node-llama-cpp/linux-x64-vulkan@3.16.2`, unpacked, has one in package/bins/linux-x64-vulkan; "
    "so do llama.cpp's build/bin and llama-cpp-python's lib"
)

CPU_DEVICE = 0  # enum ggml_backend_dev_type
_WARN, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

_DEVICE_LINE = re.compile(r"^(?:ggml_(vulkan): (\d+) = |\s+Device (\d+): )(.+)$")
_BACKEND_LINE = re.compile(r"^load_backend: loaded (\S+) backend from (.+)$")
_BUILD_IN_NAME = re.compile(r"^libggml\.(?:.*\.)?((?:b|v)\d[\w.]*?)\.(?:so|dylib)$")


class InitParams(ctypes.Structure):
    """struct ggml_init_params: the memory a context makes its tensors in."""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


#: What is called of ggml besides the ops: the result's type, then the arguments'. Pointers are plain integers.
_SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "ggml_backend_load_all_from_path": (None, c_char_p),
    "ggml_type_name": (c_char_p, c_int),
    # devices
    "ggml_backend_dev_count": (c_size_t,),
    "ggml_backend_dev_get": (c_void_p, c_size_t),
    "ggml_backend_dev_name": (c_char_p, c_void_p),
    "ggml_backend_dev_description": (c_char_p, c_void_p),
    "ggml_backend_dev_type": (c_int, c_void_p),
    "ggml_backend_dev_backend_reg": (c_void_p, c_void_p),
    "ggml_backend_reg_name": (c_char_p, c_void_p),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_dev_init": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_dev_supports_op": (c_bool, c_void_p, c_void_p),
    # memory
    "ggml_backend_dev_buffer_type": (c_void_p, c_void_p),
    "ggml_backend_buft_get_alignment": (c_size_t, c_void_p),
    "ggml_backend_buft_alloc_buffer": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_buffer_get_base": (c_void_p, c_void_p),
    "ggml_backend_tensor_alloc": (c_int, c_void_p, c_void_p, c_void_p),
    "ggml_backend_view_init": (c_int, c_void_p),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    # tensors and graphs
    "ggml_init": (c_void_p, InitParams),
    "ggml_free": (None, c_void_p),
    "ggml_nbytes": (c_size_t, c_void_p),
    "ggml_reset": (None, c_void_p),
    "ggml_tensor_overhead": (c_size_t,),
    "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
    "ggml_new_tensor_1d": (c_void_p, c_void_p, c_int, c_int64),
    "ggml_new_tensor_4d": (c_void_p, c_void_p, c_int, c_int64, c_int64, c_int64, c_int64),
    "ggml_view_1d": (c_void_p, c_void_p, c_void_p, c_int64, c_size_t),
    "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
    "ggml_set_output": (None, c_void_p),
    "ggml_gallocr_new": (c_void_p, c_void_p),
    "ggml_gallocr_reserve": (c_bool, c_void_p, c_void_p),
    "ggml_gallocr_alloc_graph": (c_bool, c_void_p, c_void_p),
}
_OPTIONAL: Mapping[str, tuple[Any, ...]] = {
    "ggml_version": (c_char_p,),
    "ggml_commit": (c_char_p,),
    "ggml_log_set": (None, _LOG_CALLBACK, c_void_p),
    "ggml_soft_max_add_sinks": (None, c_void_p, c_void_p),
    "ggml_flash_attn_ext_set_prec": (None, c_void_p, c_int),
    "ggml_gallocr_reserve_n_size": (None, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
}


class Library:
    """A loaded libggml. Its functions are attributes; an op that this build lacks is None."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

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
            self._handles = [ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for path in (base, registry) if path]
        except OSError as error:
            raise Unavailable(f"libggml in {folder} cannot be loaded: {error}", REMEDY) from None
        self._declare()
        self.log = _Log(self)
        self.ggml_backend_load_all_from_path(os.fsencode(folder))
        self.build = self._build(registry)

    def _declare(self) -> None:
        for name, signature in _SIGNATURES.items():
            function = self._find(name, signature)
            if function is None:
                raise Unavailable(f"libggml in {self.folder} has no {name}: it is too old or not ggml", REMEDY)
            setattr(self, name, function)
        for name, signature in _OPTIONAL.items():
            setattr(self, name, self._find(name, signature))
        for op in OPS.values():
            for symbol in op.symbols:
                setattr(self, symbol, self._find(symbol, (c_void_p, *op.arguments)))
        for symbol, arguments in FUNCTIONS.items():
            setattr(self, symbol, self._find(symbol, (c_void_p, c_void_p, *arguments)))

    def _find(self, name: str, signature: tuple[Any, ...]) -> Any:
        for handle in self._handles:
            function = getattr(handle, name, None)
            if function is not None:
                function.restype, function.argtypes = signature[0], signature[1:]
                return function
        return None

    def _build(self, registry: Path) -> str:
        """The build as a person quotes it: llama.cpp's release, else ggml's own version, else the file's name."""
        try:
            metadata = json.loads((self.folder / "_nlcBuildMetadata.json").read_text())
            return str(metadata["buildOptions"]["llamaCpp"]["release"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if match := _BUILD_IN_NAME.match(registry.name):
            return match[1]
        return self.version() or registry.name

    @cached_property
    def counts_snapshots(self) -> bool | None:
        """Whether ggml_gated_delta_net takes a count of state snapshots as its last argument; None where there is none.

        It came without (7 Mar 2026), then read the count from the state's ne1 (16 May), then took it (10 Jun); nothing
        in the library says which. A surplus argument does no harm in C's calling conventions, so a tensor of
        one element, which every version accepts as every source, tells them apart: the result holds one element of
        output and as many of state as there are snapshots.
        """
        if self.ggml_gated_delta_net is None:
            return None
        context = self.ggml_init(InitParams(16 * self.ggml_tensor_overhead(), None, True))
        one = self.ggml_new_tensor_4d(context, 0, 1, 1, 1, 1)
        size = self.ggml_nbytes(self.ggml_gated_delta_net(context, *[one] * 6, 2))
        self.ggml_free(context)
        return bool(size == (1 + 2) * 4)

    def version(self) -> str:
        """ggml's version and commit, or nothing where the library does not say."""
        version = self.ggml_version() if self.ggml_version else None
        commit = self.ggml_commit() if self.ggml_commit else None
        return " ".join(part.decode() for part in (version, commit) if part)

    def devices(self) -> dict[str, int]:
        """Every device that the loaded backends found: its name and its handle."""
        handles = [self.ggml_backend_dev_get(i) for i in range(self.ggml_backend_dev_count())]
        return {self.ggml_backend_dev_name(handle).decode(): handle for handle in handles}


class _Log:
    """Takes ggml's log: warnings and errors go on to stderr, the rest is dropped but for facts about the devices."""

    def __init__(self, library: Library) -> None:
        self.driver: dict[str, str] = {}  #: what a backend said of its devices, by device id
        self.file: dict[str, str] = {}  #: the file that a backend came from, by its name
        self._level = 0
        self._callback = _LOG_CALLBACK(self._take)  # kept alive for as long as ggml may call it
        if library.ggml_log_set:
            library.ggml_log_set(self._callback, None)
            # ggml may log while the process ends, when Python can no longer be called.
            atexit.register(library.ggml_log_set, _LOG_CALLBACK(), None)

    def _take(self, level: int, text: bytes, _: int | None) -> None:
        self._level = self._level if level == _CONTINUED else level
        if self._level in (_WARN, _ERROR):
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
