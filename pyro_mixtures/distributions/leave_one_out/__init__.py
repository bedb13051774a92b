"""The loss that a row adds to its cluster: closed forms, refits and warm-started descents."""
