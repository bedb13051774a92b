"""What a row adds to the minimal loss of its cluster: closed forms, refits and gradient descent."""
