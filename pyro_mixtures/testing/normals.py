"""The tests that normal families inherit: covariances, rows that are recovered."""

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.scoring.predict import sample
from pyro_mixtures.testing.families import ROWS, FamilyConformance
from pyro_mixtures.testing.tools import normal_rows

FEATURES = 3


class NormalConformance(FamilyConformance):
    """Tests of a normal family with an argument ``loc`` (C, 3) and a stock normal as the oracle.

    >>> from pyro import distributions as dist
    >>> from pyro_mixtures.distributions import FullNormals
    >>> class TestFullNormals(NormalConformance):
    ...     family = FullNormals
    ...
    ...     def arguments(self, components, lead=()):
    ...         loc = torch.randn(*lead, components, 3, dtype=torch.float64)
    ...         return {"loc": loc, "scale_tril": torch.eye(3).double().expand(*loc.shape, 3)}
    ...
    ...     def oracle(self, loc, scale_tril):
    ...         return dist.MultivariateNormal(loc, scale_tril=scale_tril)
    """

    def rows(self, count: int = ROWS, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        """Return rows spread a little wider than the components."""
        return normal_rows(count, FEATURES, dtype, seed)

    def test_draws_have_the_covariances_of_the_oracle(self) -> None:
        family, count = self.build(3), 20_000
        normals, _ = self.oracle_of(family)
        expected = covariances(normals)
        variance = expected.diagonal(dim1=-2, dim2=-1)
        spread = (variance.unsqueeze(-1) * variance.unsqueeze(-2) + expected.square()) / count
        selected = family[torch.arange(3)]
        for draw in (selected.sample, selected.rsample):
            draws = draw(torch.Size((count,))).detach()
            away = draws - draws.mean(0)
            actual = torch.einsum("nci,ncj->cij", away, away) / count
            assert float(((actual - expected) / spread.sqrt()).abs().max()) < 5

    def test_em_recovers_well_separated_components_from_samples(self) -> None:
        truth = self.mixture(3)
        with torch.no_grad():
            truth.loc = 20 * torch.eye(3, FEATURES, dtype=torch.float64)
        x = sample(truth, size=900)["x"]
        weights = truth.weights.detach()
        expected = self.oracle_of(truth.component_distributions())[0]
        pyro.clear_param_store()
        model = self.mixture(3)
        with torch.no_grad():
            model.loc = truth.loc + torch.randn(3, FEATURES, dtype=torch.float64)
        em = EM(model, TruncatedPartition(model, components=3, candidates=2, neighbors=2))
        for _ in range(25):
            em.step(x)
        torch.testing.assert_close(model.weights.detach(), weights, rtol=0, atol=0.07)
        actual = self.oracle_of(model.component_distributions())[0]
        rows = 900 * weights.view(-1, 1)
        z_score = (actual.mean - expected.mean) / (expected.variance / rows).sqrt()
        assert float(z_score.detach().abs().max()) < 4
        variance = expected.variance.detach()
        product = variance.unsqueeze(-1) * variance.unsqueeze(-2)
        scale = (product / rows.unsqueeze(-1)).sqrt()
        away = (covariances(actual) - covariances(expected)) / scale
        assert float(away.abs().max()) < 6


def covariances(normals: Any) -> Tensor:
    """Return the covariance matrices (C, D, D) of stock normal distributions.

    >>> from pyro import distributions as dist
    >>> covariances(dist.Normal(torch.zeros(1, 2), 2.0).to_event(1))
    tensor([[[4., 0.],
             [0., 4.]]])
    """
    if isinstance(normals, torch.distributions.Independent):
        diagonal: Tensor = normals.variance.detach().diag_embed()
        return diagonal
    matrices: Tensor = normals.covariance_matrix.detach()
    return matrices
