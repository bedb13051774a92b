"""Restarts return the best fit with its params; each start is reproducible by itself."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from sklearn.metrics import adjusted_rand_score

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import DataError, ModelError, OptionError, PartitionError
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import EM, log_evidence
from pyro_mixtures.infer.restarts.hard import fit_restarts
from pyro_mixtures.init.labels import METHODS
from pyro_mixtures.models import GaussianMixture, MixtureOfRegressions
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.poutine import data_plate

C, D, N = 6, 2, 120


pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture
def truth():
    return torch.arange(N, device="cpu") % C


@pytest.fixture
def x(truth):
    """Six tight clusters on a line."""
    noise = torch.randn(N, D, generator=generator(1), device="cpu")
    return torch.stack([10.0 * truth, torch.zeros(N, device="cpu")], -1) + noise


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def kmeans(**options):
    with torch.device("cpu"):
        model = KMeans(components=C, features=D)
        return EM(model, HardPartition(model, components=C, **options))


def restarts(x, starts, build=kmeans, seed=0, **options):
    options = {"progress": False, "generator": generator(seed), **options}
    return fit_restarts(build, x, starts=starts, **options)


@pytest.fixture
def stuck(x, truth):
    """Starts that Lloyd's algorithm cannot leave: two clusters merged, another one split."""
    starts = []
    for k in range(3):
        labels = torch.where(truth == k + 1, k, truth)
        starts.append(torch.where((truth == 5) & (x[:, 1] > 0), k + 1, labels))
    return starts


def means(x, labels):
    return torch.stack([x[labels == c].mean(0) for c in range(C)])


def objective(x, labels):
    """The objective of k-means in nats per row."""
    inertia = float((x - means(x, labels)[labels]).square().sum())
    return inertia / 2 / len(x) + math.log(C) + D / 2 * math.log(2 * math.pi)


# The best fit.


@pytest.mark.meta
def test_the_fit_with_the_smallest_objective_is_returned(x, truth, stuck):
    result = restarts(x, [*stuck[:2], truth, stuck[2]])
    assert result.winner == 2
    assert torch.equal(result.labels, truth)
    worse = result.objectives[[0, 1, 3]]
    assert result.objectives.shape == (4,)
    assert result.objectives[2] < worse.min() - 1
    assert len(set(worse.round(6))) == 3


def test_of_equal_fits_the_first_is_returned(x, truth):
    assert restarts(x, [truth, truth, truth]).winner == 0


def test_objectives_are_those_of_the_final_partitions(x):
    starts = [torch.randint(C, (N,), generator=generator(seed), device="cpu") for seed in range(3)]
    together = restarts(x, starts)
    alone = [restarts(x, [start]) for start in starts]
    assert together.objectives.tolist() == [result.objectives[0] for result in alone]
    assert len(set(together.objectives.round(6))) > 1, "all starts end alike: the test is void"
    for result in alone:
        assert result.objectives[0] == pytest.approx(objective(x, result.labels), rel=1e-6)


def test_one_epoch_is_scored_by_its_final_params(x, truth):
    """The ELBO of the history precedes the update: here it is that of random means."""
    result = restarts(x, [truth, "uniform"], epochs=1)
    assert result.winner == 0
    assert result.objectives[0] == pytest.approx(objective(x, truth), rel=1e-6)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("winner", [0, 1, 2])
def test_params_of_the_best_fit_are_in_the_store(x, truth, stuck, winner, local):
    """The best start may be the first, the last or in between."""
    starts = [*stuck[:winner], truth, *stuck[winner + 1 :]]
    with pyro.settings.context(module_local_params=local):
        result = restarts(x, starts)
        assert result.winner == winner
        model = result.best.model
        torch.testing.assert_close(model.mean.detach(), means(x, truth))
        if not local:
            torch.testing.assert_close(pyro.param("mean").detach(), means(x, truth))
        torch.testing.assert_close(
            log_evidence(model, x, guide=result.best.guide).mean().item(),
            -result.objectives[winner],
        )
        # The fit can continue from the params that the program reads.
        loss = result.best.inference.step(x)
        assert loss / N == pytest.approx(result.objectives[winner], rel=1e-6)
        assert torch.equal(result.best.guide.labels.long(), truth)


def test_plain_functions_are_fitted_anew_in_every_start(x, truth, stuck):
    """Their params exist only in the store."""

    def model(x, index=None, size=None):
        loc = pyro.param("m", torch.randn(C, D))
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(torch.full((C,), 1 / C)))
            pyro.sample("x", DiagonalNormals(loc, torch.ones(C, D))[z], obs=x)

    result = restarts(
        x, [stuck[0], truth, stuck[1]], lambda: EM(model, HardPartition(model, components=C))
    )
    assert result.winner == 1
    torch.testing.assert_close(pyro.param("m").detach(), means(x, truth))


