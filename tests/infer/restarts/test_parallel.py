"""Parallel restarts end as sequential ones do; what would couple them is refused."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import ModelError, OptionError, PartitionError
from pyro_mixtures.guides import FullPartition, HardPartition, hard_partition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.experts.comparison import compare_routing
from pyro_mixtures.infer.restarts.hard import RestartsResult, fit_restarts
from pyro_mixtures.models import GaussianMixture, MixtureOfExperts, MixtureOfRegressions
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.poutine import data_plate
from pyro_mixtures.testing import TOLERANCE

pytestmark = pytest.mark.usefixtures("on_one_thread")

N, P, K = 90, 2, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def rows_of(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Covariates and outcomes of three regressions."""
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64, device="cpu")  # noqa: E731
    draw, truth = generator(seed), torch.arange(N, device="cpu") % K
    x, weight, bias = normal(N, P), 2 * normal(K, P), 2 * normal(K)
    return x.to(dtype), ((x * weight[truth]).sum(-1) + bias[truth] + 0.3 * normal(N)).to(dtype)


def kmeans(**options):
    def build(restarts=1):
        with torch.device("cpu"):
            model = KMeans(components=K * restarts, features=P)
        return EM(
            model, hard_partition(model, components=K * restarts, restarts=restarts, **options)
        )

    return build


def regressions(
    dtype=torch.float64, equal=True, scale: float | None = 1.0, ridge=0.0, empty="keep", **options
):
    def build(restarts=1):
        with torch.device("cpu"):
            model = MixtureOfRegressions(
                components=K * restarts, features=P, scale=scale, equal_weights=equal, ridge=ridge
            ).to(dtype)
            if equal:
                model.weights.fill_(1 / (K * restarts))  # not rounded to float32
        return EM(
            model,
            hard_partition(model, components=K * restarts, restarts=restarts, **options),
            empty=empty,
        )

    return build


def both(
    build, *rows: Tensor, starts=3, seed=1, **options
) -> tuple[RestartsResult, RestartsResult]:
    """The restarts in sequence, and in parallel."""
    options = {"progress": False, "epochs": 8, **options}
    found = [
        fit_restarts(
            build, *rows, starts=starts, parallel=parallel, generator=generator(seed), **options
        )
        for parallel in (False, True)
    ]
    return found[0], found[1]


def assert_same(alone: RestartsResult, together: RestartsResult, dtype=torch.float64) -> None:
    rtol = 10 * TOLERANCE[dtype]
    np.testing.assert_allclose(together.objectives, alone.objectives, rtol=rtol, atol=rtol)
    assert together.winner == alone.winner
    assert torch.equal(together.labels, alone.labels)
    assert len(set(alone.objectives.round(6))) > 1, "all starts end alike: this tests nothing"


RULES = {
    "loss": {},
    "ridge": {"ridge": 0.1},
    "leave_one_out": {"score": "leave_one_out"},
    "leave_one_out, alpha": {"score": "leave_one_out", "alpha": 0.7},
    "capacity": {"capacity": 33},
    "capacity, leave_one_out": {"capacity": 33, "score": "leave_one_out"},
    "greedy": {"capacity": 33, "assignment": "greedy"},
    "min_size": {"min_size": 25},
    "learned weights": {"equal": False},
    "learned weights and scales": {"equal": False, "scale": None},
}


@pytest.mark.parametrize("rule", RULES)
def test_regressions_end_as_one_by_one(rule):
    alone, together = both(regressions(**RULES[rule]), *rows_of())
    assert_same(alone, together)
    assert together.best.converged == alone.best.converged


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_parallel_restarts_end_as_one_by_one(dtype):
    alone, together = both(regressions(dtype, equal=False), *rows_of(dtype), starts=4)
    assert_same(alone, together, dtype)


@pytest.mark.parametrize("start", ["uniform", "kmeans++"])
def test_kmeans_ends_as_one_by_one(start):
    x = torch.rand(N, P, generator=generator(3), device="cpu")
    assert_same(*both(kmeans(), x, starts=[start] * 4, tolerance=0), torch.float32)


def test_batches_end_as_one_by_one():
    assert_same(*both(regressions(equal=False), *rows_of(), batch_size=32))


