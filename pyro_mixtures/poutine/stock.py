"""Families that stand for stock Pyro distributions such as ``dist.Normal(loc[z], scale[z])``.

``loc[z]`` is a new tensor, so the param behind it cannot be found by identity. But the distribution
under z = 0, ..., C - 1 holds the arguments of every component, and the param that equals them, and
from which they were only indexed, is the one to update.

Some stock distributions have an argument that differs from the family's: a rate or logits instead
of a mean. The family is then built from the argument, and its maximizers are mapped back to it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_mixtures.distributions import (
    Bernoullis,
    Categoricals,
    Components,
    DiagonalNormals,
    Exponentials,
    FactorAnalyzers,
    FullNormals,
    Gammas,
    MixtureWeights,
    Multinomials,
    Poissons,
)
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.poutine.params import ToParam, leaf_of


class StockParam(NamedTuple):
    """The param behind an argument of a stock family."""

    name: str
    to_param: ToParam | None = None  # from the family's argument; None where they are the same


class StockFamily(NamedTuple):
    """A family that stands for a stock distribution, and the params behind its arguments."""

    family: Components
    params: dict[str, StockParam]
    scalar: bool = False  # the site observes numbers, the family vectors of one feature

    def rows(self, value: Tensor) -> Tensor:
        """Return observed rows in the shape that the family takes."""
        return value.unsqueeze(-1) if self.scalar else value


def stock_weights(
    site: str, fn: Any, params: Mapping[str, Tensor]
) -> tuple[MixtureWeights, dict[str, StockParam]]:
    """Return the weights behind a stock Categorical at the discrete site, and their params.

    :raises ClosedFormError: when the distribution is another, or its argument is not one param.
    """
    if not isinstance(fn, dist.Categorical):
        raise ClosedFormError(
            f"site {site!r} is {type(fn).__name__}: EM needs MixtureWeights or Categorical; use SVI"
        )
    errors = []
    for argument in _stored(fn, ("probs", "logits")):
        values = getattr(fn, argument)
        values = values.reshape(-1, values.shape[-1])[0]
        try:
            name = _match(site, argument, values, params, normalized=True)
        except ClosedFormError as error:
            errors.append(error)
            continue
        value = values.detach() if name is None else params[name]
        arguments: dict[str, Any] = {argument: value}
        weights = MixtureWeights(**arguments, validate_args=False)
        return weights, {} if name is None else {argument: StockParam(name)}
    raise errors[0]


def stock_family(
    site: str, all_components: Any, components: int, params: Mapping[str, Tensor]
) -> StockFamily:
    """Return the family behind a stock distribution.

    :param all_components: the site's distribution under z = 0, ..., C - 1 along the leftmost batch
        dimension.
    :param components: C.
    :param params: values of the program's params, by name.
    :raises ClosedFormError: when there is no such family, or the arguments vary by row or are not
        params indexed by z.
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
            f"site {site!r} ({type(base).__name__}, {len(fn.event_shape)} event dimensions) "
            "has no closed-form M-step: use SVI, or pass gradient= to EM"
        )
    family, family_params = build(_Reader(site, fn, base, params))
    scalar = not fn.event_shape and not isinstance(family, Categoricals)
    return StockFamily(family, family_params, scalar)


class _Argument(NamedTuple):
    """An argument of a stock distribution."""

    name: str
    value: Tensor  # the param itself where there is one, else the constant (C, ...)
    shape: torch.Size  # (C, ...)
    param: str | None  # name of the param; None for constants


