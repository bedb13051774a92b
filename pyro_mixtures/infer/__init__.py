"""Strategies over a declared mixture: EM, the fit loop, scoring, prediction."""

from pyro_mixtures.infer.em import EM
from pyro_mixtures.infer.fit import Fit, fit
from pyro_mixtures.infer.history import Epoch, History
from pyro_mixtures.infer.predict import conditional, reconstruct, sample
from pyro_mixtures.infer.scoring import Responsibilities, assign, evidence, responsibilities

__all__ = [
    "EM",
    "Epoch",
    "Fit",
    "History",
    "Responsibilities",
    "assign",
    "conditional",
    "evidence",
    "fit",
    "reconstruct",
    "responsibilities",
    "sample",
]
