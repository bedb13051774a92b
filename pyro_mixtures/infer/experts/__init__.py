"""Gates, predictions of experts, and routing of new rows to them."""