def test_other_params_are_unchanged(x, truth, stuck):
    mine = pyro.param(
        "mine", torch.tensor([1.0, 2.0]), constraint=torch.distributions.constraints.positive
    )
    older = kmeans().model
    older(x)  # creates a param of the same name as the fits'
    result = restarts(x, [stuck[0], truth, stuck[1]])
    assert set(pyro.get_param_store()) == {"mine", "mean"}
    assert torch.equal(pyro.param("mine"), mine)
    assert pyro.param("mine").unconstrained() is mine.unconstrained()
    torch.testing.assert_close(result.best.model.mean.detach(), means(x, truth))
    store = pyro.get_param_store()
    assert store.param_name(pyro.param("mean").unconstrained()) == "mean"


def test_a_failing_start_leaves_store_and_random_state_unchanged(x):
    mine, before = pyro.param("mine", torch.ones(2)), torch.get_rng_state()
    with pytest.raises(PartitionError):
        restarts(x, [torch.zeros(N + 1, dtype=torch.int64)])
    assert set(pyro.get_param_store()) == {"mine"}
    assert pyro.param("mine") is mine
    assert torch.equal(torch.get_rng_state(), before)


# Starts.


def test_every_method_is_a_start(x, truth):
    result = restarts(x, list(METHODS))
    assert adjusted_rand_score(truth, result.labels) > 0.95
    assert (result.objectives[1:] <= result.objectives[0] + 1e-6).all()


def test_a_number_of_starts_draws_labels_uniformly(x):
    assert np.array_equal(restarts(x, 3).objectives, restarts(x, ["uniform"] * 3).objectives)


