"""Params behind the arguments of distributions: found by identity, written in place.

This is the only module that depends on how Pyro stores params: constrained values have a method
``unconstrained()`` (documented in ``pyro.param``), and ``get_state()`` of the param store holds the
constraints by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_mixtures.errors import ClosedFormError

# Computes a param from the argument of a family, given its values for a block of components.
ToParam = Callable[[Tensor, slice], Tensor]

_ALL = slice(None)


class ParamHandle(NamedTuple):
    """One param of a program: its unconstrained leaf tensor, and the map that constrains it."""

    name: str
    leaf: Tensor
    constraint: constraints.Constraint
    to_param: ToParam | None = None  # None where the family's argument is the param itself

    def write(self, value: Tensor, block: slice = _ALL) -> None:
        """Set the param in place, so that modules, optimizers and the store keep their tensor.

        :param value: values of the argument of which this is the param.
        :param block: entries of the first dimension to set, all by default.
        :raises ClosedFormError: when the param has another number of entries.
        """
        with torch.no_grad():
            if self.to_param is not None:
                value = self.to_param(value, block)
            unconstrained = transform_to(self.constraint).inv(value.to(self.leaf.dtype))
            leaf = self.leaf if block == _ALL else self.leaf[block]
            if unconstrained.numel() != leaf.numel():
                raise ClosedFormError(
                    f"param {self.name!r} has shape {tuple(leaf.shape)}, "
                    f"but its closed-form update has shape {tuple(unconstrained.shape)}"
                )
            leaf.copy_(unconstrained.reshape(leaf.shape))

    def copy_row(self, target: int, source: int) -> None:
        """Copy entry ``source`` of the first dimension to entry ``target``."""
        with torch.no_grad():
            self.leaf[target] = self.leaf[source]


def leaf_of(value: Tensor) -> Tensor:
    """Return the unconstrained tensor behind a param's value; other tensors are their own leaf."""
    unconstrained: Callable[[], Tensor] | None = getattr(value, "unconstrained", None)
    return value if unconstrained is None else unconstrained()


def handle_of(site: Any) -> ParamHandle:
    """Return the handle of a traced ``param`` site."""
    name = site["name"]
    leaf, store = leaf_of(site["value"]), pyro.get_param_store().get_state()
    if store["params"].get(name) is leaf:
        return ParamHandle(name, leaf, store["constraints"][name])
    # With Pyro's module_local_params, the store does not hold the param, and the site itself
    # carries the constraint.
    return ParamHandle(name, leaf, site["kwargs"].get("constraint", constraints.real))
