"""Numba kernels for the CPU, the vector instructions that they use, and their threads."""