def test_balanced_starts_respect_the_capacity_of_the_guide(x):
    sizes = []
    result = restarts(
        x,
        ["balanced", "uniform"],
        lambda: kmeans(capacity=N // C + 5),
        callbacks=[lambda fit: sizes.append(fit.guide.sizes)],
    )
    assert max(int(size.max()) for size in sizes) <= N // C + 5
    assert result.best.guide.sizes.sum() == N


def test_conditional_mixtures_start_from_covariates_or_given_positions():
    covariates = torch.linspace(-1, 1, 200).unsqueeze(-1)
    truth = torch.arange(200) % 2
    y = (2.0 * truth - 1) * (3 * covariates[:, 0] + 5) + 0.05 * torch.randn(200)

    def build():
        model = MixtureOfRegressions(components=2, features=1, scale=1.0, equal_weights=True)
        return EM(model, HardPartition(model, components=2), empty="keep")

    options = {"progress": False, "epochs": 0, "generator": generator()}
    by_x = fit_restarts(build, covariates, y, starts=["kmeans++"], **options)
    by_y = fit_restarts(build, covariates, y, starts=["kmeans++"], on=y.unsqueeze(-1), **options)
    assert adjusted_rand_score(covariates[:, 0] > 0, by_x.labels) > 0.3
    assert adjusted_rand_score(truth, by_y.labels) == 1.0
    best = fit_restarts(build, covariates, y, starts=10, progress=False, generator=generator())
    assert adjusted_rand_score(truth, best.labels) == 1.0
    assert isinstance(best.best.model, MixtureOfRegressions)


def test_batches_give_the_fits_of_all_rows_at_once(x, truth, stuck):
    starts = [stuck[0], truth, stuck[1]]
    whole, batched = restarts(x, starts), restarts(x, starts, batch_size=32)
    np.testing.assert_allclose(batched.objectives, whole.objectives, rtol=1e-5)
    assert torch.equal(batched.labels, whole.labels)


def test_build_may_return_the_model_too(x, truth):
    def build():
        em = kmeans()
        return em.model, em

    assert torch.equal(restarts(x, [truth], build).labels, truth)


# Randomness.


def gaussians():
    """A model with random initial params, which components with few rows keep."""
    model = GaussianMixture(components=C, features=D)
    return EM(model, HardPartition(model, components=C), empty="keep")


@pytest.mark.parametrize("build", [kmeans, gaussians])
def test_the_same_seed_gives_the_same_result(x, build):
    result = []
    for noise in (1, 2):
        pyro.set_rng_seed(noise)
        pyro.clear_param_store()
        result.append(restarts(x, ["uniform", "kmeans++", "gaussian"], build, seed=3))
    assert np.array_equal(result[0].objectives, result[1].objectives)
    assert torch.equal(result[0].labels, result[1].labels)
    assert not np.array_equal(
        restarts(x, 3, build, seed=4).objectives, restarts(x, 3, build, seed=5).objectives
    )


def test_without_a_generator_pyros_seed_is_used_and_advances(x):
    result, after = [], []
    for _ in range(2):
        pyro.set_rng_seed(7)
        result.append([restarts(x, 3, generator=None).objectives for _ in range(2)])
        after.append(torch.rand(3))
    assert np.array_equal(result[0], result[1])
    assert torch.equal(*after)
    assert not np.array_equal(*result[0])


def test_with_a_generator_pyros_random_state_is_unchanged(x):
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    restarts(x, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002


def test_a_start_does_not_depend_on_later_starts(x):
    few, many = restarts(x, ["kmeans++"]), restarts(x, ["kmeans++", "uniform", "gaussian"])
    assert few.objectives[0] == many.objectives[0]


# Progress and interruption.


def test_the_bar_counts_starts_and_shows_the_best(x, capsys):
    result = restarts(x, 2, progress=True)
    shown = capsys.readouterr().err
    assert "restarts" in shown
    assert "2/2" in shown
    assert f"best={result.objectives.min():.4f}" in shown
    restarts(x, 2)
    assert not capsys.readouterr().err


def test_an_interrupted_start_is_the_last_one_and_may_be_the_best(x, truth):
    calls = []

    def interrupt(fit):
        calls.append(fit)
        if len({id(call) for call in calls}) == 2:
            raise KeyboardInterrupt

    result = restarts(x, ["uniform", truth, "uniform"], callbacks=[interrupt])
    assert len(result.objectives) == 2
    assert result.best.interrupted
    torch.testing.assert_close(result.best.model.mean.detach(), means(x, truth))


# Errors.


@pytest.mark.parametrize("starts", [0, -2, []])
def test_no_starts_are_refused(x, starts):
    with pytest.raises(OptionError, match="positive number, or one entry per start"):
        restarts(x, starts)


@pytest.mark.parametrize(
    ("starts", "advice"),
    [
        (2.0, r"starts=2\.0 is neither a whole number nor a sequence"),
        (None, "starts=None is neither"),
        (True, "starts=True is neither"),
        ({"uniform": 2}, "is neither a whole number nor a sequence"),
        ("kmeans++", r"starts='kmeans\+\+': put methods into a list"),
        (torch.zeros(N, dtype=torch.int64), rf"starts has shape \({N},\): .* starts=\[labels\]"),
        (np.zeros(N, dtype=int), rf"starts has shape \({N},\): .* starts=\[labels\]"),
    ],
)
def test_starts_of_another_kind_are_refused(x, starts, advice):
    with pytest.raises(OptionError, match=advice):
        restarts(x, starts, build=lambda: pytest.fail("must not be called"))


@pytest.mark.parametrize(
    "make",
    [torch.stack, lambda starts: np.stack(starts), lambda starts: [s.numpy() for s in starts]],
)
def test_labels_may_be_arrays_or_rows_of_an_array(x, truth, stuck, make):
    expected = restarts(x, [stuck[0], truth])
    result = restarts(x, make([stuck[0], truth]))
    assert result.objectives.tolist() == expected.objectives.tolist()
    assert result.winner == 1


def test_the_number_of_starts_may_be_a_numpy_integer(x):
    assert np.array_equal(restarts(x, np.int64(2)).objectives, restarts(x, 2).objectives)


@pytest.mark.parametrize(
    "labels", [np.zeros(N), np.zeros((N, 1), dtype=int), np.zeros(N, dtype=bool)]
)
def test_arrays_that_are_not_labels_are_refused(x, labels):
    with pytest.raises(PartitionError, match="labels must be integers"):
        restarts(x, [labels])


@pytest.mark.parametrize("start", ["kmeans", 3, None])
def test_an_unknown_start_is_refused_before_any_fit(x, start):
    with pytest.raises(OptionError, match=r"neither labels.*nor methods"):
        restarts(x, ["uniform", start], build=lambda: pytest.fail("must not be called"))


def test_positions_of_other_rows_are_refused(x):
    with pytest.raises(DataError, match=f"on= has 3 rows, but the data have {N}"):
        restarts(x, 2, on=torch.zeros(3, 1))


def test_labels_of_other_components_are_refused(x):
    with pytest.raises(PartitionError, match="outside"):
        restarts(x, [torch.full((N,), C)])


def test_a_guide_without_labels_is_refused(x):
    def build():
        model = KMeans(components=C, features=D)
        return EM(model, FullPartition(model, components=C))

    with pytest.raises(ModelError, match="FullPartition does not start from labels"):
        restarts(x, 2, build)


def test_other_strategies_are_refused(x):
    def build():
        em = kmeans()
        return SVI(em.model, em.guide, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO())

    with pytest.raises(ModelError, match="returned SVI: return an EM"):
        restarts(x, 2, build)


@pytest.mark.parametrize("again", ["both", "model"])
def test_a_model_or_guide_of_an_earlier_start_is_refused(x, again):
    em = kmeans()

    def build():
        return em if again == "both" else EM(em.model, HardPartition(em.model, components=C))

    with pytest.raises(OptionError, match="create both in build"):
        restarts(x, 2, build)


def test_results_of_restarts_print_without_their_labels():
    x = torch.cat([torch.randn(50, 2, device="cpu") - 5, torch.randn(50, 2, device="cpu") + 5])

    def build():
        model = GaussianMixture(components=2, features=2)
        return EM(model, HardPartition(model, components=2))

    result = fit_restarts(build, x, starts=2, progress=False)
    assert "GaussianMixture" in repr(result)
    assert "labels" not in repr(result)
    assert "\n" not in repr(result)
