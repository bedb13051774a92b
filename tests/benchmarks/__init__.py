"""Benchmarks against named peers; each is run as ``python -m tests.benchmarks.NAME``."""
