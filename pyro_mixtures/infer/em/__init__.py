"""Expectation maximization: steps, fit loop, batching, re-seeding, convergence, history."""
