"""Stock Pyro distributions with plain torch indexing (``dist.Normal(loc[z], scale[z])``) read as component families.

``loc[z]`` is a new tensor, so identity is lost; but the distribution under z = 0, ..., C - 1 holds
every component's parameters, and the param that equals them, value for value, is the one that was
indexed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_mixtures.distributions import (
    Categoricals,
    Components,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    MixtureWeights,
)
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.poutine.params import leaf_of


class StockFamily(NamedTuple):
    """A family that stands for a stock distribution, and the names of the params behind its arguments."""

    family: Components
    params: dict[str, str]
    scalar: bool = False  # the site observes numbers, the family vectors of one feature

    def rows(self, value: Tensor) -> Tensor:
        """Observed rows as the family takes them."""
        return value.unsqueeze(-1) if self.scalar else value


def stock_weights(
    site: str, fn: Any, params: Mapping[str, Tensor]
) -> tuple[MixtureWeights, dict[str, str]]:
    """The weights behind a stock Categorical at the discrete site."""
    if not isinstance(fn, dist.Categorical):
        raise ClosedFormError(
            f"site {site!r} is {type(fn).__name__}: EM needs MixtureWeights or Categorical; use SVI"
        )
    probs = fn.probs.reshape(-1, fn.probs.shape[-1])[0]
    name = _match(site, "probs", probs, params)
    if name is None:
        return MixtureWeights(probs.detach(), validate_args=False), {}
    return MixtureWeights(params[name], validate_args=False), {"probs": name}


def stock_family(
    site: str, all_components: Any, components: int, params: Mapping[str, Tensor]
) -> StockFamily:
    """The family behind a stock distribution.

    :param all_components: the site's distribution under z = 0, ..., C - 1 along the leftmost batch
        dimension.
    :raises ClosedFormError: when there is no such family, or the parameters vary by row.
    """
    fn = (
        all_components.base_dist
        if isinstance(all_components, MaskedDistribution)
        else all_components
    )
    base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
    build = _FAMILIES.get((type(base).__name__, len(fn.event_shape)))
    if build is None or not fn.batch_shape or fn.batch_shape[0] != components:
        raise ClosedFormError(
            f"site {site!r} ({type(base).__name__}, {len(fn.event_shape)} event dimensions) has no closed-form M-step: "
            "use SVI, or pass gradient= to EM"
        )
    family, names = build(_Reader(site, fn, base, params))
    return StockFamily(
        family, names, scalar=not fn.event_shape and not isinstance(family, Categoricals)
    )


class _Reader:
    """Reads arguments of a stock distribution per component and finds the params behind them."""

    def __init__(self, site: str, fn: Any, base: Any, params: Mapping[str, Tensor]):
        self.site, self.base, self.params = site, base, params
        self.batch = len(fn.batch_shape)

    def __call__(self, argument: str) -> tuple[Tensor, str | None]:
        """The argument's values (C, ...), as the matching param where there is one."""
        tensor = getattr(self.base, argument)
        for dim in range(1, self.batch):
            if tensor.shape[dim] > 1 and tensor.stride(dim) != 0:
                raise ClosedFormError(
                    f"argument {argument!r} of site {self.site!r} varies by row: no closed-form M-step; use SVI"
                )
        values = tensor[(slice(None), *(0,) * (self.batch - 1))]
        name = _match(self.site, argument, values, self.params)
        return (values.detach(), None) if name is None else (self.params[name], name)


def _match(site: str, argument: str, values: Tensor, params: Mapping[str, Tensor]) -> str | None:
    if not values.requires_grad:
        return None  # a constant, whatever it happens to equal
    found = [
        name
        for name, value in params.items()
        if _equal(value, values) and _is_indexed(values, value, argument)
    ]
    exact = [name for name in found if params[name].shape == values.shape] or found
    if len(exact) > 1:
        raise ClosedFormError(
            f"params {exact} all equal argument {argument!r} of site {site!r}, so the one to update is not known: "
            "use a family of pyro_mixtures.distributions, or initialise them differently"
        )
    if not exact and values.requires_grad:
        raise ClosedFormError(
            f"argument {argument!r} of site {site!r} is computed from params, not one param indexed by z: use SVI, or "
            "pass gradient= to EM"
        )
    return exact[0] if exact else None


def _equal(param: Tensor, values: Tensor) -> bool:
    try:
        full = param.expand(values.shape)
    except RuntimeError:
        return False
    # Categorical renormalises its probabilities, so a few rounding errors are allowed.
    return full.dtype == values.dtype and torch.allclose(
        full, values, rtol=16 * torch.finfo(values.dtype).eps, atol=0
    )


# Backward nodes of plain indexing, and of the broadcasting that distributions and plates do.
_PLAIN = {
    "Alias",
    "Clone",
    "Expand",
    "Index",
    "IndexSelect",
    "Permute",
    "Reshape",
    "Select",
    "Slice",
    "Squeeze",
}
_PLAIN |= {"ReshapeAlias", "Transpose", "UnsafeView", "Unsqueeze", "View"}


def _is_indexed(values: Tensor, param: Tensor, argument: str) -> bool:
    """Whether ``values`` are the param indexed by z, and not a function of it that has the same value just now."""
    plain = _PLAIN | {"Div"} if argument == "probs" else _PLAIN  # Categorical normalises
    # Below the indexing the graph must go on as the param's own does: with its constraint's
    # transform, or its leaf.
    own, node = param.grad_fn, values.grad_fn
    while node is not None:
        if (
            node.name() == own.name()
            if own is not None
            else getattr(node, "variable", None) is leaf_of(param)
        ):
            return True
        if node.name().split("Backward")[0] not in plain:
            return False
        node = node.next_functions[0][0]
    return False


def _names(**found: str | None) -> dict[str, str]:
    return {argument: name for argument, name in found.items() if name is not None}


def _diagonal(read: _Reader):
    (loc, loc_name), (scale, scale_name) = read("loc"), read("scale")
    scale = scale if scale.dim() else scale.reshape(1)
    return DiagonalNormals(loc, scale, validate_args=False), _names(loc=loc_name, scale=scale_name)


def _scalar_normal(read: _Reader):
    (loc, loc_name), (scale, scale_name) = read("loc"), read("scale")
    family = DiagonalNormals(loc.unsqueeze(-1), scale.unsqueeze(-1), validate_args=False)
    return family, _names(loc=loc_name, scale=scale_name)


def _full(read: _Reader):
    (loc, loc_name), (tril, tril_name) = read("loc"), read("scale_tril")
    return FullNormals(loc, tril, validate_args=False), _names(loc=loc_name, scale_tril=tril_name)


def _low_rank(read: _Reader):
    (loc, loc_name), (factor, factor_name), (noise, noise_name) = (
        read("loc"),
        read("cov_factor"),
        read("cov_diag"),
    )
    names = _names(loc=loc_name, factor=factor_name, noise=noise_name)
    return FactorAnalyzers(loc, factor, noise, validate_args=False), names


def _categorical(read: _Reader):
    probs, name = read("probs")
    return Categoricals(probs, validate_args=False), _names(probs=name)


# By the distribution's class (Pyro subclasses torch's under the same names) and number of event
# dimensions.
_FAMILIES: dict[tuple[str, int], Callable[[_Reader], tuple[Components, dict[str, str]]]] = {
    ("Normal", 0): _scalar_normal,
    ("Normal", 1): _diagonal,
    ("MultivariateNormal", 1): _full,
    ("LowRankMultivariateNormal", 1): _low_rank,
    ("Categorical", 0): _categorical,
}
