"""Uncertainty of a fit: the bootstrap, observed information and standard errors, information criteria."""