class _Reader:
    """Reads the arguments of a stock distribution for each component, and finds their params.

    :param fn: the site's distribution, with components along its leftmost batch dimension.
    :param base: the same without ``to_event``.
    """

    def __init__(self, site: str, fn: Any, base: Any, params: Mapping[str, Tensor]):
        self.site, self.base, self.params = site, base, params
        self.batch_dims, self.is_scalar = len(fn.batch_shape), not fn.event_shape

    def __call__(self, *names: str) -> _Argument:
        """Read an argument, or that one of the alternatives which was given."""
        errors = []
        for name in names if len(names) == 1 else _stored(self.base, names):
            try:
                return self._read(name)
            except ClosedFormError as error:
                errors.append(error)
        raise errors[0]

    def _read(self, name: str) -> _Argument:
        values = self._values(name)
        normalized = name in ("probs", "logits") and isinstance(self.base, _NORMALIZED)
        param = _match(self.site, name, values, self.params, normalized=normalized)
        value = values.detach() if param is None else self.params[param]
        return _Argument(name, value, values.shape, param)

    def _values(self, name: str) -> Tensor:
        """Return the values (C, ...) of an argument."""
        tensor: Tensor = getattr(self.base, name)
        for dim in range(1, self.batch_dims):
            if tensor.shape[dim] > 1 and tensor.stride(dim) != 0:
                raise ClosedFormError(
                    f"argument {name!r} of site {self.site!r} varies by row: "
                    "no closed-form M-step; use SVI"
                )
        rows: Any = (0,) * (self.batch_dims - 1)
        return tensor[(slice(None), *rows)]

    def per_component(self, *names: str) -> _Argument:
        """Read an argument of which every component and feature needs its own value.

        :raises ClosedFormError: when components or features share it.
        """
        argument = self(*names)
        if argument.value.numel() != argument.shape.numel():
            raise ClosedFormError(
                f"argument {argument.name!r} of site {self.site!r} has shape "
                f"{tuple(argument.value.shape)}, but its components have {tuple(argument.shape)}: "
                "no closed-form M-step for values that are shared; use SVI, or pass gradient= to EM"
            )
        return argument._replace(value=self.with_features(argument.value))

    def with_features(self, values: Tensor) -> Tensor:
        """Return ``values`` with a dimension of features, (C, D); numbers are one feature."""
        return values.unsqueeze(-1) if self.is_scalar else values


def _stored(base: Any, names: tuple[str, ...]) -> list[str]:
    """Return which of the alternative arguments ``names`` a distribution holds.

    It is the one that was given, and others if they have been computed from it. Only this function
    looks at attributes by which torch stores them.
    """
    holder = getattr(base, "_categorical", base)  # of Multinomial and OneHotCategorical
    return [name for name in names if name in vars(holder)]


# Distributions that normalize their probs or logits.
_NORMALIZED = (
    torch.distributions.Categorical,
    torch.distributions.Multinomial,
    torch.distributions.OneHotCategorical,
)


def _match(
    site: str, argument: str, values: Tensor, params: Mapping[str, Tensor], *, normalized: bool
) -> str | None:
    """Return the name of the param from which ``values`` (C, ...) were indexed.

    :returns: None for constants.
    :raises ClosedFormError: when there is no such param, or several of them.
    """
    if not values.requires_grad:
        return None  # a constant, even if it equals a param
    nodes = _PLAIN
    if normalized:  # by a quotient, or by a difference
        nodes = _PLAIN | {"Div" if argument == "probs" else "Sub"}
    matches = [
        name
        for name, param in params.items()
        if _equal(param, values, normalized and argument == "logits")
        and _is_indexed(values, param, nodes)
    ]
    matches = [name for name in matches if params[name].shape == values.shape] or matches
    if len(matches) > 1:
        raise ClosedFormError(
            f"params {matches} all equal argument {argument!r} of site {site!r}, so it is not "
            "known which one to update: use a family of pyro_mixtures.distributions, or "
            "initialize them differently"
        )
    if not matches:
        raise ClosedFormError(
            f"argument {argument!r} of site {site!r} is computed from params, not one param "
            "indexed by z: use SVI, or pass gradient= to EM"
        )
    return matches[0]


def _equal(param: Tensor, values: Tensor, normalize_logits: bool) -> bool:
    """Whether the param, broadcast to ``values``, equals them up to rounding."""
    rounding = 16 * torch.finfo(values.dtype).eps
    absolute = 0.0
    if normalize_logits:
        if not param.dim() or param.dtype != values.dtype:
            return False
        absolute = rounding * float(param.detach().abs().nan_to_num(posinf=0.0).amax())
        param = param.log_softmax(-1)
    try:
        expanded = param.expand(values.shape)
    except RuntimeError:
        return False
    return expanded.dtype == values.dtype and torch.allclose(
        expanded, values, rtol=rounding, atol=absolute
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
    "ReshapeAlias",
    "Select",
    "Slice",
    "Squeeze",
    "Transpose",
    "UnsafeView",
    "Unsqueeze",
    "View",
}


def _is_indexed(values: Tensor, param: Tensor, nodes: set[str]) -> bool:
    """Whether ``values`` were indexed from the param, rather than computed with the same result.

    :param nodes: names of the backward nodes that are allowed between them.
    """
    # Below the indexing, the graph must continue as the param's own does: with the transform of its
    # constraint, or with its leaf.
    origin: Any = param.grad_fn
    node: Any = values.grad_fn
    while node is not None:
        if origin is not None and node.name() == origin.name():
            return True
        if origin is None and getattr(node, "variable", None) is leaf_of(param):
            return True
        if node.name().split("Backward")[0] not in nodes:
            return False
        node = node.next_functions[0][0]
    return False


def _params(**arguments: _Argument) -> dict[str, StockParam]:
    """Return the params behind arguments of a family."""
    return {
        name: StockParam(argument.param)
        for name, argument in arguments.items()
        if argument.param is not None
    }


