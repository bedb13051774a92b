"""The components of a fit as its program states them: their family, the rows that it observes, their covariances."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_mixtures.diagnostics.reports.fitted_rows import params_of
from pyro_mixtures.diagnostics.reports.point import point_of
from pyro_mixtures.distributions import Components, Selected
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.poutine import CandidateMessenger


class FittedComponents(NamedTuple):
    """One observed site whose components have places among its rows."""

    site: str
    family: Components
    loc: Tensor  # (C, D)
    rows: Tensor  # (N, D), what the site observed


def fitted_components(
    fit: Fit, *rows: Tensor, given: Mapping[str, Tensor] | None = None
) -> FittedComponents | None:
    """The first observed site of a family with a location argument; None where the program has none.

    :param rows: the model's tensor arguments; some of the fit's rows are enough.
    :param given: values of the model's other latent sites; by default as in a report.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=3)
    >>> found = fit(EM(model, FullPartition(model, components=2)), x := torch.randn(50, 3), progress=False)
    >>> fitted_components(found, x).loc.shape
    torch.Size([2, 3])
    """
    for site, (family, value) in _families(fit, rows, given).items():
        if family.location is not None and len(family.batch_shape) == 1 and value.dim() == 2:
            loc = family.arguments[family.location].detach()
            return FittedComponents(site, family, loc.expand(family.components, -1), value.detach())
    return None


def covariances(family: Components, some: Tensor) -> Tensor | None:
    """Covariances (K, D, D), in float64, of the components ``some`` (K,); None where the family is not quadratic.

    >>> from pyro_mixtures.distributions import DiagonalNormals
    >>> normals = DiagonalNormals(torch.zeros(3, 2), torch.full((3, 2), 2.0))
    >>> covariances(normals, torch.tensor([1]))
    tensor([[[4., 0.],
             [0., 4.]]], dtype=torch.float64)
    """
    if not isinstance(family, QuadraticComponents):
        return None
    own = {
        name: value[some] if family.is_per_component(name) else value
        for name, value in family.arguments.items()
    }
    with torch.no_grad():
        kernel = family.with_arguments(
            {name: value.double() for name, value in own.items()}
        ).kernel()
        inner = kernel.sign * (kernel.projection.mT @ kernel.projection)
        return torch.linalg.inv(torch.diag_embed(kernel.precision) + inner)


def _families(
    fit: Fit, rows: tuple[Tensor, ...], given: Mapping[str, Tensor] | None
) -> dict[str, tuple[Components, Tensor]]:
    """Families and values of the observed sites, from one run with z := 0 for all rows."""

    def first(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.long, device=device)

    with params_of(fit), pyro.poutine.block(), torch.no_grad():
        values, d = point_of(fit, rows).values if given is None else given, fit.guide.read(*rows)
        program = CandidateMessenger(d, first, values)(fit.model)
        nodes: Any = pyro.poutine.trace(program).get_trace(*rows).nodes
    found = {}
    for site in d.observed:
        fn = nodes[site]["fn"]
        fn = fn.base_dist if isinstance(fn, MaskedDistribution) else fn
        if isinstance(fn, Selected):
            found[site] = (fn.family, nodes[site]["value"])
    return found
