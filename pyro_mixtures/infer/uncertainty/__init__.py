"""Uncertainty of a fit: bootstrap, observed information, standard errors, information criteria."""
