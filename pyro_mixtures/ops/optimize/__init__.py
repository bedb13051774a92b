"""Newton's method for many small convex problems at once."""
