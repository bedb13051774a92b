"""The number of free parameters of a program: the directions that its likelihood depends on."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro.distributions import MaskedDistribution, constraints
from torch import Tensor

from pyro_mixtures.distributions import MixtureWeights, Selected
from pyro_mixtures.distributions.components import Components
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.poutine import Posterior, read_structure
from pyro_mixtures.poutine.params import handle_of, leaf_of
from pyro_mixtures.poutine.statistics import SiteStatistics, collect_statistics


class FreeParameters:
    """The free params of one run of a program, and the families that take them as arguments.

    :param model: the Pyro program.
    :param rows: its tensor arguments; one row is enough.
    :param freeze: names of params that do not count.
    :raises OptionError: if ``freeze`` names a param that the model does not have.
    """

    def __init__(self, model: Callable[..., Any], rows: tuple[Tensor, ...], freeze: frozenset[str]):
        with pyro.poutine.block(), torch.no_grad():
            self.nodes: dict[str, Any] = dict(pyro.poutine.trace(model).get_trace(*rows).nodes)
        params = [handle_of(node) for node in self.nodes.values() if node["type"] == "param"]
        unknown = sorted(freeze - {param.name for param in params})
        if unknown:
            raise OptionError(
                f"freeze={unknown}: the model has no such params; it has "
                f"{[param.name for param in params]}"
            )
        # By tensor, so that a param with two names counts once.
        self.free_params = {
            id(param.leaf): param
            for param in params
            if param.leaf.requires_grad and param.name not in freeze
        }

    def components(self, site: str) -> int:
        """Return the number of components of the discrete site."""
        return len(self.nodes[site]["fn"].enumerate_support(expand=False))

    def count(self) -> int:
        """Return the number of directions that the likelihood can depend on."""
        declared = sum(
            _dimension(param.constraint, param.leaf) for param in self.free_params.values()
        )
        return declared - sum(
            self._redundant(node["fn"]) for node in self.nodes.values() if node["type"] == "sample"
        )

    def dropped(self, site: str, counts: Tensor) -> Tensor:
        """Return which components (C,) have weight zero.

        :param counts: expected rows (C,). Weights may depend on covariates, so that weight zero in
            one row does not suffice.
        """
        weights = _unmasked(self.nodes[site]["fn"])
        if isinstance(weights, ComponentWeights):
            log_weights = weights.log_prob(weights.enumerate_support())
            return log_weights.isneginf().reshape(len(counts), -1).all(1) & (counts == 0)
        probs = getattr(weights, "probs", None)
        if probs is None or probs.shape[-1] != len(counts):
            return torch.zeros_like(counts, dtype=torch.bool)
        # torch replaces probabilities of zero by the smallest number next to 1: rows near such a
        # component have small responsibilities.
        negligible = torch.finfo(probs.dtype).eps ** 0.5 * counts.sum()
        return (probs == 0).reshape(-1, len(counts)).all(0) & (counts <= negligible)

    def count_dropped(
        self, site: str, dropped: Tensor, stock_sites: Mapping[str, SiteStatistics]
    ) -> int:
        """Return how many of the parameters that :meth:`count` counts belong to dropped components.

        A param counts if any site uses it for all components together.

        :param site: name of the discrete site.
        :param dropped: (C,) components of weight zero.
        :param stock_sites: families of the stock distributions, and the params behind them.
        """
        remaining = ~dropped
        numbers: dict[int, int] = {}  # of dropped components, by param
        redundant = 0
        for name, node in self.nodes.items():
            if node["type"] != "sample":
                continue
            fn = _unmasked(node["fn"])
            family = fn.family if isinstance(fn, Selected) else fn
            if isinstance(family, Components | ComponentWeights):
                leaves = {name: leaf_of(value) for name, value in family.arguments.items()}
            elif name in stock_sites:
                family = stock_sites[name].family
                leaves = {name: param.leaf for name, param in stock_sites[name].params.items()}
            else:
                continue
            for argument, leaf in leaves.items():
                if id(leaf) in self.free_params:
                    own = self._numbers_of(family, argument, leaf, dropped)
                    numbers[id(leaf)] = min(own, numbers.get(id(leaf), own))
            if isinstance(family, Components) and len(family.batch_shape) == 1:
                free = self._free_arguments(family)
                redundant += family.redundant(free) - _select(family, remaining).redundant(free)
        return sum(numbers.values()) - redundant

    def _numbers_of(
        self, family: Components | ComponentWeights, argument: str, leaf: Tensor, dropped: Tensor
    ) -> int:
        """Return the number of directions in which ``dropped`` components can move an argument."""
        n_dropped = int(dropped.sum())
        if isinstance(family, ComponentWeights):
            # The first dimension is that of components, less the reference component of a gate.
            weights_differ_by_row = isinstance(family, MixtureWeights) and leaf.dim() > 1
            return 0 if weights_differ_by_row else n_dropped * leaf[0].numel()
        per_component = len(family.batch_shape) == 1 and family.is_per_component(argument)
        if not per_component or leaf.shape[0] != family.components:
            return 0
        constraint = self.free_params[id(leaf)].constraint
        return _dimension(constraint, leaf) - _dimension(constraint, leaf[~dropped])

    def _redundant(self, fn: Any) -> int:
        """Return in how many directions a site's params can move without changing its densities."""
        distribution = _unmasked(fn)
        family = distribution.family if isinstance(distribution, Selected) else distribution
        if not isinstance(family, Components | ComponentWeights):
            return 0
        return family.redundant(self._free_arguments(family))

    def _free_arguments(self, family: Components | ComponentWeights) -> frozenset[str]:
        return frozenset(
            name
            for name, argument in family.arguments.items()
            if id(leaf_of(argument)) in self.free_params
        )


