"""The component family of a fitted program, the rows that it observes, and its covariances."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_mixtures.diagnostics.reports.fitted_rows import params_of
from pyro_mixtures.diagnostics.reports.latent_point import latent_point
from pyro_mixtures.distributions import Components, Selected
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.poutine import CandidateMessenger


class FittedComponents(NamedTuple):
    """An observed site whose component family has a location parameter."""

    site: str
    family: Components
    loc: Tensor  # (C, D)
    rows: Tensor  # (N, D), the values that the site observed


def fitted_components(
    fit: Fit, *rows: Tensor, given: Mapping[str, Tensor] | None = None
) -> FittedComponents | None:
    """Return the first observed site whose component family has a location parameter.

    :param fit: the fit whose model is run.
    :param rows: the model's tensor arguments; a subset of the fit's rows is enough.
    :param given: values of the model's other latent sites; by default as in a report.
    :returns: the site with its family, or None if there is no such site.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=3)
    >>> guide, x = FullPartition(model, components=2), torch.randn(50, 3)
    >>> result = fit(EM(model, guide), x, progress=False)
    >>> fitted_components(result, x).loc.shape
    torch.Size([2, 3])
    """
    for site, (family, value) in _observed_families(fit, rows, given).items():
        if family.location is not None and len(family.batch_shape) == 1 and value.dim() == 2:
            loc = family.arguments[family.location].detach()
            return FittedComponents(site, family, loc.expand(family.components, -1), value.detach())
    return None


def covariances(family: Components, components: Tensor) -> Tensor | None:
    """Return the covariances of some components of a family of normal distributions.

    :param family: a component family.
    :param components: (K,) numbers of components.
    :returns: (K, D, D) in float64, or None for a family that is not normal.

    >>> from pyro_mixtures.distributions import DiagonalNormals
    >>> normals = DiagonalNormals(torch.zeros(3, 2), torch.full((3, 2), 2.0))
    >>> covariances(normals, torch.tensor([1]))
    tensor([[[4., 0.],
             [0., 4.]]], dtype=torch.float64)
    """
    if not isinstance(family, QuadraticComponents):
        return None
    arguments = {
        name: value[components] if family.is_per_component(name) else value
        for name, value in family.arguments.items()
    }
    with torch.no_grad():
        wide = {name: value.double() for name, value in arguments.items()}
        kernel = family.with_arguments(wide).kernel()
        low_rank = kernel.sign * (kernel.projection.mT @ kernel.projection)
        return torch.linalg.inv(torch.diag_embed(kernel.precision) + low_rank)


def _observed_families(
    fit: Fit, rows: tuple[Tensor, ...], given: Mapping[str, Tensor] | None
) -> dict[str, tuple[Components, Tensor]]:
    """Families and values of the observed sites, from one run with z = 0 for all rows."""

    def first_component(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.long, device=device)

    with params_of(fit), pyro.poutine.block(), torch.no_grad():
        values = latent_point(fit, rows).values if given is None else given
        structure = fit.guide.read(*rows)
        program = CandidateMessenger(structure, first_component, values)(fit.model)
        nodes: Any = pyro.poutine.trace(program).get_trace(*rows).nodes
    families: dict[str, tuple[Components, Tensor]] = {}
    for site in structure.observed:
        distribution = nodes[site]["fn"]
        if isinstance(distribution, MaskedDistribution):
            distribution = distribution.base_dist
        if isinstance(distribution, Selected):
            families[site] = (distribution.family, nodes[site]["value"])
    return families
