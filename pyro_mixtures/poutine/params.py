"""Params behind the arguments of distributions: found by identity, written in place through their constraint.

The only place that depends on how Pyro stores params: constrained values carry ``.unconstrained()`` (documented in
``pyro.param``), and the store's ``get_state()["constraints"]`` knows each name's constraint.
"""

from typing import NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_mixtures.errors import ClosedFormError


class ParamHandle(NamedTuple):
    """One param of a program: its unconstrained leaf tensor, and the map that constrains it."""

    name: str
    leaf: Tensor
    constraint: constraints.Constraint

    def write(self, value: Tensor) -> None:
        """Set the constrained ``value`` in place, so that modules, optimisers and the store keep their tensor."""
        with torch.no_grad():
            new = transform_to(self.constraint).inv(value.to(self.leaf.dtype))
            if new.numel() != self.leaf.numel():
                shapes = tuple(self.leaf.shape), tuple(new.shape)
                raise ClosedFormError(f"param {self.name!r} has shape {shapes[0]}, its closed-form update {shapes[1]}")
            self.leaf.copy_(new.reshape(self.leaf.shape))


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
    # With Pyro's module_local_params the store knows nothing of it, and the statement itself carries the constraint.
    return ParamHandle(name, leaf, site["kwargs"].get("constraint", constraints.real))
