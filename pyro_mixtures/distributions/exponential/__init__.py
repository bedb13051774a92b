"""Exponential families by their means, and categorical components."""
