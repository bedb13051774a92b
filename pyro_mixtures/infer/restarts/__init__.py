"""Several fits of one mixture: restarts, the best of several starts, growth, pruning."""
