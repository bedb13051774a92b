"""Mixtures of torch modules: densities against loops over rows."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_mixtures.guides import FullPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.testing import TOLERANCE, assert_near
from tests.models.expert_mixtures import KINDS, C, N, P, adam, brute, mixture, rows

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.meta
@pytest.mark.parametrize(
    "shape", ["rows", "candidates", "all components", "padded", "all padded row"]
)
def test_log_prob_and_gradients_equal_loops(dtype, kind, shape):
    model, (x, y) = mixture(kind, dtype), rows(kind, dtype)
    generator = torch.Generator("cpu").manual_seed(2)
    z = torch.randint(C, (3, N), generator=generator, device="cpu")
    if shape.endswith("padded") or shape.startswith("all"):
        z[1, ::3], z[2] = -1, -1
    if shape.startswith("all"):
        z[:, 4] = -1
    z = {"rows": z[0], "all components": torch.arange(C, device="cpu").unsqueeze(-1)}.get(shape, z)
    full = z.expand(*z.shape[:-1], N)

    table, experts = brute(model, kind, x, y)
    expected = table.gather(0, full.clamp_min(0).reshape(-1, N)).reshape(full.shape)
    expected = torch.where(full < 0, -torch.inf, expected)
    actual = model.component_distributions(x)[z].log_prob(y)
    assert actual.dtype == dtype
    assert_near(actual, expected, TOLERANCE[dtype])

    weight = torch.randn(full.shape, generator=generator, dtype=torch.float64, device="cpu")
    (weight * expected)[full >= 0].sum().backward()
    (weight.to(dtype) * actual)[full >= 0].sum().backward()
    for mine, theirs in zip(
        model.experts.parameters(), (p for e in experts for p in e.parameters()), strict=True
    ):
        assert_near(mine.grad, theirs.grad, 10 * TOLERANCE[dtype])


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_selection_equals_the_table(components, size, slots, seed):
    model, (x, y) = (
        mixture(dtype=torch.float64, components=components),
        rows(dtype=torch.float64, size=size),
    )
    z = torch.randint(-1, components, (slots, size), generator=torch.Generator().manual_seed(seed))
    family = model.component_distributions(x)
    table = -(family.outputs().squeeze(-1) - y).square()
    expected = torch.where(z < 0, -torch.inf, table.gather(0, z.clamp_min(0)))
    torch.testing.assert_close(family[z].log_prob(y), expected)


def test_padding_alone_is_minus_infinity(dtype):
    model, (x, y) = mixture(dtype=dtype), rows(dtype=dtype)
    found = model.component_distributions(x)[torch.full((2, N), -1)].log_prob(y)
    assert found.dtype == dtype
    assert found.eq(-torch.inf).all()


@pytest.mark.meta
def test_means_and_outputs_are_those_of_the_experts(dtype):
    model, (x, _) = mixture("cross_entropy", dtype), rows(dtype=dtype)
    family = model.component_distributions(x)
    expected = torch.stack([expert(x) for expert in model.experts])
    torch.testing.assert_close(family.outputs(), expected)
    z = torch.arange(N, device="cpu") % C
    torch.testing.assert_close(family[z].mean, expected[z, torch.arange(N, device="cpu")])
    all_components = torch.arange(C, device="cpu").unsqueeze(-1).expand(C, N)
    torch.testing.assert_close(family.mean_at(all_components), expected)


def test_means_of_one_number_have_the_shape_of_the_outcomes():
    model, (x, y) = mixture(), rows()
    z = torch.arange(N) % C
    mean = model.component_distributions(x)[z].mean
    assert mean.shape == y.shape
    with torch.no_grad():
        torch.testing.assert_close(
            mean, model.component_distributions(x).outputs()[z, torch.arange(N), 0]
        )


class Counting(torch.nn.Module):
    """A linear expert that records the numbers of rows of its calls."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = torch.nn.Linear(P, 1), []

    def forward(self, x):
        self.seen.append(len(x))
        return self.inner(x)


def test_experts_see_the_rows_that_select_them_and_all_rows_once_for_all_components():
    x, y = rows()
    model = MixtureOfExperts(Counting, components=C, features=P, loss="squared", equal_weights=True)
    guide = HardPartition(model, components=C)
    labels = torch.arange(N) % (C - 1)  # one cluster is empty
    guide.set_labels(labels)
    em = EM(model, guide, gradient=adam(), gradient_steps=2)
    em._collect((x, y), {})
    for expert in model.experts:
        expert.seen.clear()
    em.maximize()
    assert [expert.seen for expert in model.experts] == [
        [int(n)] * 2 for n in labels.bincount()
    ] + [[]]
    for expert in model.experts:
        expert.seen.clear()
    FullPartition(model, components=C).posterior(x, y)
    assert [expert.seen for expert in model.experts] == [[N]] * C


def test_integer_covariates_reach_embeddings_as_they_are():
    x, y = torch.arange(N).unsqueeze(-1) % 7, torch.randn(N)

    def make():
        return torch.nn.Sequential(
            torch.nn.Embedding(7, 2), torch.nn.Flatten(), torch.nn.Linear(2, 1)
        )

    model = MixtureOfExperts(make, components=2, features=1, loss="squared")
    em = EM(model, FullPartition(model, components=2), gradient=adam(0.05))
    losses = [em.step(x, y) for _ in range(20)]
    assert losses[-1] < losses[0] - 1


def test_recurrent_experts_are_trained():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(1, 4, batch_first=True), torch.nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])

    x, y = rows()
    model = MixtureOfExperts(Last, components=2, features=P, loss="squared")
    em = EM(model, HardPartition(model, components=2), gradient=adam(0.05))
    losses = [em.step(x, y) for _ in range(10)]
    assert losses[-1] < losses[0] - 1
