"""OpenCL: plain kernels of this project, run through pyopencl."""

from opconform.backends.opencl.backend import OpenCLBackend

__all__ = ["OpenCLBackend"]
