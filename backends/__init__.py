"""One package per API that can compute the ops: ggml, vulkan (Kompute), opencl (pyopencl), cuda (CuPy) and torch."""
