"""Components of an outcome given covariates: regressions, classifiers and pseudo-likelihoods."""
