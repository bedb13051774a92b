"""Params behind the arguments of distributions: found by identity, written in place through their constraint.

The only place that depends on how Pyro stores params: constrained values carry ``.unconstrained()``
(documented in ``pyro.param``), and the store's ``get_state()["constraints"]`` knows each name's
constraint.
"""

from typing import NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_mixtures.errors import ClosedFormError

_EVERYTHING = slice(None)


class ParamHandle(NamedTuple):
    """One param of a program: its unconstrained leaf tensor, and the map that constrains it."""

    name: str
    leaf: Tensor
    constraint: constraints.Constraint

    def write(self, value: Tensor, some: slice = _EVERYTHING) -> None:
        """Set the constrained ``value`` in place, so that modules, optimisers and the store keep their tensor.

        ``some`` are the entries of the first dimension to set, all by default.
        """
        with torch.no_grad():
            new, leaf = transform_to(self.constraint).inv(value.to(self.leaf.dtype)), self.leaf
            leaf = leaf if some == _EVERYTHING else leaf[some]
            if new.numel() != leaf.numel():
                shapes = tuple(leaf.shape), tuple(new.shape)
                raise ClosedFormError(
                    f"param {self.name!r} has shape {shapes[0]}, its closed-form update {shapes[1]}"
                )
            leaf.copy_(new.reshape(leaf.shape))

    def copy_row(self, target: int, source: int) -> None:
        """Give entry ``target`` of the first dimension the value of entry ``source``."""
        with torch.no_grad():
            self.leaf[target] = self.leaf[source]


def leaf_of(value: Tensor) -> Tensor:
    """The unconstrained tensor behind a param's value; other tensors are their own leaf."""
    unconstrained = getattr(value, "unconstrained", None)
    return value if unconstrained is None else unconstrained()


def handle_of(site) -> ParamHandle:
    """The handle of a traced ``param`` site."""
    name = site["name"]
    leaf, store = leaf_of(site["value"]), pyro.get_param_store().get_state()
    if store["params"].get(name) is leaf:
        return ParamHandle(name, leaf, store["constraints"][name])
    # With Pyro's module_local_params the store knows nothing of it, and the statement itself
    # carries the constraint.
    return ParamHandle(name, leaf, site["kwargs"].get("constraint", constraints.real))
