"""Numba kernels on the CPU, the vector instructions they use, and the threads that run them."""
