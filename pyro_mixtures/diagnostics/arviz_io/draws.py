"""What the program of each draw says of rows: evidence, log prior, new data sets."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Draw
from pyro_mixtures.diagnostics.arviz_io.program import array, log_prior
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer import sample
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.options import check_whole


class Scores(NamedTuple):
    """What the rows say of each draw."""

    terms: dict[str, np.ndarray]  # (chain, draw, n) log evidence by row weight, in nats, by name
    lp: np.ndarray  # (chain, draw) log evidence of all rows, by row weight, plus the log prior
    counted: np.ndarray  # (N,) which rows the n are: those of positive weight under some draw

    def best(self, chains: Chains) -> Draw:
        """The draw of the largest log joint, the first of equals."""
        return chains.all[int(np.argmax(np.nan_to_num(self.lp, nan=-np.inf)))]


def score(
    chains: Chains,
    observed: Mapping[str, Tensor],
    *,
    by_site: bool,
    truncated: bool,
    chunk: int | None,
) -> Scores:
    """Evaluate every draw on all rows; with ``by_site`` each observed site by itself, too."""

    counted = np.zeros(len(chains.rows[0]), dtype=bool)

    def terms(handled: Callable[[Callable], Callable]) -> np.ndarray:
        found = [
            _evidence(chains, draw, handled(draw.model), truncated, chunk, counted)
            for draw in chains.all
        ]
        stacked = np.stack(found)
        return (stacked if counted.all() else stacked[:, counted]).reshape(*chains.shape, -1)

    joint = terms(lambda model: model)
    prior = [
        log_prior(draw.model, chains.structure, chains.rows, draw.given) for draw in chains.all
    ]
    lp = joint.sum(-1, dtype=np.float64) + np.reshape(prior, chains.shape)
    if not by_site or len(observed) == 1:
        return Scores({"_".join(observed) or "evidence": joint}, lp, counted)
    others = {name: frozenset(chains.structure.observed) - {name} for name in observed}
    return Scores(
        {name: terms(_SilenceMessenger(rest)) for name, rest in others.items()}, lp, counted
    )


def predictive_numbers(chains: Chains, count: int) -> np.ndarray:
    """Numbers of the draws that ``count`` new data sets of a chain come from: evenly spread, or all from the one point.

    :raises OptionError: when ``count`` is not positive, or more than there are draws and not
        points.
    """
    check_whole(posterior_predictive=count)
    draws = chains.shape[1]
    if draws == 1:
        return np.zeros(count, dtype=int)
    if count > draws:
        raise OptionError(
            f"posterior_predictive={count}, but a chain has {draws} draws: ask for no more data sets"
        )
    return np.arange(count) * draws // count


def predictive(
    chains: Chains, numbers: np.ndarray, sites: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """New values (chain, draw, N, ...) of the observed ``sites``, a data set for each of the draws' ``numbers``."""
    _check_drawable(chains, sites)
    picked = [chain[number] for chain in chains.draws for number in numbers]
    found = [sample(_held(draw), *chains.rows) for draw in picked]
    return {name: _stacked(found, name, (len(chains.draws), len(numbers))) for name in sites}


def prior_draws(
    chains: Chains, count: int, sites: Mapping[str, Tensor]
) -> tuple[dict[str, np.ndarray], ...]:
    """Latent and observed sites (1, count, ...) drawn from the program itself.

    :raises OptionError: when the program has no priors.
    """
    check_whole(prior=count)
    latent = chains.structure.latent
    if not latent:
        raise OptionError(
            f"prior={count}, but {chains.structure.site!r} is the only latent site: params have no prior"
        )
    _check_drawable(chains, sites)
    found = [sample(chains.all[0].model, *chains.rows) for _ in range(count)]
    return tuple(
        {name: _stacked(found, name, (1, count)) for name in names} for names in (latent, sites)
    )


def _evidence(
    chains: Chains,
    draw: Draw,
    model: Callable,
    truncated: bool,
    chunk: int | None,
    counted: np.ndarray,
) -> np.ndarray:
    """Log evidence (N,) of all that each row stands for; notes in ``counted`` which rows stand for something."""
    guide, site = draw.guide if truncated else None, chains.structure.site
    found, start = [], 0
    for posterior, part in posteriors(model, chains.rows, guide, site, draw.given, chunk):
        weight = posterior.row_weight
        found.append(
            torch.where(weight > 0, weight * posterior.log_evidence, 0.0).to(
                posterior.log_evidence.dtype
            )
        )
        counted[start : start + len(part[0])] |= (weight > 0).cpu().numpy()
        start += len(part[0])
    return array(torch.cat(found))


def _held(draw: Draw) -> Callable:
    """The draw's program with its latent sites in place, not observed: ``sample`` releases what is observed."""

    def model(*rows: Tensor) -> Any:
        with _HoldMessenger(draw.given):
            return draw.model(*rows)

    return model


def _stacked(found: list[dict[str, Tensor]], name: str, lead: tuple[int, int]) -> np.ndarray:
    values = np.stack([array(values[name]) for values in found])
    return values.reshape(*lead, *values.shape[1:])


def _check_drawable(chains: Chains, sites: Mapping[str, Tensor]) -> None:
    factors = sorted(set(chains.structure.observed) - set(sites))
    if factors or not sites:
        raise ModelError(
            f"the likelihood has factors {factors}, from which nothing can be drawn: observe a distribution"
        )


class _SilenceMessenger(Messenger):
    """Takes some observed sites out of the likelihood."""

    def __init__(self, sites: frozenset[str]):
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.sites:
            msg["mask"] = False


class _HoldMessenger(Messenger):
    """Gives latent sites their values, without observing them."""

    def __init__(self, values: Mapping[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
