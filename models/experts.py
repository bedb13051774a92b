"""Mixtures of any torch modules, with any loss."""

from collections.abc import Callable, Sequence

import pyro
from pyro.nn import PyroModule, PyroModuleList
from torch import Tensor
from torch.nn import Module, Parameter

from pyro_mixtures.distributions.regression.pseudo_likelihoods import (
    Loss,
    PseudoLikelihoods,
    descent_of,
    loss_named,
)
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.models.base import ConditionalMixture
from pyro_mixtures.options import check_whole


class MixtureOfExperts(ConditionalMixture):
    """``z ~ MixtureWeights(weights)``, ``log p(y | x, z) = -loss(experts[z](x), y)``, experts any torch modules.

    :param make: makes one expert, a module from rows (B, P) to outputs (B, ...); called C times.
    :param components: C.
    :param features: P, covariates of a row.
    :param loss: ``"squared"`` (the squared error, not halved), ``"cross_entropy"`` (outputs are
        logits, y classes), or ``loss(output, y)`` with one number a row (B,).
    :param event_shape: shape of one row's outcome, ``()`` for y (B,).
    :param equal_weights: constant, equal weights, as the objective of a hard partition wants them.
    :param leave_one_out_steps: steps by which leave-one-out scores of hard partitions are
        estimated, with ``leave_one_out_rate`` their length; see :class:`PseudoLikelihoods`.
    :raises OptionError: when ``make`` does not make modules of their own, or the loss has an
        unknown name.

    The experts' parameters are Pyro params ``experts.0.<name>``, ...; those with
    ``requires_grad=False`` are constants. Nothing has a closed form but the weights: train by
    ``EM(gradient=..., gradient_steps=...)`` or SVI. Experts must start at different parameters, and
    treat every row by itself: batch normalisation and dropout (but in ``eval()``) would let the
    E-step see other losses than the M-step.

    >>> import torch
    >>> model = MixtureOfExperts(lambda: torch.nn.Linear(5, 1), components=3, features=5, loss="squared")
    >>> model(torch.zeros(7, 5), torch.zeros(7)).shape
    torch.Size([7])
    >>> model.component_distributions(torch.zeros(7, 5)).outputs().shape
    torch.Size([3, 7, 1])
    """

    def __init__(
        self,
        make: Callable[[], Module],
        *,
        components: int,
        features: int,
        loss: str | Loss,
        event_shape: Sequence[int] = (),
        equal_weights: bool = False,
        input_density: float | None = None,
        leave_one_out_steps: int = 5,
        leave_one_out_rate: float | None = None,
    ):
        super().__init__(
            components=components,
            features=features,
            equal_weights=equal_weights,
            input_density=input_density,
        )
        self.loss, self.event_shape = loss_named(loss), _checked_shape(event_shape)
        self.descent = descent_of(leave_one_out_steps, leave_one_out_rate)
        experts = [make() for _ in range(components)]
        for expert in experts:
            if not isinstance(expert, Module) or any(
                isinstance(part, PyroModule) for part in expert.modules()
            ):
                raise OptionError(
                    f"make() gave a {type(expert).__name__}: experts are plain torch modules"
                )
        if len({id(expert) for expert in experts}) < components:
            raise OptionError(
                "make() gave the same module twice: it must make a new one at every call"
            )
        # A PyroModule, so that reading it does not state params under names of another style.
        self.experts = PyroModuleList(experts)

    def component_distributions(self, x: Tensor) -> PseudoLikelihoods:
        return PseudoLikelihoods(
            x,
            list(self.experts),
            loss=self.loss,
            event_shape=self.event_shape,
            leave_one_out_steps=self.descent.steps,
            leave_one_out_rate=self.descent.rate,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """The program: outcomes ``y`` (B, ...) of rows with covariates ``x`` (B, P); losses cannot draw outcomes.

        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        :raises ModelError: without ``y``.
        """
        self._warn_if_shared()
        self._state_params()
        return super().forward(x, y, index, size)

    def _state_params(self) -> None:
        """State the experts' parameters to Pyro; as with all params, values that the store has already are taken."""
        taken: dict[Tensor, Parameter] = {}
        for name, leaf in self.experts.named_parameters():
            if leaf.requires_grad:
                stored = _stated(self._pyro_get_fullname(f"experts.{name}"), leaf)
                if stored is not leaf:
                    taken[leaf] = stored
        if not taken:
            return
        for module in self.experts.modules():
            for name, own in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if own in taken:
                    setattr(module, name, taken[own])


def _checked_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(event_shape, str) or not isinstance(event_shape, Sequence):
        raise OptionError(f"event_shape={event_shape!r} must be a shape, () or (3,) say")
    for size in event_shape:
        check_whole(event_shape=size)
    return tuple(event_shape)


def _stated(name: str, leaf: Parameter) -> Parameter:
    """What Pyro's store holds under ``name``: ``leaf`` itself, unless it was there before."""
    value, store = pyro.param(name, leaf), pyro.get_param_store()
    if value is leaf:
        return leaf
    if store.param_name(value) != name:
        raise ModelError(
            f"a handler replaces param {name!r}, a module's own: give the module other parameters, and no "
            "prior or substitute"
        )
    if not isinstance(value, Parameter):  # loaded from a file
        value = Parameter(value.detach())
        store[name] = value
    return value
