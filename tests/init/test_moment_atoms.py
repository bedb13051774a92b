"""Atoms by the method of moments: noise does not make them long, and standard errors are right."""

import torch

from pyro_mixtures.init.latent_moments import latent_moments
from pyro_mixtures.init.moment_atoms import _standard_errors, moment_atoms
from pyro_mixtures.init.tensor_decomposition import simultaneous_diagonalization


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def test_directions_below_the_noise_yield_no_unbounded_atoms():
    """Five atoms of one class: some eigenvalues are negative. Nothing is clipped here."""
    draw = generator()
    features = torch.randn(2000, 5, generator=draw, dtype=torch.float64, device="cpu")
    theta = torch.randn(5, generator=draw, dtype=torch.float64, device="cpu")
    theta = 1.5 * torch.nn.functional.normalize(theta, dim=-1)
    counts = torch.poisson(20_000 * torch.softmax(features @ theta, 0), generator=draw)
    moments = latent_moments(features, counts)
    assert float(torch.linalg.eigvalsh(moments.second)[0]) < 0
    for diagonalize in (False, True):
        atoms = moment_atoms(
            moments, 5, max_norm=1e9, diagonalize=diagonalize, generator=generator()
        )
        assert float(atoms.theta.norm(dim=-1).max()) < 6.0
        assert any("of the 5 leading eigenvalues" in doubt for doubt in atoms.doubts)


def test_standard_errors_are_those_of_repeated_samples():
    """Tensor eigenvalues of new items and draws vary that much, noise of the whitening included."""
    theta, values, errors = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), [], []
    for seed in range(30):
        draw = generator(seed)
        features = torch.randn(5000, 2, generator=draw, dtype=torch.float64)
        probability = torch.softmax(features @ theta.mT, 0) @ torch.tensor([0.2, 0.8]).double()
        counts = torch.poisson(50_000 * probability, generator=draw)
        moments = latent_moments(features, counts, covariance=torch.eye(2), mean=torch.zeros(2))
        e, v = torch.linalg.eigh(moments.standard_second)
        whitening = v / e.sqrt()
        decomposition = simultaneous_diagonalization(
            moments.project_standard(whitening), generator=draw
        )
        values.append(decomposition.values)
        errors.append(
            _standard_errors(moments, decomposition.values, decomposition.vectors @ whitening.mT)
        )
    ratio = torch.stack(errors).mean(0) / torch.stack(values).std(0)
    assert ((ratio > 0.6) & (ratio < 1.7)).all()
