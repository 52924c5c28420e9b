"""The declared functions of a loaded library, through cffi, and the struct in which ggml keeps a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from opconform.backends.ggml.declarations import DECLARATIONS, Declarations
from opconform.harness.run.backend import Unavailable

if TYPE_CHECKING:
    from cffi import FFI


class RefusedError(Exception):
    """This build or this device does not take a case; the text says why."""


class MissingError(RefusedError):
    """This build lacks a function."""


class Tensor(Protocol):
    """A pointer to a struct ggml_tensor."""

    type: int
    buffer: Any
    ne: Any
    nb: Any
    op: int
    op_params: Any
    flags: int
    src: Any
    view_src: Any
    view_offs: int
    data: Any
    name: Any


class Binding:
    """A library's functions as attributes. Each is looked up when it is first used, for builds lack some of them.

    A function that `declarations` does not name is an AttributeError, and one that the files lack a `MissingError`.
    """

    def __init__(self, files: Sequence[Path], declarations: Declarations = DECLARATIONS) -> None:
        """Load `files`. Raises OSError, and `Unavailable` without cffi."""
        try:
            from cffi import FFI
        except ImportError:
            raise Unavailable("the Python package cffi is not installed", 'pip install "opconform[ggml]"') from None
        self.ffi: FFI = FFI()
        self.ffi.cdef(declarations.text)
        self.null = self.ffi.NULL
        self.what = "this libggml"  #: what is said to lack a function
        self.declarations = declarations
        self._functions = set(declarations.functions)
        self._files: list[Any] = []
        for file in files:
            self._open(file)

    def _open(self, file: Path) -> None:
        # Never unloaded: a driver may run threads of its own until the process ends.
        flags = self.ffi.RTLD_NOW | self.ffi.RTLD_GLOBAL | self.ffi.RTLD_NODELETE
        self._files.append(self.ffi.dlopen(str(file), flags))

    def add(self, file: Path, declarations: Declarations) -> None:
        """Load a library that builds on those that are loaded, with its declarations. Raises OSError."""
        self.ffi.cdef(declarations.text)
        self._functions |= set(declarations.functions)
        self._open(file)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._functions:
            raise AttributeError(f"declarations.h declares no {name}")
        for file in self._files:
            function: Callable[..., Any] | None = getattr(file, name, None)
            if function is not None:
                setattr(self, name, function)
                return function
        raise MissingError(f"{self.what} has no {name}")

    def require(self, name: str) -> None:
        """Raise `MissingError` where this build lacks a function."""
        getattr(self, name)

    def has(self, name: str) -> bool:
        """Whether this build has a function."""
        try:
            self.require(name)
        except MissingError:
            return False
        return True

    def text(self, string: Any) -> str:
        """A C string."""
        return bytes(self.ffi.string(string)).decode(errors="replace")