def stock_statistics(
    model: Callable[..., Any], site: str, rows: tuple[Tensor, ...], posterior: Posterior
) -> dict[str, SiteStatistics]:
    """Find the families of stock distributions with a closed form, and the params behind them.

    :param site: name of the discrete site.
    :param rows: the model's tensor arguments.
    :param posterior: q(z) of these rows.
    :returns: families and params by site, without sums.
    """
    structure = read_structure(model, site, tuple(tensor[:1] for tensor in rows), {})
    sites: dict[str, SiteStatistics] = {}
    for name in structure.observed:
        skip = frozenset(structure.observed) - {name}
        with suppress(ClosedFormError), torch.enable_grad():  # stock params are found by gradients
            sites |= collect_statistics(
                model, structure, posterior, rows, {}, skip=skip, bind_only=True
            ).sites
    return sites


def _unmasked(fn: Any) -> Any:
    return fn.base_dist if isinstance(fn, MaskedDistribution) else fn


def _select(family: Components, components: Tensor) -> Components:
    """Return some components of a family of batch shape (C,)."""
    return family.with_arguments(
        {
            name: tensor[components] if family.is_per_component(name) else tensor
            for name, tensor in family.arguments.items()
        }
    )


def _dimension(constraint: Any, leaf: Tensor) -> int:
    """Return the dimension of the set of values that the constraint allows."""
    if isinstance(constraint, constraints.independent):
        return _dimension(constraint.base_constraint, leaf)
    last = leaf.shape[-1] if leaf.dim() else 1
    dimensions = _EVENT_DIMENSIONS.get(type(constraint))
    if dimensions is None:
        return leaf.numel()
    numbers, dimension = dimensions(last)
    return leaf.numel() // numbers * dimension


def _vector(size: int) -> tuple[int, int]:
    return size, size - 1


def _triangle(size: int) -> tuple[int, int]:
    return size * size, size * (size + 1) // 2


def _strict_triangle(size: int) -> tuple[int, int]:
    return size * size, size * (size - 1) // 2


# Of an event whose last dimension is n: how many numbers it has, and the dimension of its set.
_EVENT_DIMENSIONS: dict[type, Callable[[int], tuple[int, int]]] = {
    type(constraints.simplex): _vector,
    type(constraints.sphere): _vector,
    type(constraints.lower_cholesky): _triangle,
    type(constraints.positive_definite): _triangle,
    type(constraints.softplus_lower_cholesky): _triangle,
    type(constraints.unit_lower_cholesky): _strict_triangle,
}