def test_empty_components_are_reseeded_in_every_restart():
    """Params of components without labels win no rows."""
    x, y = rows_of()

    def build(restarts=1):
        em = regressions(ridge=0.1)(restarts)
        with torch.no_grad():
            em.model.bias = torch.full_like(em.model.bias, 1e3)
        return em

    starts = [
        torch.zeros(N, dtype=torch.int64),
        torch.ones(N, dtype=torch.int64),
        torch.arange(N) % 2,
    ]
    alone, together = both(build, x, y, starts=starts)
    np.testing.assert_allclose(together.objectives, alone.objectives)
    assert torch.equal(together.labels, alone.labels)
    assert int(alone.best.history["reseeded"].sum()) > 0
    assert together.best.history["reseeded"].tolist() == alone.best.history["reseeded"].tolist()


def test_masked_rows_have_no_label_in_any_restart():
    x, y = rows_of()
    seen = torch.arange(N) % 5 != 0

    def build(restarts=1):
        plain = regressions(equal=False)(restarts).model

        def model(x, y, seen):
            with pyro.poutine.mask(mask=seen):
                return plain(x, y)

        return EM(
            model, hard_partition(model, components=K * restarts, restarts=restarts), empty="keep"
        )

    alone, together = both(build, x, torch.where(seen, y, torch.nan), seen)
    assert_same(alone, together)


def test_gradient_steps_train_each_start_separately():
    """Each start has the initial params that it would have alone."""
    x, y = rows_of()

    def build(restarts=1):
        def model(x, y):
            slope = pyro.param("slope", lambda: torch.randn(K * restarts, P, dtype=torch.float64))
            with data_plate(x):
                z = pyro.sample(
                    "z",
                    MixtureWeights(
                        torch.full((K * restarts,), 1 / (K * restarts), dtype=torch.float64)
                    ),
                )
                pyro.sample("y", pyro.distributions.Normal((x * slope[z]).sum(-1), 1.0), obs=y)

        guide = hard_partition(model, components=K * restarts, restarts=restarts)
        return EM(
            model, guide, gradient=pyro.optim.Adam({"lr": 0.1}), gradient_steps=5, empty="keep"
        )

    alone, together = both(build, x, y, epochs=4, patience=10)
    assert_same(alone, together)


# The winner.


def test_the_best_fit_has_the_model_of_one_restart():
    x, y = rows_of()
    alone, together = both(regressions(equal=False, scale=None), x, y)
    one, best = alone.best, together.best
    assert type(best.guide) is HardPartition
    assert best.guide.components == K
    for name in ("weight", "bias", "scale", "weights"):
        torch.testing.assert_close(
            getattr(best.model, name).detach(), getattr(one.model, name).detach()
        )
        torch.testing.assert_close(pyro.param(name).detach(), getattr(best.model, name).detach())
    assert torch.equal(best.guide.labels.long(), together.labels)
    # The fit can go on: it has settled.
    assert best.inference.step(x, y) / N == pytest.approx(together.objectives.min(), rel=1e-9)
    assert torch.equal(best.guide.labels.long(), together.labels)
    scores = []
    for f in (one, best):
        pyro.clear_param_store()  # or the one would take the other's params
        scores.append(compare_routing(f.model, f.guide, train=(x, y), test=(x, y)))
    assert scores[0] == pytest.approx(scores[1])


def test_its_history_is_that_of_its_start():
    alone, together = both(regressions(equal=False), *rows_of())
    for column in ("elbo", "objective", "moved", "sizes", "live", "evaluations", "reseeded"):
        np.testing.assert_allclose(
            together.best.history[column], alone.best.history[column], err_msg=column
        )


def test_starts_that_have_converged_keep_their_labels():
    """The first start has converged before rows of the second one move."""
    x, y = rows_of()
    rest = fit_restarts(
        regressions(), x, y, starts=6, progress=False, generator=generator(), tolerance=0
    )
    moved = []
    build = regressions()
    found = fit_restarts(
        build,
        x,
        y,
        starts=[rest.labels, torch.arange(N) % K],
        parallel=True,
        progress=False,
        tolerance=0,
        patience=1,
        callbacks=[lambda fit: moved.append(fit.guide.restart_counts.moved.tolist())],
    )
    assert found.objectives[0] == pytest.approx(rest.objectives.min())
    assert len(moved) > 3
    assert sum(first for first, _ in moved) == 0
    assert sum(second for _, second in moved) > 0


def test_the_bar_counts_starts(capsys):
    found = fit_restarts(regressions(), *rows_of(), starts=3, parallel=True, generator=generator())
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert f"best={found.objectives.min():.2f}" in shown


