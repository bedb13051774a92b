"""Components of an outcome given covariates: regressions, classifiers, support vector machines, modules."""
