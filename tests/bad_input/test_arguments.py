"""Arguments of programs and strategies, minibatches and saved state: errors name the remedy."""

import math

import numpy as np
import pyro
import pytest
import torch

from pyro_mixtures.distributions import CandidateCategorical
from pyro_mixtures.errors import DataError, ModelError, PartitionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence, sample
from pyro_mixtures.infer.experts.comparison import compare_routing
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.poutine import data_plate
from tests.bad_input.inputs import STRATEGIES, C, D, N, built, draw_rows, gaussian, guide_of, svi

# ---------------------------------------------------------------- arrays, and arguments of programs


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_em_takes_the_arrays_that_fit_takes(strategy):
    x, found = draw_rows(), []
    for rows in (x, x.numpy()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model = gaussian()
        inference = EM(model, guide_of(strategy, model))
        index = np.arange(N) if rows is not x else torch.arange(N, device="cpu")
        losses = [
            inference.step(rows),
            inference.accumulate(rows, index=index, size=N),
            inference.evaluate_loss(rows),
        ]
        inference.maximize()
        found.append([*losses, inference.step(x=rows)])
    assert found[0] == found[1]


def test_em_takes_arrays_of_covariates_and_outcomes():
    x, y = draw_rows(), draw_rows()[:, 0]
    model = built(MixtureOfRegressions, ridge=0.1)
    inference = EM(model, FullPartition(model, components=C))
    expected = inference.evaluate_loss(x, y)
    assert inference.evaluate_loss(x.numpy(), y.numpy()) == expected
    assert inference.step(x.numpy(), y=y.numpy()) == expected


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda x: gaussian()(x), "rows"),
        (lambda x: built(KMeans)(x), "rows"),
        (lambda x: built(MixtureOfRegressions)(x), "rows"),
        (lambda x: built(MixtureOfRegressions)(draw_rows(), x), "outcomes"),
        (lambda x: built(KMeans)(draw_rows(), x), "row_weight"),
        (lambda x: svi(model := gaussian(), guide_of(FullPartition, model)).step(x), "rows"),
    ],
)
def test_programs_take_tensors_alone(use, name):
    for given in (np.zeros((N, D)), [[0.0] * D] * N, 3.0, torch.tensor(3.0)):
        remedy = rf"pass pyro_mixtures\.data\.as_rows\({name}\)"
        message = rf"{name} must be a tensor \(N, \.\.\.\), not .*: {remedy}"
        with pytest.raises(DataError, match=message):
            use(given)


def test_draws_of_experts_need_covariates():
    model = built(MixtureOfRegressions)
    with pytest.raises(
        ModelError, match=r"cannot be called with these arguments .*'x'.*sample\(model, x\)"
    ):
        sample(model, size=5)
    assert sample(model, draw_rows().numpy())["y"].shape == (N,)
    pyro.clear_param_store()
    mixture = gaussian()
    with pytest.raises(ModelError, match=r"cannot be called with these arguments .*'rows'"):
        sample(mixture, rows=5)
    assert sample(mixture, size=5)["x"].shape == (5, D)


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize(("place", "what"), [(0, "covariates"), (1, "outcomes")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_comparisons_name_rows_that_are_not_finite(name, place, what, bad):
    rows = {key: [draw_rows(), draw_rows()[:, 0]] for key in ("train", "test")}
    rows[name][place][7] = bad
    model = built(MixtureOfRegressions)
    guide = HardPartition(model, components=C)
    guide.set_labels(torch.arange(N, device="cpu") % C)
    for metric in (None, lambda prediction, y: (prediction - y).abs().mean()):
        with pytest.raises(
            DataError,
            match=f"row 7 of the {name} {what} contains NaN or infinity: remove such rows",
        ):
            compare_routing(model, guide, tuple(rows["train"]), tuple(rows["test"]), metric=metric)


def test_fit_asks_for_a_guide_of_this_package():
    model = gaussian()
    with pytest.raises(ModelError, match=r"fit needs a guide of pyro_mixtures\.guides"):
        fit(svi(model, lambda x: None), draw_rows())


# ---------------------------------------------------------------- minibatches


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"index": torch.arange(5)}, "pass its size= too"),
        ({"index": torch.tensor([0, 1, 2, 3, N]), "size": N}, rf"row numbers in \[0, {N}\)"),
        ({"index": torch.tensor([0, 1, 2, 3, -1]), "size": N}, rf"row numbers in \[0, {N}\)"),
        ({"index": torch.arange(4), "size": N}, "5 rows but 4 row numbers in index"),
        ({"size": N}, f"5 rows of a data set of size={N}: pass index="),
        ({"index": torch.arange(5.0), "size": N}, r"index.*torch\.float32"),
    ],
    ids=["no size", "too large", "negative", "too few", "no index", "no integers"],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_minibatches_that_do_not_fit_are_refused_with_the_remedy(strategy, kwargs, message):
    model = gaussian()
    with pytest.raises(DataError, match=message):
        guide_of(strategy, model).posterior(draw_rows(5), **kwargs)


