"""Expectation maximization: one step, the fit loop, batching, re-seeding and the history of a fit."""
