"""CUDA: plain kernels of this project, run through CuPy, and the same files run on the CPU by g++."""

from opconform.backends.cuda.backend import CudaBackend
from opconform.backends.cuda.host import CudaHostBackend

__all__ = ["CudaBackend", "CudaHostBackend"]
