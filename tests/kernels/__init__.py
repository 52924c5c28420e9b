"""Kernels that test the tester: right ones that must pass, wrong ones that must be caught and named."""
