"""Reuse of constrained params and component families between runs with unchanged params."""

from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import Components, Selected
from pyro_mixtures.poutine.params import leaf_of

# Options of these types cannot change in place.
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
# The first run validates arguments and later runs do not; nothing else depends on it.
_IGNORED = {"_validate_args"}


class Stamp(NamedTuple):
    """The unconstrained leaf of a tensor, and its version at some time."""

    leaf: Tensor
    version: int | None  # None for tensors of torch.inference_mode(), which have none

    @property
    def is_current(self) -> bool:
        """Whether the tensor has not been modified since."""
        return self.version is not None and self.leaf._version == self.version


class ReuseMessenger(Messenger):
    """Gives a run the constrained params and component families of an earlier run, if still valid.

    A family keeps its factorized covariances, so an E-step, its statistics, and all batches of a
    data set compute them once. A param is valid while the store holds the same unconstrained
    tensor, unmodified (by torch's version counter). A family is valid while its arguments,
    covariates and options are the same. Nothing is reused while gradients are recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, tuple[Stamp, Tensor]] = {}
        self._families: dict[str, tuple[dict[str, Any], Components]] = {}

    def _pyro_param(self, msg: Any) -> None:
        stored = self._values.get(msg["name"])
        if stored is None or torch.is_grad_enabled():
            return
        stamp, value = stored
        if (
            pyro.get_param_store().get_state()["params"].get(msg["name"]) is stamp.leaf
            and stamp.is_current
        ):
            msg["value"], msg["done"] = value, True

    def _pyro_post_param(self, msg: Any) -> None:
        if not torch.is_grad_enabled():
            self._values[msg["name"]] = _stamp(leaf_of(msg["value"])), msg["value"]

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not isinstance(fn, Selected) or torch.is_grad_enabled():
            return
        old_inputs, family = self._families.get(msg["name"], ({}, None))
        inputs = _inputs(fn.family)
        if family is None or type(family) is not type(fn.family) or not _same(old_inputs, inputs):
            self._families[msg["name"]] = inputs, fn.family
        else:
            msg["fn"] = fn.of_family(family)


def _stamp(leaf: Tensor) -> Stamp:
    return Stamp(leaf, None if leaf.is_inference() else leaf._version)


def _inputs(family: Components) -> dict[str, Any]:
    """Return the inputs of a new family by name, with stamps in place of tensors.

    A family that has just been built has computed nothing yet, so all its attributes are inputs.
    """
    inputs = {**vars(family), **family.arguments}
    return {
        name: _stamp(leaf_of(value)) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if name not in _IGNORED
    }


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return old.keys() == new.keys() and all(
        _unchanged(old[name], value) for name, value in new.items()
    )


def _unchanged(old: Any, new: Any) -> bool:
    if isinstance(old, Stamp) and isinstance(new, Stamp):
        return old.leaf is new.leaf and old.is_current
    # Lists, modules and functions may have changed in place: such a family is built again.
    return isinstance(new, _IMMUTABLE) and type(old) is type(new) and old == new
