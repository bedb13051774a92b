"""Newton's methods for convex problems, many of them at once, with one line search."""
