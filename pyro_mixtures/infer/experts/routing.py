"""Predictions for new rows by a fitted mixture of experts: routed by a gate, or mixed by it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.experts.combiners import Combiner, fit_combiner
from pyro_mixtures.infer.experts.comparison import Metric, Rows, accuracy, compare_routing, r2
from pyro_mixtures.infer.experts.gates import Gate, check_gate
from pyro_mixtures.infer.experts.labels import labels_of
from pyro_mixtures.infer.experts.predictions import (
    Experts,
    MeanMessenger,
    chosen,
    covariates,
    expert_predictions,
    mixed,
)

__all__ = [
    "Combiner",
    "Experts",
    "MeanMessenger",
    "Metric",
    "Rows",
    "accuracy",
    "chosen",
    "compare_routing",
    "expert_predictions",
    "fit_combiner",
    "labels_of",
    "mixed",
    "r2",
    "route",
]

HOW = ("hard", "soft")


def route(
    model: Callable,
    gate: Gate,
    x: Tensor,
    how: str = "hard",
    *,
    site: str = "z",
    observed: str = "y",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Predictions (N, ...) of the mixture for rows with covariates ``x`` (N, P).

    :param gate: of :func:`pyro_mixtures.infer.experts.gates.fit_gate`.
    :param how: ``"hard"``, the expert of the gate's most probable part alone; ``"soft"``, the mean
        of all experts weighted by the gate; of scores or logits where these are what the experts
        give.

    Other arguments and errors as in :func:`expert_predictions`.

    >>> import pyro
    >>> from pyro_mixtures.distributions import MixtureWeights
    >>> from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
    >>> def slopes(x, y=None):
    ...     experts = LinearRegressions(x, torch.tensor([[-1.0], [1.0]]), torch.zeros(2), torch.ones(2))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", MixtureWeights(torch.ones(2) / 2))
    ...         return pyro.sample("y", experts[z], obs=y)
    >>> from pyro_mixtures.infer.experts.gates import fit_gate
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> gate = fit_gate(x, torch.tensor([0, 0, 1, 1]), 2)
    >>> route(slopes, gate, torch.tensor([[-3.0], [4.0]]))
    tensor([3., 4.])
    """
    if how not in HOW:
        raise OptionError(f"unknown how={how!r}; choose one of {HOW}")
    x = covariates(x)
    experts = Experts(model, x, site, observed, given)
    check_gate(gate, experts.structure.components)
    parts = experts.chunks(x, chunk)
    if how == "hard":
        return torch.cat([experts.means(part, gate.assign(part).unsqueeze(0))[0] for part in parts])
    return torch.cat([mixed(experts.all_means(part), gate.log_prob(part)) for part in parts])
