"""New data sets from draws of the posterior, and draws from the prior."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Draw, Model
from pyro_mixtures.diagnostics.arviz_io.handlers import SetLatentsMessenger
from pyro_mixtures.diagnostics.arviz_io.program import to_numpy
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer import sample
from pyro_mixtures.options import check_whole


def predictive_numbers(chains: Chains, count: int) -> np.ndarray:
    """Return the number of the draw for each of ``count`` new data sets per chain.

    The draws are evenly spaced. A chain with one draw, a point estimate, gives all data sets.

    :raises OptionError: if ``count`` is not positive, or larger than the number of several draws.
    """
    check_whole(posterior_predictive=count)
    draws = chains.shape[1]
    if draws == 1:
        return np.zeros(count, dtype=int)
    if count > draws:
        raise OptionError(
            f"posterior_predictive={count}, but a chain has {draws} draws: "
            "request at most one data set per draw"
        )
    return np.arange(count) * draws // count


def predictive_draws(
    chains: Chains, numbers: np.ndarray, sites: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Return new values (chain, draw, N, ...) of observed sites, a data set per draw number."""
    _check_sampleable(chains, sites)
    selected = [chain[number] for chain in chains.draws for number in numbers]
    data_sets = [sample(_with_latents(draw), *chains.rows) for draw in selected]
    return {name: _stack(data_sets, name, (len(chains.draws), len(numbers))) for name in sites}


def prior_draws(
    chains: Chains, count: int, sites: Mapping[str, Tensor]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw latent and observed sites (1, count, ...) from the program itself.

    :raises OptionError: if the program has no latent sites other than z.
    """
    check_whole(prior=count)
    latent = chains.structure.latent
    if not latent:
        raise OptionError(
            f"prior={count}, but {chains.structure.site!r} is the only latent site: params have "
            "no prior"
        )
    _check_sampleable(chains, sites)
    draws = [sample(chains.all[0].model, *chains.rows) for _ in range(count)]
    return (
        {name: _stack(draws, name, (1, count)) for name in latent},
        {name: _stack(draws, name, (1, count)) for name in sites},
    )


def _with_latents(draw: Draw) -> Model:
    """The draw's program with its latent sites set but not observed.

    ``sample`` would draw observed sites again.
    """

    def model(*rows: Tensor) -> Any:
        with SetLatentsMessenger(draw.latents):
            return draw.model(*rows)

    return model


def _stack(draws: list[dict[str, Tensor]], name: str, shape: tuple[int, int]) -> np.ndarray:
    values = np.stack([to_numpy(draw[name]) for draw in draws])
    return values.reshape(*shape, *values.shape[1:])


def _check_sampleable(chains: Chains, sites: Mapping[str, Tensor]) -> None:
    factors = sorted(set(chains.structure.observed) - set(sites))
    if factors or not sites:
        raise ModelError(
            f"the likelihood has factors {factors}, which cannot be sampled: observe a distribution"
        )
