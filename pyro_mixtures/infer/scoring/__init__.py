"""Scores and predictions of rows: log evidence, responsibilities, assignments, draws, reconstructions."""