def test_an_interruption_leaves_what_was_reached():
    def interrupt(fit):
        raise KeyboardInterrupt

    found = fit_restarts(
        regressions(), *rows_of(), starts=3, parallel=True, progress=False, callbacks=[interrupt]
    )
    assert found.best.interrupted
    assert not found.best.converged
    assert len(found.best.history) == 1
    assert found.objectives.shape == (3,)
    assert math.isfinite(found.objectives.min())


def test_nothing_else_in_the_store_changes():
    mine, before = pyro.param("mine", torch.ones(2)), torch.get_rng_state()
    fit_restarts(
        kmeans(),
        rows_of(torch.float32)[0],
        starts=2,
        parallel=True,
        progress=False,
        generator=generator(),
    )
    assert set(pyro.get_param_store()) == {"mine", "mean"}
    assert pyro.param("mine") is mine
    assert pyro.param("mean").shape == (K, P)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("local", [False, True])
def test_params_may_be_local_to_modules(local):
    with pyro.settings.context(module_local_params=local):
        assert_same(*both(regressions(equal=False), *rows_of(), starts=3))


# The guide by itself.


def test_a_step_is_a_step_of_each_restart():
    x, y = rows_of()
    labels = torch.randint(K, (4, N), generator=generator(), device="cpu")
    whole, loss = regressions(equal=False)(4), 0.0
    whole.guide.set_labels(labels)
    whole.step(x, y)  # fits the clusters that were set; its loss is that of the params before
    whole.guide.reset_counts()
    losses = [whole.step(x, y) for _ in range(3)]
    sizes, objective = whole.guide.sizes, whole.guide.objective
    left = whole.guide.losses(x, y)
    assert sizes.shape == (4, K)
    for restart in range(4):
        pyro.clear_param_store()
        one = regressions(equal=False)()
        one.guide.set_labels(labels[restart])
        one.step(x, y)
        one.guide.reset_counts()
        steps = [one.step(x, y) for _ in range(3)]
        loss += steps[-1]
        objective -= one.guide.objective
        assert torch.equal(one.guide.labels, whole.guide.labels[restart])
        assert sizes[restart].tolist() == one.guide.sizes.tolist()
        assert whole.guide.restart_counts.moved[restart] == one.guide.moved
        assert float(left[restart]) == pytest.approx(one.evaluate_loss(x, y), rel=1e-10)
    assert losses[-1] == pytest.approx(loss, rel=1e-10)
    assert objective == pytest.approx(0, abs=1e-8)


def test_stock_svi_averages_over_restarts():
    x, y = rows_of()
    em = regressions(equal=False)(3)
    em.guide.set_labels(torch.randint(K, (3, N), generator=generator(), device="cpu"))
    em.step(x, y)
    em.guide.set_labels(em.guide.labels)  # no row moves
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(em.model, em.guide, x, y)
    assert loss == pytest.approx(float(em.guide.losses(x, y).mean()), rel=1e-10)


def test_a_saved_fit_continues():
    x, y = rows_of()
    em = regressions()(2)
    em.guide.set_labels(torch.randint(K, (2, N), generator=generator(), device="cpu"))
    em.step(x, y)
    state = em.guide.state_dict()
    other = hard_partition(em.model, components=2 * K, restarts=2)
    other.load_state_dict(state)
    assert torch.equal(other.labels, em.guide.labels)
    assert EM(em.model, other).evaluate_loss(x, y) == em.evaluate_loss(x, y)
    with pytest.raises(PartitionError, match=r"integers \(3, N\)"):
        hard_partition(em.model, components=2 * K, restarts=3).load_state_dict(state)


def test_impossible_numbers_of_restarts_are_refused():
    model = KMeans(components=6, features=P)
    for restarts in (0, -1, 4):
        with pytest.raises(OptionError, match=f"restarts={restarts} does not divide"):
            hard_partition(model, components=6, restarts=restarts)
    guide = hard_partition(model, components=6, restarts=2)
    for labels in (torch.zeros(5).long(), torch.zeros(3, 5).long(), torch.full((2, 5), 3)):
        with pytest.raises(PartitionError, match="labels"):
            guide.set_labels(labels)
    with pytest.raises(OptionError, match="2 restarts, which are different mixtures"):
        guide.posterior_of_new_rows(torch.zeros(4, P))


# What would couple the starts.


