"""The component family of a fitted program, and its covariances."""

import pytest
import torch

from pyro_mixtures.diagnostics.reports.fitted_components import covariances, fitted_components
from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    Poissons,
)
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import GaussianMixture, MixtureOfRegressions


class TestComponents:
    @pytest.mark.meta
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_covariances(self, dtype):
        options = {
            "generator": torch.Generator("cpu").manual_seed(0),
            "dtype": dtype,
            "device": "cpu",
        }
        loc, scale = torch.zeros(4, 3, dtype=dtype, device="cpu"), torch.rand(4, 3, **options) + 0.5
        tril = torch.randn(4, 3, 3, **options).tril(-1) + torch.diag_embed(scale)
        factor, selected = torch.randn(4, 3, 2, **options), torch.tensor([3, 1], device="cpu")
        expected = {
            DiagonalNormals(loc, scale): torch.diag_embed(scale**2),
            DiagonalNormals(loc, scale[0]): torch.diag_embed(scale[:1] ** 2).expand(4, 3, 3),
            IsotropicNormals(loc, scale[:, 0]): torch.diag_embed(scale[:, :1].expand(4, 3) ** 2),
            FullNormals(loc, tril): tril @ tril.mT,
            FullNormals(loc, tril[0]): (tril[:1] @ tril[:1].mT).expand(4, 3, 3),
            FactorAnalyzers(loc, factor, scale): factor @ factor.mT + torch.diag_embed(scale),
        }
        for family, covariance in expected.items():
            torch.testing.assert_close(
                covariances(family, selected), covariance[selected].double(), rtol=1e-5, atol=1e-5
            )
        assert covariances(Poissons(torch.ones(4, 3, dtype=dtype, device="cpu")), selected) is None

    def test_finds_the_site_with_a_location(self):
        x, y = torch.rand(40, 2), torch.rand(40)
        model = MixtureOfRegressions(components=2, features=2, input_density=1.0)
        result = fit(EM(model, FullPartition(model, components=2)), x, y, epochs=2, progress=False)
        components = fitted_components(result, x[::2], y[::2])
        assert components.site == "x"
        torch.testing.assert_close(components.loc, model.loc.detach())
        torch.testing.assert_close(components.rows, x[::2])

    def test_none_without_a_location(self):
        x, y = torch.rand(40, 2), torch.rand(40)
        model = MixtureOfRegressions(components=2, features=2)
        result = fit(EM(model, FullPartition(model, components=2)), x, y, epochs=2, progress=False)
        assert fitted_components(result, x, y) is None

    def test_shared_covariance(self):
        x = torch.randn(60, 2)
        model = GaussianMixture(components=3, features=2, covariance="full", tied=True)
        result = fit(EM(model, FullPartition(model, components=3)), x, epochs=2, progress=False)
        spread = covariances(fitted_components(result, x).family, torch.arange(3))
        expected = (model.scale_tril @ model.scale_tril.mT).detach().double().expand(3, 2, 2)
        torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-6)
