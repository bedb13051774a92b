"""Exact q(z): all C components of every row."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.poutine import Posterior, exact_posterior


class FullPartition(PartitionGuide):
    """q(z) = p(z | x) over all components: the exact E-step.

    It evaluates one (C, B) array per batch of B rows. It is meant for small C, and as the reference
    for every approximation. Under ``TraceEnum_ELBO`` the loss is minus the log evidence.

    :param model: the Pyro program; its arguments are the guide's.
    :param components: C, the number of the model's components.
    :param site: name of the discrete site.
    :param global_guide: a guide over the model's other latent sites.

    >>> import pyro, torch
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=2, features=2)
    >>> guide = FullPartition(model, components=2)
    >>> guide.posterior(x).probs.shape
    torch.Size([2, 100])
    """

    def e_step(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Tensor],
    ) -> Posterior:
        posterior = exact_posterior(model, self.read(*args, **kwargs), args, kwargs, given)
        if self.training:
            self._check_rows(posterior.size)
        return posterior

    def posterior_of_new_rows(
        self,
        *args: Any,
        model: Callable[..., Any] | None = None,
        given: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """Return q(z) of any rows: the exact posterior needs no state."""
        structure = self.read(*args, **kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        return exact_posterior(model or self.model, structure, args, kwargs, values)