# Builders of families.

_Built = tuple[Components, dict[str, StockParam]]


def _diagonal(read: _Reader) -> _Built:
    loc, scale = read("loc"), read("scale")
    value = scale.value if scale.value.dim() else scale.value.reshape(1)
    return DiagonalNormals(loc.value, value, validate_args=False), _params(loc=loc, scale=scale)


def _scalar_normal(read: _Reader) -> _Built:
    loc, scale = read("loc"), read("scale")
    family = DiagonalNormals(
        loc.value.unsqueeze(-1), scale.value.unsqueeze(-1), validate_args=False
    )
    return family, _params(loc=loc, scale=scale)


def _full(read: _Reader) -> _Built:
    loc, tril = read("loc"), read("scale_tril")
    family = FullNormals(loc.value, tril.value, validate_args=False)
    return family, _params(loc=loc, scale_tril=tril)


def _low_rank(read: _Reader) -> _Built:
    loc, factor, noise = read("loc"), read("cov_factor"), read("cov_diag")
    family = FactorAnalyzers(loc.value, factor.value, noise.value, validate_args=False)
    return family, _params(loc=loc, factor=factor, noise=noise)


def _categorical(read: _Reader) -> _Built:
    argument = read("probs", "logits")
    is_logits = argument.name == "logits"
    probs = argument.value.softmax(-1) if is_logits else argument.value
    to_param = _log_probs if is_logits else None
    return Categoricals(probs, validate_args=False), _mapped(argument, "probs", to_param)


def _poisson(read: _Reader) -> _Built:
    rate = read.per_component("rate")
    return Poissons(rate.value, validate_args=False), _mapped(rate, "mean", None)


def _bernoulli(read: _Reader) -> _Built:
    argument = read.per_component("probs", "logits")
    is_logits = argument.name == "logits"
    mean = argument.value.sigmoid() if is_logits else argument.value
    to_param = _logits if is_logits else None
    return Bernoullis(mean, validate_args=False), _mapped(argument, "mean", to_param)


def _exponential(read: _Reader) -> _Built:
    rate = read.per_component("rate")
    family = Exponentials(rate.value.reciprocal(), validate_args=False)
    return family, _mapped(rate, "mean", _reciprocal)


def _gamma(read: _Reader) -> _Built:
    rate, shape = read.per_component("rate"), read("concentration")
    concentration = read.with_features(shape.value)
    family = Gammas(concentration / rate.value, concentration, validate_args=False)
    varies = family.is_per_component("concentration")

    def to_rate(mean: Tensor, block: slice) -> Tensor:
        return (concentration.detach()[block] if varies else concentration.detach()) / mean

    return family, _mapped(rate, "mean", to_rate) | _params(concentration=shape)


def _multinomial(read: _Reader) -> _Built:
    argument = read.per_component("probs", "logits")
    is_logits = argument.name == "logits"
    mean = argument.value.softmax(-1) if is_logits else argument.value
    to_param = _log_probs if is_logits else None
    return Multinomials(mean, validate_args=False), _mapped(argument, "mean", to_param)


def _mapped(argument: _Argument, name: str, to_param: ToParam | None) -> dict[str, StockParam]:
    """Return the param behind a stock argument, as that of the family's argument ``name``."""
    return {} if argument.param is None else {name: StockParam(argument.param, to_param)}


def _reciprocal(mean: Tensor, block: slice) -> Tensor:
    return mean.reciprocal()


def _logits(mean: Tensor, block: slice) -> Tensor:
    return mean.log() - torch.log1p(-mean)


def _log_probs(probs: Tensor, block: slice) -> Tensor:
    """Return finite logits, also of labels that a component has not seen."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


# By the distribution's class (Pyro's subclasses have the names of torch's) and its number of event
# dimensions.
_FAMILIES: dict[tuple[str, int], Callable[[_Reader], _Built]] = {
    ("Normal", 0): _scalar_normal,
    ("Normal", 1): _diagonal,
    ("MultivariateNormal", 1): _full,
    ("LowRankMultivariateNormal", 1): _low_rank,
    ("Categorical", 0): _categorical,
    ("Poisson", 0): _poisson,
    ("Poisson", 1): _poisson,
    ("Bernoulli", 0): _bernoulli,
    ("Bernoulli", 1): _bernoulli,
    ("Exponential", 0): _exponential,
    ("Exponential", 1): _exponential,
    ("Gamma", 0): _gamma,
    ("Gamma", 1): _gamma,
    ("Multinomial", 1): _multinomial,
    ("OneHotCategorical", 1): _multinomial,
}
