"""Row weights of every model: rows of weight two count twice, rows of weight zero not at all."""

import inspect

import pyro
import pytest
import torch

import pyro_mixtures.models
from pyro_mixtures.errors import DataError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence
from pyro_mixtures.models import (
    BregmanMixture,
    GaussianMixture,
    KMeans,
    LatentClassLogit,
    MixtureOfExperts,
    MixtureOfFactorAnalyzers,
    MixtureOfLogisticRegressions,
    MixtureOfPoissonRegressions,
    MixtureOfRegressions,
    MixtureOfSVMs,
    SoftmaxMixture,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")

C, D, N = 3, 2, 24
WEIGHTS = (2.0, 1.0, 0.0, 3.0)


def gaussian(**options):
    return lambda: GaussianMixture(components=C, features=D, **options)


def experts(**options):
    def build():
        make = lambda: torch.nn.Linear(D, 1)  # noqa: E731
        return MixtureOfExperts(make, components=C, features=D, loss="squared", **options)

    return build


def choices(**options):
    return lambda: LatentClassLogit(components=C, coefficients=D, **options)


def softmax():
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [1.0, 3.0]])
    return SoftmaxMixture(components=C, features=features, ridge=0.1)


def positive_rows():
    return (torch.rand(N, D, device="cpu") * 5,)


def normal_rows():
    return (torch.randn(N, D, device="cpu"),)


def regression_rows():
    x = torch.randn(N, D, device="cpu")
    return x, x[:, 0] + torch.randn(N, device="cpu")


def count_rows():
    return torch.randn(N, D, device="cpu"), torch.arange(N, device="cpu").remainder(4).float()


def label_rows():
    return torch.randn(N, D, device="cpu"), torch.arange(N, device="cpu").remainder(2).float()


def item_rows():
    return (torch.arange(N, device="cpu") % 4,)


def choice_rows():
    design = torch.randn(N, 2, 3, D, device="cpu")
    available = torch.ones(N, 2, 3, dtype=torch.bool, device="cpu")
    chosen = torch.randint(3, (N, 2), device="cpu")
    # An empty tensor of covariates stands for none, where weights follow by position.
    return design, available, chosen, torch.zeros(N, 0, device="cpu")


def choice_rows_with_covariates():
    return *choice_rows()[:3], torch.randn(N, 1, device="cpu")


MODELS = {
    "isotropic": (gaussian(covariance="isotropic"), normal_rows),
    "diagonal": (gaussian(), normal_rows),
    "full": (gaussian(covariance="full"), normal_rows),
    "tied": (gaussian(covariance="full", tied=True), normal_rows),
    "factor analyzers": (
        lambda: MixtureOfFactorAnalyzers(components=C, features=D, factors=1),
        normal_rows,
    ),
    "k-means": (lambda: KMeans(components=C, features=D), normal_rows),
    "spherical k-means": (lambda: KMeans(components=C, features=D, spherical=True), normal_rows),
    "Poisson": (
        lambda: BregmanMixture(components=C, features=D, divergence="kl"),
        positive_rows,
    ),
    "regressions": (
        lambda: MixtureOfRegressions(components=C, features=D, ridge=0.1),
        regression_rows,
    ),
    "regressions with locations": (
        lambda: MixtureOfRegressions(components=C, features=D, ridge=0.1, input_density=1.0),
        regression_rows,
    ),
    "logistic": (
        lambda: MixtureOfLogisticRegressions(components=C, features=D, ridge=0.1),
        label_rows,
    ),
    "Poisson regressions": (
        lambda: MixtureOfPoissonRegressions(components=C, features=D, ridge=0.1),
        count_rows,
    ),
    "support vector machines": (
        lambda: MixtureOfSVMs(components=C, features=D, ridge=0.1),
        label_rows,
    ),
    "experts": (experts(), regression_rows),
    "softmax": (softmax, item_rows),
    "choices": (choices(ridge=0.1), choice_rows),
    "choices with covariates": (
        choices(ridge=0.1, covariates=1, gate_ridge=0.1),
        choice_rows_with_covariates,
    ),
}


def test_every_model_is_tested():
    exported = {getattr(pyro_mixtures.models, name) for name in pyro_mixtures.models.__all__}
    families = {cls for cls in exported if not cls.__module__.endswith(".base")}
    assert families == {type(build()) for build, _ in MODELS.values()}


