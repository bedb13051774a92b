"""GatedWeights of empty components: re-seeded, dropped and kept ones."""

import itertools

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM
from tests.distributions.gated_mixtures import C, N, Q, draw, gated_mixture, values

pytestmark = pytest.mark.usefixtures("on_one_thread")


def move_away(model, u, x, component):
    """Move the component far away from all rows."""
    model(u, x)
    with torch.no_grad():
        pyro.param("loc")[component] = 1e4


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("component", [0, 1])
def test_empty_components_are_reseeded_with_half_of_the_probability_of_another(
    reference, component
):
    u, x = draw()
    model = gated_mixture(reference=reference)
    move_away(model, u, x, component)
    em = EM(model, FullPartition(model, components=C))
    em.step(u, x)
    assert em.last_update.reseeded == 1
    p = values()
    gate = GatedWeights(u, p["weight"], p["bias"], reference=reference)
    table = gate.table()
    twins = [
        c for c in range(C) if c != component and torch.allclose(table[:, c], table[:, component])
    ]
    assert len(twins) == 1
    assert all(bool(value.isfinite().all()) for value in p.values())
    losses = [em.step(u, x) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_dropped_components_have_no_probability_and_stay_dropped():
    u, x = draw()
    model = gated_mixture()
    move_away(model, u, x, 2)
    em = EM(model, FullPartition(model, components=C), empty="drop")
    losses = [em.step(u, x) for _ in range(6)]
    assert em.last_update.dropped == 1
    p = values()
    probs = GatedWeights(u, p["weight"], p["bias"]).table().exp()
    assert float(probs[:, 2].abs().max()) == 0.0
    torch.testing.assert_close(probs.sum(-1), torch.ones(N).double())
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    # Gradients leave it unchanged, and all other values finite.
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        config_enumerate(model), lambda *_: None, u, x
    )
    loss.backward()
    assert bool(pyro.param("weight").grad.isfinite().all())
    assert pyro.param("weight").grad[1].tolist() == [0.0, 0.0]


def test_some_rows_of_a_dropped_component_go_to_the_others():
    u, _x = draw()
    gate = GatedWeights(u, torch.zeros(C - 1, Q).double(), torch.zeros(C - 1).double())
    q = torch.rand(C, N).double()
    statistics = gate.statistics(torch.arange(C).unsqueeze(-1), q / q.sum(0))
    both = frozenset({"weight", "bias"})
    kept = GatedWeights(u, **gate.maximize(statistics, both)).table().exp()
    left = (
        GatedWeights(
            u, **gate.maximize(statistics, both, dropped=torch.tensor([False, True, False]))
        )
        .table()
        .exp()
    )
    torch.testing.assert_close(left[:, [0, 2]], kept[:, [0, 2]] / (1 - kept[:, [1]]))


def test_the_reference_cannot_be_dropped():
    u, x = draw()
    model = gated_mixture()
    move_away(model, u, x, 0)
    with pytest.raises(ClosedFormError, match="reference and cannot be dropped"):
        EM(model, FullPartition(model, components=C), empty="drop").step(u, x)
    pyro.clear_param_store()
    model = gated_mixture(reference=False)
    move_away(model, u, x, 0)
    EM(model, FullPartition(model, components=C), empty="drop").step(u, x)
    assert pyro.param("bias")[0].item() == -torch.inf


@pytest.mark.parametrize("component", [0, 1])
def test_kept_components_without_rows_do_not_disturb_the_others(component):
    u, x = draw()
    model = gated_mixture()
    move_away(model, u, x, component)
    em = EM(model, FullPartition(model, components=C), empty="keep")
    losses = [em.step(u, x) for _ in range(6)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    p = values()
    assert float(GatedWeights(u, p["weight"], p["bias"]).table().exp()[:, component].max()) < 1e-6