def test_data_plate_needs_rows_or_a_size():
    with pytest.raises(DataError, match="needs rows, or size="):
        data_plate()
    with pytest.raises(DataError, match="no rows were given"):
        data_plate(0)


def test_truncated_guide_keeps_to_its_rows():
    model = gaussian()
    guide = guide_of(TruncatedPartition, model)
    guide.posterior(draw_rows())
    message = (
        rf"holds the state of {N} rows, but the data now have {N + 1}: "
        "make a new guide, pass index= and size="
    )
    for use in (guide.posterior, EM(model, guide).step, svi(model, guide).step):
        with pytest.raises(PartitionError, match=message):
            use(draw_rows(N + 1))
    # Rows without state are scored, not fitted.
    assert log_evidence(model, draw_rows(N + 1), guide=guide).shape == (N + 1,)


# ---------------------------------------------------------------- candidate sets and saved state


def test_candidate_sets_must_be_distinct_and_sorted_where_rows_share_them():
    with pytest.raises(PartitionError, match=r"lists a component twice: \[3, 3\]; pad with -1"):
        CandidateCategorical(torch.tensor([[0, 1], [3, 3]]), torch.zeros(2, 2))
    with pytest.raises(PartitionError, match="2 candidates per row but 3 logits"):
        CandidateCategorical(torch.tensor([[0, 1]]), torch.zeros(1, 3))
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    try:
        unsorted = CandidateCategorical(torch.tensor([4, 2, 3]), logits)
    except PartitionError as error:
        assert "sort" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(unsorted.log_prob(torch.tensor([4, 2, 3])), logits)


def saved_state(**options):
    model = gaussian()
    guide = guide_of(TruncatedPartition, model, **options)
    guide.posterior(draw_rows())
    pyro.clear_param_store()
    return guide.state_dict()


@pytest.mark.parametrize(
    "options", [{"candidates": 3}, {"neighbors": 2}, {"components": C + 1}], ids=["C'", "G", "C"]
)
def test_saved_state_of_another_shape_is_refused(options):
    state = saved_state()
    guide = guide_of(
        TruncatedPartition, gaussian(components=options.get("components", C)), **options
    )
    with pytest.raises(
        PartitionError,
        match=rf"saved state has \(C', C, G\) = \(2, {C}, 3\), but this guide has \(",
    ):
        guide.load_state_dict(state)
    # A refused state leaves the guide as it was.
    assert guide.posterior(draw_rows()).candidates.shape == (guide.candidates, N)


def test_saved_state_of_other_rows_is_refused_at_use():
    state = saved_state()
    guide = guide_of(TruncatedPartition, gaussian())
    guide.load_state_dict(state)
    with pytest.raises(PartitionError, match=rf"state of {N} rows, but the data now have {N - 1}"):
        guide.posterior(draw_rows(N - 1))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 1], r"row 7 lists a component twice: \[1, 1\]"),
        ([0, C], rf"outside \[0, {C}\)"),
        ([-1, 2], rf"outside \[0, {C}\)"),
    ],
    ids=["twice", "too large", "negative"],
)
def test_saved_state_that_is_broken_is_refused(row, message):
    state = saved_state()
    state["_extra_state"]["candidates"][7] = torch.tensor(row, dtype=torch.int32)
    with pytest.raises(PartitionError, match=message):
        guide_of(TruncatedPartition, gaussian()).load_state_dict(state)


def test_saved_state_with_a_broken_graph_is_refused():
    state = saved_state()
    state["_extra_state"]["neighbors"][2, 1] = C
    with pytest.raises(PartitionError, match=rf"outside \[0, {C}\)"):
        guide_of(TruncatedPartition, gaussian()).load_state_dict(state)


@pytest.mark.parametrize(
    ("index", "component"), [(N, 0), (0, C), (0, -1)], ids=["row", "component", "negative"]
)
def test_candidates_out_of_range_are_refused(index, component):
    guide = guide_of(TruncatedPartition, gaussian())
    with pytest.raises(PartitionError, match=rf"outside \[0, {N if index else C}\)"):
        guide.add_candidates(torch.tensor([index]), torch.tensor([component]), size=N)
