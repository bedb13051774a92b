"""Runs of a model between which its params stay as they are share constrained values and component families."""

from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import Components, Selected
from pyro_mixtures.poutine.params import leaf_of

# What cannot change behind our back.
_IMMUTABLE = (
    bool,
    int,
    float,
    str,
    bytes,
    frozenset,
    torch.Size,
    torch.dtype,
    torch.device,
    type(None),
)
# Arguments that were found valid once are not validated again: no two runs agree on it, and nothing
# depends on it.
_ASIDE = {"_validate_args"}


class Stamp(NamedTuple):
    """A tensor, by its unconstrained leaf, and the version it had."""

    leaf: Tensor
    version: int

    @property
    def fresh(self) -> bool:
        """Whether the tensor is unmodified since."""
        return self.leaf._version == self.version


class ReuseMessenger(Messenger):
    """Hands a run the constrained param values and component families of an earlier run, if they are the same still.

    A family keeps its factorised covariances, so that an E-step, its statistics and all batches of
    a data set compute them once. A param is the same while its unconstrained tensor is, unmodified
    since (by torch's version counter). A family is the same while all that it was made of is:
    arguments, covariates, options. Only for runs without gradients: nothing is handed on while they
    are recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, tuple[Stamp, Tensor]] = {}
        self._families: dict[str, tuple[dict[str, Any], Components]] = {}

    def _pyro_param(self, msg) -> None:
        known = self._values.get(msg["name"])
        if known is None or torch.is_grad_enabled():
            return
        stamp, value = known
        if (
            pyro.get_param_store().get_state()["params"].get(msg["name"]) is stamp.leaf
            and stamp.fresh
        ):
            msg["value"], msg["done"] = value, True

    def _pyro_post_param(self, msg) -> None:
        if not torch.is_grad_enabled():
            self._values[msg["name"]] = _stamp(leaf_of(msg["value"])), msg["value"]

    def _pyro_sample(self, msg) -> None:
        fn = msg["fn"]
        if not isinstance(fn, Selected) or torch.is_grad_enabled():
            return
        made_of, family = self._families.get(msg["name"], ({}, None))
        parts = _parts(fn.family)
        if family is None or type(family) is not type(fn.family) or not _same(made_of, parts):
            self._families[msg["name"]] = parts, fn.family
        else:
            msg["fn"] = fn.of_family(family)


def _stamp(leaf: Tensor) -> Stamp:
    return Stamp(leaf, leaf._version)


def _parts(family: Components) -> dict[str, Any]:
    """All that a family was made of, tensors as stamps. Taken as it is made, before it computes anything to keep."""
    parts = {**vars(family), **family.arguments}
    return {
        name: _stamp(leaf_of(part)) if isinstance(part, Tensor) else part
        for name, part in parts.items()
        if name not in _ASIDE
    }


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return old.keys() == new.keys() and all(
        _unchanged(old[name], part) for name, part in new.items()
    )


def _unchanged(old: Any, new: Any) -> bool:
    if isinstance(old, Stamp) and isinstance(new, Stamp):
        return old.leaf is new.leaf and old.fresh
    # Lists, modules, functions may hold what has changed: such a family is made anew.
    return isinstance(new, _IMMUTABLE) and type(old) is type(new) and old == new
