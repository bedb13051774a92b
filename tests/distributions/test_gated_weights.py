"""GatedWeights: log probabilities, gradients, draws and errors."""

import pyro
import pytest
import torch

from pyro_mixtures.distributions import gated_weights
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import DataError, OptionError
from tests.distributions.gated_mixtures import DTYPES, C, Q, draw

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("chunk", [1 << 22, 7 * C])
def test_log_prob_and_gradient_are_those_of_the_softmax(dtype, reference, chunk, monkeypatch):
    """For shared and for individual candidates with padding, in one and in several blocks."""
    monkeypatch.setattr(gated_weights, "_NUMBERS", chunk)
    u, _ = draw(20, dtype)
    u.requires_grad_(reference)  # covariates may be learned features
    own = C - reference
    w, b = (
        torch.randn(*s, dtype=dtype, device="cpu", requires_grad=True) for s in ((own, Q), (own,))
    )
    eta = u @ w.T + b
    table = (torch.cat([torch.zeros_like(eta[:, :1]), eta], -1) if reference else eta).log_softmax(
        -1
    )
    table = table - 0.3 * w.square().sum()
    gate = GatedWeights(u, w, b, ridge=0.3, reference=reference)
    every = torch.arange(C, device="cpu").unsqueeze(-1)
    torch.testing.assert_close(gate.log_prob(every), table.T)
    torch.testing.assert_close(gate.log_prob(every.expand(C, 20)), table.T)
    z = torch.randint(-1, C, (4, 20), device="cpu")
    expected = torch.where(z < 0, -torch.inf, table.gather(1, z.clamp_min(0).T).T)
    actual = gate.log_prob(z)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gate.log_prob(z.unsqueeze(1)), expected.unsqueeze(1))
    with torch.no_grad():
        torch.testing.assert_close(gate.log_prob(z), expected.detach())
    pull = torch.rand(4, 20, dtype=dtype, device="cpu") * (z >= 0)
    slopes = [
        torch.autograd.grad(
            (torch.where(z < 0, 0.0, out) * pull).sum(),
            (w, b, u)[: 2 + reference],
            retain_graph=True,
        )
        for out in (actual, expected)
    ]
    for mine, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.meta
def test_support_has_one_value_a_component():
    u, _ = draw(5)
    gate = GatedWeights(
        u, torch.zeros(C - 1, Q, device="cpu").double(), torch.zeros(C - 1, device="cpu").double()
    )
    assert gate.enumerate_support(expand=False).shape == (C, 1)
    assert gate.enumerate_support().tolist() == [[c] * 5 for c in range(C)]
    assert gate.components == C
    assert bool(gate.support.check(torch.tensor([0, C - 1], device="cpu")).all())
    assert not bool(gate.support.check(torch.tensor(C, device="cpu")))


@pytest.mark.parametrize("chunk", [1 << 22, 2 * C])
def test_draws_follow_the_probabilities_of_their_rows(chunk, monkeypatch):
    monkeypatch.setattr(gated_weights, "_NUMBERS", chunk)
    u, _ = draw(5)
    gate = GatedWeights(u, torch.randn(C - 1, Q).double(), torch.randn(C - 1).double(), ridge=1.0)
    draws = gate.sample((40, 500))
    assert draws.shape == (40, 500, 5)
    assert gate.sample().shape == (5,)
    shares = torch.stack([(draws == c).double().mean((0, 1)) for c in range(C)], -1)
    torch.testing.assert_close(shares, gate.table().exp(), rtol=0, atol=0.02)


def test_wrong_shapes_are_refused():
    u = torch.zeros(4, Q)
    with pytest.raises(OptionError, match=r"pass \(C - 1, 2\) and \(C - 1,\)"):
        GatedWeights(u, torch.zeros(C, Q + 1), torch.zeros(C))
    with pytest.raises(OptionError, match="bias"):
        GatedWeights(u, torch.zeros(C, Q), torch.zeros(C + 1))
    with pytest.raises(OptionError, match="ridge"):
        GatedWeights(u, torch.zeros(C, Q), torch.zeros(C), ridge=-1.0)
    with pytest.raises(DataError, match=r"covariates must be \(B, Q\)"):
        GatedWeights(torch.zeros(4), torch.zeros(C, Q), torch.zeros(C))
    with pytest.raises(ValueError, match="weight"):
        GatedWeights(u, torch.full((C, Q), torch.nan), torch.zeros(C))


def test_rows_in_another_dimension_are_refused():
    """Their covariates would be matched with the wrong rows."""
    gate = GatedWeights(torch.zeros(4, Q), torch.zeros(C, Q), torch.zeros(C))
    for shape in ((4, 4), (5,), (4, 1)):
        with pytest.raises(DataError, match="last dimension"):
            gate.expand(shape)
    assert gate.expand((1, 4)).batch_shape == (1, 4)

    def model(u, x):
        with pyro.plate("data", 4, dim=-2):
            pyro.sample("z", gate)

    with pytest.raises(DataError, match="last dimension"):
        model(None, None)
