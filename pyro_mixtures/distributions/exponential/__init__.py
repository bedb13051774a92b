"""Components of exponential families by their means, and categorical components."""
