"""The kernels that OpenCL and CUDA compile from one source, and what the kernels of all three APIs are told alike.

A kernel file is OpenCL C; `api.h` makes CUDA C++ of it. `table.py` has a row for each op, and `families.py` one for
each op whose kernel is made from a template. What Vulkan does in its own way is in `backends/vulkan`.
"""
