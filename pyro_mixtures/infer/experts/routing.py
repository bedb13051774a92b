"""Predictions for new rows by a fitted mixture of experts and a gate."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.experts.gates import Gate, check_gate
from pyro_mixtures.infer.experts.predictions import Experts, checked_covariates, mix_experts

HOW = ("hard", "soft")


def route(
    model: Callable[..., Any],
    gate: Gate,
    x: Tensor,
    how: str = "hard",
    *,
    site: str = "z",
    observed: str = "y",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Predict the outcomes of rows with covariates ``x`` (N, P) by the experts that a gate selects.

    :param model: the fitted program; see :func:`expert_predictions`.
    :param gate: the result of :func:`~pyro_mixtures.infer.experts.gates.fit_gate`.
    :param x: covariates of the rows.
    :param how: ``"hard"`` takes the expert of the gate's most probable cluster; ``"soft"`` the mean
        of all experts, weighted by the gate. Where experts predict scores or logits, it is a mean
        of these.
    :param site: name of the discrete site.
    :param observed: name of the site of the outcomes.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    :returns: predictions (N, ...).
    :raises OptionError: if ``how`` is unknown, or the gate has another number of clusters than the
        model has components.
    :raises ModelError: if the program is not of the form that :func:`expert_predictions` needs.
    :raises DataError: if there are no rows.

    >>> import pyro
    >>> from pyro_mixtures.distributions import LinearRegressions, MixtureWeights
    >>> from pyro_mixtures.infer import fit_gate
    >>> def slopes(x, y=None):
    ...     slope, bias, scale = torch.tensor([[-1.0], [1.0]]), torch.zeros(2), torch.ones(2)
    ...     experts = LinearRegressions(x, slope, bias, scale)
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", MixtureWeights(torch.ones(2) / 2))
    ...         return pyro.sample("y", experts[z], obs=y)
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> gate = fit_gate(x, torch.tensor([0, 0, 1, 1]), 2)
    >>> route(slopes, gate, torch.tensor([[-3.0], [4.0]]))
    tensor([3., 4.])
    """
    if how not in HOW:
        raise OptionError(f"unknown how={how!r}; choose one of {HOW}")
    x = checked_covariates(x)
    experts = Experts(model, x, site, observed, given)
    check_gate(gate, experts.structure.components)
    predictions = []
    for row_block in experts.chunks(x, chunk):
        if how == "hard":
            predictions.append(experts.means(row_block, gate.assign(row_block).unsqueeze(0))[0])
        else:
            all_means = experts.all_means(row_block)
            predictions.append(mix_experts(all_means, gate.log_prob(row_block)))
    return torch.cat(predictions)