def test_a_build_without_restarts_is_refused():
    with pytest.raises(OptionError, match="has no argument restarts"):
        fit_restarts(lambda: kmeans()(), torch.zeros(5, P), starts=2, parallel=True)


def test_a_build_that_ignores_restarts_is_refused():
    def few(restarts=1):
        model = KMeans(components=K, features=P)
        return EM(model, HardPartition(model, components=K))

    with pytest.raises(
        ModelError,
        match=r"build\(restarts=2\) made a HardPartition of restarts=1 and components=3, not of 2",
    ):
        fit_restarts(few, rows_of(torch.float32)[0], starts=2, parallel=True, progress=False)


def test_other_guides_are_refused():
    def build(restarts=1):
        model = KMeans(components=K * restarts, features=P)
        return EM(model, FullPartition(model, components=K * restarts))

    with pytest.raises(ModelError, match="FullPartition does not start from labels"):
        fit_restarts(build, torch.zeros(5, P), starts=2, parallel=True, progress=False)


def test_params_that_components_share_are_refused():
    def build(restarts=1):
        def model(x):
            loc, scale = (
                pyro.param("loc", torch.randn(K * restarts, P)),
                pyro.param("noise", torch.ones(P)),
            )
            with data_plate(x):
                z = pyro.sample(
                    "z", MixtureWeights(torch.full((K * restarts,), 1 / (K * restarts)))
                )
                pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)

        return EM(model, hard_partition(model, components=K * restarts, restarts=restarts))

    with pytest.raises(OptionError, match=r"\['noise'\] are shared by all components"):
        fit_restarts(build, rows_of(torch.float32)[0], starts=2, parallel=True, progress=False)


def test_params_of_modules_are_refused():
    def build(restarts=1):
        model = MixtureOfExperts(
            lambda: nn.Linear(P, 1), components=K * restarts, features=P, loss="squared"
        )
        guide = hard_partition(model, components=K * restarts, restarts=restarts)
        return EM(model, guide, gradient=pyro.optim.Adam({"lr": 0.1}))

    with pytest.raises(OptionError, match=r"experts\.3\.weight.*one entry per component"):
        fit_restarts(build, *rows_of(torch.float32), starts=2, parallel=True, progress=False)


def test_dropped_components_would_couple_the_starts():
    with pytest.raises(OptionError, match="empty='drop' would share"):
        fit_restarts(regressions(empty="drop"), *rows_of(), starts=2, parallel=True, progress=False)


@pytest.mark.parametrize("mask", [None, torch.arange(N) > 3])
def test_weights_that_would_couple_the_restarts_are_refused(mask):
    def model(x):
        with data_plate(x), pyro.poutine.mask(mask=True if mask is None else mask):
            z = pyro.sample("z", MixtureWeights(torch.tensor([0.1, 0.2, 0.3, 0.4])))
            pyro.sample(
                "x",
                DiagonalNormals(pyro.param("loc", torch.randn(4, P)), torch.ones(4, P))[z],
                obs=x,
            )

    with pytest.raises(OptionError, match=r"weights of restart 0 sum to 0\.3, not 1 / 2"):
        EM(model, hard_partition(model, components=4, restarts=2)).step(rows_of(torch.float32)[0])


def test_labels_of_other_rows_are_refused():
    with pytest.raises(PartitionError, match=rf"labels \(5,\), but the data have {N} rows"):
        fit_restarts(
            kmeans(),
            rows_of(torch.float32)[0],
            starts=[torch.zeros(5).long()] * 2,
            parallel=True,
            progress=False,
        )


def test_a_model_of_an_earlier_start_is_refused():
    em = kmeans()()
    with pytest.raises(OptionError, match="create both in build"):
        fit_restarts(
            lambda restarts=1: em,
            rows_of(torch.float32)[0],
            starts=2,
            parallel=True,
            progress=False,
        )


def test_weights_of_gaussians_come_back_with_sum_one():
    def build(restarts=1):
        model = GaussianMixture(components=K * restarts, features=P).double()
        return EM(
            model, hard_partition(model, components=K * restarts, restarts=restarts), empty="keep"
        )

    alone, together = both(build, rows_of()[0])
    assert_same(alone, together)
    sizes = torch.bincount(together.labels, minlength=K).double() / N
    torch.testing.assert_close(together.best.model.weights.detach(), sizes)
    done = fit(together.best.inference, rows_of()[0], progress=False)
    assert -done.elbo <= together.objectives.min() + 1e-9
