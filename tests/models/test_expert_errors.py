"""Mixtures of torch modules: errors of losses and family, and leave-one-out gains."""

import pyro
import pytest
import torch

from pyro_mixtures.distributions.regression.pseudo_likelihoods import LOSSES, loss_named
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models.experts import MixtureOfExperts
from tests.models.expert_mixtures import KINDS, C, N, P, adam, huber, mixture, network, rows

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_unknown_loss_is_refused():
    with pytest.raises(OptionError, match=r"'hinge'.*cross_entropy.*squared"):
        loss_named("hinge")
    assert loss_named(huber) is huber
    assert loss_named("squared") is LOSSES["squared"]


def test_squared_error_refuses_to_broadcast():
    with pytest.raises(DataError, match=r"\(4, 2\).*\(4,\)"):
        loss_named("squared")(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.tensor([0, -100]), r"\[-100, 0\], not in \[0, 3\)"),
        (torch.tensor([0, 3]), r"\[0, 3\], not in \[0, 3\)"),
        (torch.tensor([0.0, 1.0]), "integer classes"),
        (torch.zeros(2, 1, dtype=torch.int64), "integer classes"),
    ],
)
def test_cross_entropy_refuses_what_are_no_classes(y, said):
    with pytest.raises(DataError, match=said):
        loss_named("cross_entropy")(torch.zeros(2, 3), y)


def test_a_loss_that_sums_over_rows_is_refused():
    x, y = rows()
    model = MixtureOfExperts(
        lambda: network(), components=2, features=P, loss=lambda output, y: output.sum()
    )
    with pytest.raises(DataError, match=r"shape \(\).*reduction='none'"):
        FullPartition(model, components=2).posterior(x, y)


def test_outcomes_of_another_shape_are_refused():
    model, (x, _) = mixture(), rows()
    family = model.component_distributions(x)
    with pytest.raises(DataError, match=r"\(23, 2\).*\(23,\)"):
        family.log_prob_at(torch.zeros(N, dtype=torch.int64), torch.zeros(N, 2))
    with pytest.raises(DataError, match="3 outcomes for 23 rows"):
        model(x, torch.zeros(3))


def test_rows_wider_than_the_params_are_refused():
    model, (x, y) = mixture(), rows(dtype=torch.float64)
    with pytest.raises(DataError, match=r"float64.*float32"):
        FullPartition(model, components=C).posterior(x, y)


def test_outcomes_cannot_be_drawn():
    model, (x, _) = mixture(), rows()
    with pytest.raises(ModelError, match="not a distribution"):
        model(x)
    with pytest.raises(NotImplementedError):
        model.component_distributions(x)[torch.zeros(N, dtype=torch.int64)].rsample()


def test_closed_forms_are_refused():
    model, (x, y) = mixture(), rows()
    with pytest.raises(ClosedFormError, match="gradient="):
        EM(model, FullPartition(model, components=C)).step(x, y)


def test_hard_partitions_score_rows_by_what_they_add(kind):
    model, (x, y) = mixture(kind, torch.float64), rows(kind, torch.float64)
    guide = HardPartition(model, components=C, score="leave_one_out")
    labels = torch.arange(N) % C
    guide.set_labels(labels)
    em = EM(model, guide, gradient=adam())
    em.step(x, y)
    family, one = model.component_distributions(x), torch.ones(N).double()
    statistics = family.partition_statistics_at(labels, y, one)
    # The cost of a row is its gain in its own cluster, and its loss in the others.
    cost = -family[torch.arange(C).unsqueeze(-1)].log_prob(y).detach()
    own = family.leave_one_out_at(statistics, labels, y, one)
    cost = cost.scatter(0, labels.unsqueeze(0), own.unsqueeze(0)) - model.weights.log().unsqueeze(
        -1
    )
    em.step(x, y)
    assert torch.equal(guide.labels.long(), cost.argmin(0))
    assert (guide.labels != labels).any()


def test_leave_one_out_scores_of_minibatches_are_refused():
    model, (x, y) = mixture(), rows()
    em = EM(model, HardPartition(model, components=C, score="leave_one_out"), gradient=adam())
    with pytest.raises(OptionError, match=r"all 23 rows in one call, not 12.*batch_size="):
        fit(em, x, y, batch_size=12, epochs=3, progress=False)


def test_leave_one_out_options_reach_the_family():
    family = mixture(leave_one_out_steps=3, leave_one_out_rate=0.2).component_distributions(
        rows()[0]
    )
    assert family.descent == (3, 0.2)


@pytest.mark.parametrize("bad", ["same", "function", "pyro"])
def test_make_has_to_make_plain_modules(bad):
    one = torch.nn.Linear(P, 1)
    make = {
        "same": lambda: one,
        "function": lambda: torch.sin,
        "pyro": lambda: pyro.nn.PyroModule[torch.nn.Linear](P, 1),
    }
    with pytest.raises(OptionError, match="make"):
        MixtureOfExperts(make[bad], components=2, features=P, loss="squared")
