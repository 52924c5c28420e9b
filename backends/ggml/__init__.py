"""ggml: any libggml with its devices (CPU, Vulkan, CUDA, Metal …), through its C API."""

from opconform.backends.ggml.backend import GgmlBackend

__all__ = ["GgmlBackend"]
