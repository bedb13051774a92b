"""Mixtures of experts that are torch modules, with any loss."""

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
    """Model outcomes by ``log p(y | x, z) = -loss(experts[z](x), y)``, experts being torch modules.

    The experts' parameters are the Pyro params ``experts.0.<name>``, ...; those with
    ``requires_grad=False`` are constants. Only the weights have a closed-form M-step: train by
    ``EM(gradient=..., gradient_steps=...)`` or by SVI. Experts must start at different parameters,
    and their output for a row must not depend on other rows or on randomness: with batch
    normalization or dropout (unless in ``eval()`` mode), the E-step and the M-step would see
    different losses.

    :param make: makes one expert, a module from rows (B, P) to outputs (B, ...); called C times.
    :param components: C.
    :param features: P, the number of covariates.
    :param loss: ``"squared"`` (the squared error, not halved), ``"cross_entropy"`` (outputs are
        logits, y classes), or a function ``loss(output, y)`` that returns one number per row (B,).
    :param event_shape: shape of one row's outcome, ``()`` for y (B,).
    :param equal_weights: whether the weights are constant and equal, so that they do not enter the
        objective of a hard partition.
    :param input_density: None, or the weight of the distance between covariates and the location
        of their expert; see :class:`ConditionalMixture`.
    :param leave_one_out_steps: number of gradient steps that estimate the leave-one-out scores of
        hard partitions; see :class:`PseudoLikelihoods`.
    :param leave_one_out_rate: step size of these steps.
    :raises OptionError: when ``make`` does not return distinct modules, or an option has an
        impossible value.

    >>> import torch
    >>> make = lambda: torch.nn.Linear(5, 1)
    >>> model = MixtureOfExperts(make, components=3, features=5, loss="squared")
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
                isinstance(module, PyroModule) for module in expert.modules()
            ):
                raise OptionError(
                    f"make() returned a {type(expert).__name__}: "
                    "experts must be plain torch modules"
                )
        if len({id(expert) for expert in experts}) < components:
            raise OptionError(
                "make() returned the same module twice: it must make a new one at every call"
            )
        # With a plain ModuleList, reading the attribute would register params under other names.
        self.experts = PyroModuleList(experts)

    def component_distributions(self, x: Tensor) -> PseudoLikelihoods:
        """Return the C pseudo-likelihoods of the outcome given covariates ``x`` (B, P)."""
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
        row_weight: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Run the program: observe outcomes ``y`` (B, ...) given covariates ``x`` (B, P).

        :param y: outcomes. They are required, since a loss cannot draw outcomes.
        :param row_weight: (B,) weights of the rows: a row of weight two counts as two rows, a row
            of weight zero as none.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        :returns: the outcomes.
        :raises ModelError: without ``y``.
        :raises DataError: when the arguments do not fit the model or each other.
        """
        self._warn_if_shared()
        self._register_params()
        return super().forward(x, y, row_weight, index=index, size=size)

    def _register_params(self) -> None:
        """Register the experts' parameters with Pyro, or take over the values in its store."""
        replaced: dict[Tensor, Parameter] = {}
        for name, leaf in self.experts.named_parameters():
            if leaf.requires_grad:
                stored = _registered(self._pyro_get_fullname(f"experts.{name}"), leaf)
                if stored is not leaf:
                    replaced[leaf] = stored
        if not replaced:
            return
        for module in self.experts.modules():
            for name, leaf in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if leaf in replaced:
                    setattr(module, name, replaced[leaf])


def _checked_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(event_shape, str) or not isinstance(event_shape, Sequence):
        raise OptionError(f"event_shape={event_shape!r} must be a shape, such as () or (3,)")
    for size in event_shape:
        check_whole(event_shape=size)
    return tuple(event_shape)


def _registered(name: str, leaf: Parameter) -> Parameter:
    """Return what Pyro's store holds under ``name``: ``leaf``, unless the name was there before."""
    value, store = pyro.param(name, leaf), pyro.get_param_store()
    if value is leaf:
        return leaf
    if store.param_name(value) != name:
        raise ModelError(
            f"a handler replaces param {name!r}, which belongs to a module: set the module's "
            "parameters themselves, and do not condition or substitute them"
        )
    if not isinstance(value, Parameter):  # loaded from a file
        value = Parameter(value.detach())
        store[name] = value
    return value
