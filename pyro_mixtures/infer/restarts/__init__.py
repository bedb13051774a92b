"""Several fits of one mixture: restarts, the best of several starts, growth and pruning, stored fits."""
