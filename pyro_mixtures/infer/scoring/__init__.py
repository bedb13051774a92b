"""Scores and predictions of rows: log evidence, responsibilities, draws, reconstructions."""