@pytest.mark.parametrize("build", [build for build, _ in MODELS.values()], ids=MODELS)
def test_every_program_takes_row_weight_by_position_and_index_by_name(build):
    parameters = inspect.signature(build().forward).parameters
    names = list(parameters)
    assert names[-3:] == ["row_weight", "index", "size"]
    assert parameters["row_weight"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    kinds = {parameters[name].kind for name in ("index", "size")}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def guide_of(guide_class, model):
    options = {
        FullPartition: {},
        TruncatedPartition: {"candidates": 2, "neighbors": 3, "seed": 0},
        HardPartition: {"score": "loss"},
    }[guide_class]
    return guide_class(model, components=C, **options)


def params_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def em_of(model, guide):
    gradient = pyro.optim.SGD({"lr": 1e-3}) if isinstance(model, MixtureOfExperts) else None
    return EM(model, guide, empty="keep", gradient=gradient)


@pytest.mark.parametrize("guide_class", [FullPartition, TruncatedPartition, HardPartition])
@pytest.mark.parametrize("name", MODELS)
def test_weighted_rows_equal_repeated_rows(name, guide_class):
    build, draw_rows = MODELS[name]
    torch.manual_seed(0)
    with torch.device("cpu"):
        rows = [row.double() if row.is_floating_point() else row for row in draw_rows()]
        weight = torch.tensor(WEIGHTS).double().repeat(N // len(WEIGHTS))
    copies = torch.repeat_interleave(torch.arange(N, device="cpu"), weight.long())

    def fitted(rows, *row_weight, table=None):
        pyro.clear_param_store()
        torch.manual_seed(1)
        with torch.device("cpu"):
            model = build().double()
        arguments = (*rows, *row_weight)
        guide = guide_of(guide_class, model)
        guide.posterior(*arguments)
        if guide_class is TruncatedPartition:
            if table is not None:
                guide.sets.table = table.clone()
            guide.eval()
            table = guide.sets.table
        evidence = log_evidence(model, *arguments)
        em = em_of(model, guide)
        losses = [em.step(*arguments) for _ in range(2)]
        return losses, params_of(model), evidence, table

    losses, params, evidence, table = fitted(rows, weight)
    their_table = None if table is None else table[copies]
    repeated = [row[copies] for row in rows]
    their_losses, their_params, their_evidence, _ = fitted(repeated, table=their_table)
    torch.testing.assert_close(losses, their_losses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(params, their_params, rtol=1e-6, atol=1e-7)
    # The log evidence of a row does not depend on its weight.
    torch.testing.assert_close(evidence[copies], their_evidence)


@pytest.mark.parametrize("build", [gaussian(), gaussian(covariance="full")])
def test_fit_batches_weights_together_with_rows(build):
    x, weight = torch.randn(40, D, device="cpu"), torch.rand(40, device="cpu")
    fits = []
    for batch_size in (None, 7):
        pyro.clear_param_store()
        torch.manual_seed(0)
        with torch.device("cpu"):
            model = build()
        em = EM(model, FullPartition(model, components=C))
        fit(em, x, weight, epochs=3, batch_size=batch_size, progress=False)
        fits.append(params_of(model))
    torch.testing.assert_close(*fits, rtol=1e-4, atol=1e-5)


@pytest.mark.meta
@pytest.mark.parametrize("weight", [torch.int64, torch.float16, torch.float32, torch.float64])
def test_weights_of_any_dtype_leave_params_in_their_own(weight):
    x = torch.randn(N, D, device="cpu")
    with torch.device("cpu"):
        model = GaussianMixture(components=C, features=D)
        weights = torch.tensor(WEIGHTS).repeat(N // len(WEIGHTS)).to(weight)
    posterior = FullPartition(model, components=C).posterior(x, weights)
    assert posterior.probs.dtype == torch.float32
    torch.testing.assert_close(posterior.row_weight, weights.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["diagonal", "factor analyzers", "k-means", "Poisson"])
@pytest.mark.parametrize("guide_class", [FullPartition, HardPartition])
def test_rows_of_weight_zero_have_no_influence(dtype, name, guide_class):
    build, draw_rows = MODELS[name]
    x = draw_rows()[0].to(dtype)
    weight = torch.tensor(WEIGHTS, dtype=dtype, device="cpu").repeat(N // len(WEIGHTS))
    positive = weight > 0
    results = []
    for rows in ((x, weight), (x[positive], weight[positive])):
        pyro.clear_param_store()
        torch.manual_seed(0)
        with torch.device("cpu"):
            model = build().to(dtype)
        em = em_of(model, guide_class(model, components=C))
        losses = torch.tensor([em.step(*rows) for _ in range(3)])
        results.append({"losses": losses, **params_of(model)})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2), r"row_weight \(2,\) for 3 rows"),
        (torch.ones(3, 1), r"row_weight \(3, 1\) for 3 rows"),
        (torch.tensor([1.0, -1.0, 1.0]), "row_weight of row 1 is -1"),
        (torch.tensor([1.0, 1.0, torch.nan]), "row_weight of row 2 is nan"),
        (torch.tensor([torch.inf, 1.0, 1.0]), "row_weight of row 0 is inf"),
        (1.0, "row_weight must be a tensor"),
    ],
)
@pytest.mark.parametrize(
    "build", [gaussian(), lambda: BregmanMixture(components=C, features=D)], ids=["normal", "mean"]
)
def test_invalid_weights_are_refused(build, weight, message):
    model = build()
    with pytest.raises(DataError, match=message):
        model(torch.zeros(3, 2), weight)
    with pytest.raises(DataError, match=r"for 0 rows|must be a tensor"):
        model(None, weight, size=3)


@pytest.mark.parametrize("name", ["regressions", "experts", "choices", "softmax"])
def test_invalid_weights_of_conditional_models_are_refused(name):
    build, draw_rows = MODELS[name]
    with pytest.raises(DataError, match=r"row_weight of row 1 is -1"):
        build()(*draw_rows(), row_weight=-torch.arange(float(N), device="cpu"))


def test_row_numbers_by_position_are_refused():
    with pytest.raises(TypeError, match="positional"):
        gaussian()()(torch.zeros(3, D), torch.ones(3), torch.arange(3), 9)
