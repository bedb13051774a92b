"""Runs of a model between which its params stay as they are share constrained values and component families."""

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import Components, Selected
from pyro_mixtures.poutine.params import leaf_of

Stamp = tuple[Tensor, int]


class ReuseMessenger(Messenger):
    """Hands a run the constrained param values and component families of an earlier run, if they are the same still.

    A family keeps its factorised covariances, so that an E-step, its statistics and all batches of a data set compute
    them once. A param is the same while its unconstrained tensor is, unmodified since (by torch's version counter).
    Only for runs without gradients: nothing is handed on while they are recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, tuple[Stamp, Tensor]] = {}
        self._families: dict[str, tuple[list[Stamp], Components]] = {}

    def _pyro_param(self, msg) -> None:
        known = self._values.get(msg["name"])
        if known is None or torch.is_grad_enabled():
            return
        stamp, value = known
        if pyro.get_param_store().get_state()["params"].get(msg["name"]) is stamp[0] and _is_fresh(stamp):
            msg["value"], msg["done"] = value, True

    def _pyro_post_param(self, msg) -> None:
        if not torch.is_grad_enabled():
            self._values[msg["name"]] = _stamp(leaf_of(msg["value"])), msg["value"]

    def _pyro_sample(self, msg) -> None:
        fn = msg["fn"]
        if not isinstance(fn, Selected) or torch.is_grad_enabled():
            return
        stamps, family = self._families.get(msg["name"], ([], None))
        given = [leaf_of(argument) for argument in fn.family.arguments.values()]
        if family is None or not _same(stamps, given) or type(family) is not type(fn.family):
            self._families[msg["name"]] = [_stamp(leaf) for leaf in given], fn.family
        else:
            msg["fn"] = fn.of_family(family)


def _stamp(leaf: Tensor) -> Stamp:
    return leaf, leaf._version


def _is_fresh(stamp: Stamp) -> bool:
    return stamp[0]._version == stamp[1]


def _same(stamps: list[Stamp], leaves: list[Tensor]) -> bool:
    return len(stamps) == len(leaves) and all(
        stamp[0] is leaf and _is_fresh(stamp) for stamp, leaf in zip(stamps, leaves, strict=True)
    )
