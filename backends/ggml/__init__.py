"""ggml: any libggml with its devices (CPU, Vulkan, CUDA, Metal …), through its C API.

The backend is imported when somebody asks for it: a package that brings a `Row` of its own imports `rows` from here,
and the backend then imports that package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opconform.backends.ggml.backend import GgmlBackend

__all__ = ["GgmlBackend"]


def __getattr__(name: str) -> Any:
    if name != "GgmlBackend":
        raise AttributeError(f"{__name__} has no {name}")
    from opconform.backends.ggml.backend import GgmlBackend

    return GgmlBackend
