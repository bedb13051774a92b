"""Effect handlers of mixture programs: E-steps, statistics, truncation, and the data plate."""

from pyro_mixtures.poutine.joint import CandidateMessenger, Joint, log_joint
from pyro_mixtures.poutine.plate import data_plate
from pyro_mixtures.poutine.posterior import Posterior, exact_posterior, posterior_of
from pyro_mixtures.poutine.reuse import ReuseMessenger
from pyro_mixtures.poutine.statistics import StatisticsMessenger, collect_statistics
from pyro_mixtures.poutine.structure import ProgramStructure, read_structure
from pyro_mixtures.poutine.truncate import TruncateMessenger, truncate
from pyro_mixtures.poutine.visibility import PlateMessenger, VisibilityMessenger

__all__ = [
    "CandidateMessenger",
    "Joint",
    "PlateMessenger",
    "Posterior",
    "ProgramStructure",
    "ReuseMessenger",
    "StatisticsMessenger",
    "TruncateMessenger",
    "VisibilityMessenger",
    "collect_statistics",
    "data_plate",
    "exact_posterior",
    "log_joint",
    "posterior_of",
    "read_structure",
    "truncate",
]
