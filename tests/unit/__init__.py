"""Tests of one module each, and of the oracle with wrong kernels."""
