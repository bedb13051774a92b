"""The latent-class logit under all strategies: recovered classes, panels, covariates."""

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from scipy.optimize import linear_sum_assignment, minimize

from pyro_mixtures.data.choices import choices_from_long
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence, responsibilities
from pyro_mixtures.infer.scoring.predict import sample
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.testing import assert_near, exact_loss

pytestmark = pytest.mark.usefixtures("on_one_thread")

N, T, J, L, C = 150, 4, 3, 3, 2


def situations(rows=N, seed=0):
    """Attributes and availability; some choosers have fewer situations than others."""
    g = torch.Generator("cpu").manual_seed(seed)
    design = torch.randn(rows, T, J, L, generator=g, dtype=torch.float64, device="cpu")
    available = torch.rand(rows, T, J, generator=g, device="cpu") < 0.85
    available[:, T - 1] &= torch.rand(rows, 1, generator=g, device="cpu") < 0.5
    return design, available


def build(components=C, seed=0, **options):
    torch.manual_seed(seed)
    with torch.device("cpu"):
        return LatentClassLogit(components=components, coefficients=L, **options).double()


def planted(rows=N, seed=0, **options):
    """A model whose classes differ, and choices drawn from it: its arguments, and the classes."""
    model = build(seed=seed, **options)
    with torch.no_grad():
        model.theta = (
            2.0 * torch.tensor([[1.0, -1.0, 0.5], [-1.0, 0.2, 1.0]], device="cpu").double()
        )
        if options:
            model.gate_weight = torch.tensor([[1.0, -1.5]], device="cpu").double()
            model.gate_bias = torch.tensor([0.3], device="cpu").double()
        else:
            model.weights = torch.tensor([0.6, 0.4], device="cpu").double()
    design, available = situations(rows, seed)
    if not options:
        draw = sample(model, design, available)
        return model, (design, available, draw["y"]), draw["z"]
    u = torch.randn(rows, 2, dtype=torch.float64, device="cpu")
    draw = sample(model, design, available, None, u)
    return model, (design, available, draw["y"], u), draw["z"]


def brute_log_joint(model, design, available, chosen, covariates=None):
    """log p(c, y) (N, C), differentiable."""
    utility = torch.einsum("ntjl,cl->ntcj", design, model.theta).masked_fill(
        ~available.unsqueeze(2), -torch.inf
    )
    each = utility.gather(
        -1, chosen.clamp_min(0)[..., None, None].expand(-1, -1, model.components, 1)
    ).squeeze(-1)
    each = torch.where((chosen >= 0).unsqueeze(-1), each - utility.logsumexp(-1), 0.0)
    prior = model.weights.log() if covariates is None else None
    if prior is None:
        scores = covariates @ model.gate_weight.T + model.gate_bias
        prior = torch.cat([torch.zeros_like(scores[:, :1]), scores], -1).log_softmax(-1)
    return prior + each.sum(1)


def guides(model):
    c = model.components
    return {
        "full": FullPartition(model, components=c),
        "truncated": TruncatedPartition(
            model, components=c, candidates=c, neighbors=c, explore=0, seed=0
        ),
    }


@pytest.mark.parametrize("options", [{}, {"covariates": 2}], ids=["weights", "gate"])
@pytest.mark.parametrize("kind", ["full", "truncated"])
def test_log_evidence_loss_and_gradients_equal_brute_force(options, kind):
    model, rows, _ = planted(**options)
    expected = brute_log_joint(model, *rows)
    assert_near(log_evidence(model, *rows), expected.logsumexp(-1), 1e-10)
    assert exact_loss(model, *rows) == pytest.approx(
        -expected.logsumexp(-1).sum().item(), rel=1e-10
    )
    found = responsibilities(model, *rows, top=C)
    assert_near(found.probs.gather(1, found.components.argsort(1)), expected.softmax(-1), 1e-8)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        model, guides(model)[kind], *rows
    )
    mine = torch.autograd.grad(loss, [*model.parameters()])
    theirs = torch.autograd.grad(-expected.logsumexp(-1).sum(), [*model.parameters()])
    for ours, reference in zip(mine, theirs, strict=True):
        assert_near(ours, reference, 1e-8)


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"covariates": 2}, {"ridge": 0.01}], ids=["weights", "gate", "ridge"]
)
@pytest.mark.parametrize("guide_class", [FullPartition, TruncatedPartition, HardPartition])
def test_em_is_monotone(dtype, options, guide_class):
    _, rows, _ = planted(**({"covariates": 2} if "covariates" in options else {}))
    pyro.clear_param_store()
    model = build(3, **options).to(dtype)
    rows = tuple(row.to(dtype) if row.is_floating_point() else row for row in rows)
    model.start(*rows, generator=torch.Generator("cpu").manual_seed(1))
    extra = (
        {"candidates": 2, "neighbors": 2, "seed": 0} if guide_class is TruncatedPartition else {}
    )
    em = EM(model, guide_class(model, components=3, **extra), empty="keep")
    losses = torch.tensor([em.step(*rows) for _ in range(8)], dtype=torch.float64, device="cpu")
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    assert (losses.diff() <= tolerance * losses[0].abs()).all(), losses.tolist()
    assert losses[-1] < losses[0] - 1
    assert model.theta.dtype == dtype


def test_one_class_is_the_conditional_logit():
    """One step from any start reaches the maximum that scipy finds."""
    _, rows, _ = planted()
    pyro.clear_param_store()
    model = build(1)
    EM(model, FullPartition(model, components=1)).step(*rows)
    numbers = [row.numpy() for row in rows]

    def loss(theta):
        x, a, y = numbers
        utility = np.where(a, x @ theta, -np.inf)
        norm = np.log(np.exp(utility).sum(-1, where=a, initial=1e-300))
        return (norm - np.take_along_axis(utility, y.clip(0)[..., None], -1)[..., 0])[y >= 0].sum()

    peer = minimize(loss, np.zeros(L), options={"gtol": 1e-6})
    assert_near(model.theta[0], torch.tensor(peer.x), 1e-4)
    assert -log_evidence(model, *rows).sum().item() == pytest.approx(peer.fun, rel=1e-9)


def test_mode_choices_of_travelers_have_the_coefficients_that_statsmodels_finds():
    """210 Australian travelers (Greene); statsmodels ships the data."""
    modechoice = pytest.importorskip("statsmodels.datasets.modechoice")
    conditional = pytest.importorskip("statsmodels.discrete.conditional_models")
    lines = modechoice.load_pandas().data
    keys = {"chooser": "individual", "alternative": "mode", "chosen": "choice"}
    table = choices_from_long(
        lines, **keys, generic=["ttme", "invc", "invt", "gc"], dtype=torch.float64
    )
    model = LatentClassLogit(components=1, coefficients=table.coefficients).double()
    EM(model, FullPartition(model, components=1)).step(*table.rows)
    chosen, flat = (
        torch.nn.functional.one_hot(table.chosen[:, 0], 4).reshape(-1),
        table.design.flatten(0, 2),
    )
    peer = conditional.ConditionalLogit(
        chosen.numpy(), flat.numpy(), groups=np.repeat(np.arange(210), 4)
    )
    found = peer.fit(disp=False, method="bfgs", maxiter=500)
    assert log_evidence(model, *table.rows).sum().item() == pytest.approx(found.llf, rel=1e-6)
    assert_near(model.theta[0], torch.tensor(found.params), 1e-4)


def best_fit(rows, starts=4, steps=60, **options):
    """The best of several starts."""
    found = []
    for seed in range(starts):
        pyro.clear_param_store()
        model = build(seed=seed, **options)
        model.start(*rows, generator=torch.Generator().manual_seed(seed))
        em = EM(model, FullPartition(model, components=C), empty="keep")
        for _ in range(steps):
            loss = em.step(*rows)
        found.append((loss, seed, model))
    return min(found)[2]


@pytest.mark.parametrize("options", [{}, {"covariates": 2}], ids=["weights", "gate"])
def test_planted_classes_are_recovered(options):
    truth, rows, z = planted(800, **options)
    wanted, likelihood = truth.theta.detach().clone(), log_evidence(truth, *rows).sum()
    if options:
        wanted_gate = torch.cat(
            [truth.gate_weight.detach(), truth.gate_bias.detach().unsqueeze(-1)], -1
        )
    model = best_fit(rows, 2, 30, **options)
    away = torch.cdist(wanted, model.theta.detach())
    _, match = linear_sum_assignment(away.numpy())
    assert (model.theta[match] - wanted).abs().max() < 0.5
    assert log_evidence(model, *rows).sum() > likelihood
    assert (
        responsibilities(model, *rows, top=1).components[:, 0] == torch.tensor(match)[z]
    ).double().mean() > 0.9
    if options:
        gate = torch.cat([model.gate_weight.detach(), model.gate_bias.detach().unsqueeze(-1)], -1)
        assert ((gate if match[0] == 0 else -gate) - wanted_gate).abs().max() < 0.7
    else:
        assert_near(model.weights[match], torch.tensor([0.6, 0.4]), 0.1)


def test_panel_tells_classes_apart_that_single_choices_do_not():
    truth, (x, a, y), z = planted(600)
    cross = x.flatten(0, 1).unsqueeze(1), a.flatten(0, 1).unsqueeze(1), y.reshape(-1, 1)
    panel = responsibilities(truth, x, a, y, top=1).components[:, 0] == z
    single = responsibilities(truth, *cross, top=1).components[:, 0] == z.repeat_interleave(T)
    assert panel.double().mean() > single.double().mean() + 0.1


def test_padding_and_order_of_situations_change_nothing():
    _, (x, a, y), _ = planted()
    junk = torch.full_like(x[:, :2], torch.nan)
    wide = torch.cat([junk, x.flip(1)], 1), torch.cat([a[:, :2] & False, a.flip(1)], 1)
    wide = (*wide, torch.cat([torch.full_like(y[:, :2], -1), y.flip(1)], 1))
    found = []
    for rows in ((x, a, y), wide):
        pyro.clear_param_store()
        model = build()
        em = EM(model, FullPartition(model, components=C), empty="keep")
        losses = [em.step(*rows) for _ in range(3)]
        found.append(torch.cat([torch.tensor(losses).double(), model.theta.detach().flatten()]))
    assert_near(found[1], found[0], 1e-10)


def test_weight_of_a_chooser_is_that_of_as_many():
    _, rows, _ = planted(80)
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64).repeat(20)
    repeated = tuple(row.repeat_interleave(weight.long(), 0) for row in rows)
    found = []
    for given in ((*rows, None, weight), repeated):
        pyro.clear_param_store()
        model = build()
        em = EM(model, FullPartition(model, components=C), empty="keep")
        losses = [em.step(*given) for _ in range(3)]
        found.append(torch.cat([torch.tensor(losses).double(), model.theta.detach().flatten()]))
    assert_near(found[1], found[0], 1e-8)


@pytest.mark.parametrize("options", [{}, {"covariates": 2}], ids=["weights", "gate"])
def test_batches_make_the_step_of_all_rows(options):
    _, rows, _ = planted(**options)
    found = []
    for size in (N, 40):
        pyro.clear_param_store()
        model = build(**options)
        em = EM(model, FullPartition(model, components=C), empty="keep")
        for _ in range(2):
            batches = torch.arange(N).split(size)
            loss = sum(
                em.accumulate(*(row[batch] for row in rows), index=batch, size=N)
                for batch in batches
            )
            em.maximize()
        found.append(
            torch.cat(
                [torch.tensor([loss]).double(), *(p.detach().flatten() for p in model.parameters())]
            )
        )
    assert_near(found[1], found[0], 1e-6)


def test_svi_lowers_the_loss():
    _, rows, _ = planted(covariates=2)
    pyro.clear_param_store()
    model = build(covariates=2)
    model.start(*rows, generator=torch.Generator().manual_seed(0))
    svi = SVI(
        model,
        FullPartition(model, components=C),
        Adam({"lr": 0.1}),
        TraceEnum_ELBO(max_plate_nesting=1),
    )
    losses = [svi.step(*rows) for _ in range(15)]
    assert losses[-1] < losses[0] - 5


def test_masked_choosers_may_hold_anything():
    _, (x, a, y), _ = planted()
    seen = torch.arange(N + 20) < N
    x_wide = torch.cat([x, torch.full_like(x[:20], torch.nan)])
    a_wide, y_wide = torch.cat([a, a[:20] | True]), torch.cat([y, y[:20].clamp_min(0)])
    found = []
    for rows, mask in (((x, a, y), None), ((x_wide, a_wide, y_wide), seen)):
        pyro.clear_param_store()
        model = build()
        program = model if mask is None else pyro.poutine.mask(model, mask)
        EM(program, FullPartition(program, components=C), empty="keep").step(*rows)
        found.append(model.theta.detach().clone())
    assert_near(found[1], found[0], 1e-10)


def test_missing_attribute_of_an_available_alternative_is_refused_by_row():
    _, (x, a, y), _ = planted()
    x[7, 0, a[7, 0].nonzero()[0, 0]] = torch.nan
    pyro.clear_param_store()
    model = build()
    with pytest.raises(DataError, match="row 7"):
        EM(model, FullPartition(model, components=C)).step(x, a, y)


def masked_covariates(value):
    pyro.clear_param_store()
    _, (x, a, y, u), _ = planted(covariates=2)
    weight = torch.ones(N, dtype=torch.float64, device="cpu")
    weight[0], u[0] = 0.0, value
    return x, a, y, u, weight


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_covariates_of_rows_without_weight_may_hold_nan(value):
    """Covariates of rows of weight zero enter neither EM nor gradients."""
    found = []
    for rows in (masked_covariates(value), masked_covariates(0.0)):
        pyro.clear_param_store()
        model = build(covariates=2)
        em = EM(model, FullPartition(model, components=C), empty="keep")
        losses = [em.step(*rows) for _ in range(2)]
        svi = SVI(
            model,
            FullPartition(model, components=C),
            Adam({"lr": 0.1}),
            TraceEnum_ELBO(max_plate_nesting=1),
        )
        losses += [svi.step(*rows) for _ in range(2)]
        params = [p.detach().flatten() for p in model.parameters()]
        found.append(torch.cat([torch.tensor(losses).double(), *params]))
    assert found[0].isfinite().all()
    assert_near(found[0], found[1], 1e-8)


def test_missing_covariates_of_somebody_are_refused_by_row():
    *rows, u, weight = masked_covariates(torch.nan)
    pyro.clear_param_store()
    model = build(covariates=2)
    with pytest.raises(DataError, match="row 0 of the model's argument 3"):
        EM(model, FullPartition(model, components=C)).step(*rows, u, weight.fill_(1.0))
    with pytest.raises(DataError, match="row 0 of the covariates"):
        model(*rows[:2], None, u)
    rows[0][3, 0, rows[1][3, 0].nonzero()[0, 0]] = torch.nan
    with pytest.raises(DataError, match="row 3 of the design"):
        model(*rows[:2], None, u.nan_to_num())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), r"row_weight \(3,\) for 4 rows"),
        (torch.ones(4, 1), r"row_weight \(4, 1\) for 4 rows"),
        (torch.tensor([1.0, 1.0, -1.0, 1.0]), "row_weight of row 2 is -1"),
        (torch.tensor([1.0, 1.0, 1.0, torch.nan]), "row_weight of row 3 is nan"),
        (torch.tensor([1.0, torch.inf, 1.0, 1.0]), "row_weight of row 1 is inf"),
    ],
)
def test_weights_that_cannot_be_are_refused(weight, message):
    _, rows, _ = planted(4)
    pyro.clear_param_store()
    model = build()
    with pytest.raises(DataError, match=message):
        model.start(*rows, None, weight)
    with pytest.raises(DataError, match=message):
        EM(model, FullPartition(model, components=C)).step(*rows, None, weight)


def test_batches_without_weight_are_allowed():
    _, rows, _ = planted()
    weight = (torch.arange(N) >= 50).double()
    pyro.clear_param_store()
    model = build()
    em = EM(model, FullPartition(model, components=C), empty="keep")
    found = fit(em, *rows, rows[0].new_zeros(N, 0), weight, batch_size=25, epochs=2, progress=False)
    assert np.isfinite(found.elbo)
    # Scores call the program with batches of rows.
    parts = log_evidence(model, *rows, rows[0].new_zeros(N, 0), weight, chunk=25)
    assert parts[50:].isfinite().all()


def test_starts_of_other_shapes_are_refused():
    _, (x, a, y), _ = planted(20)
    model = build()
    with pytest.raises(DataError, match=r"choices are \(20,\)"):
        model.start(x, a, y[:, 0])
    with pytest.raises(DataError, match="at least one situation"):
        model.start(x[:, :0], a[:, :0], y[:, :0])
    with pytest.raises(DataError, match="1 covariates for a model with 0"):
        model.start(x, a, y, torch.zeros(20, 1).double())
    weight = torch.ones(20).double()
    x[5], a[5, 0], y[5, 0], weight[5] = torch.nan, True, 0, 0.0
    model.start(x, a, y, None, weight)
    assert model.theta.isfinite().all()
    with pytest.raises(DataError, match="zero for all choosers"):
        model.start(x, a, y, None, torch.zeros_like(weight))
    with pytest.raises(DataError, match="row 5 of the design"):
        model.start(x, a, y)


def test_probabilities_need_covariates_of_every_chooser():
    x, a = situations(5)
    model = build(covariates=2)
    for rows in (1, 4):
        with pytest.raises(DataError, match=f"{rows} rows of covariates for 5 choosers"):
            model.probabilities(x, a, torch.zeros(rows, 2).double())


def test_numbers_of_coefficients_are_whole():
    assert LatentClassLogit(components=2, coefficients=np.int64(2)).theta.shape == (2, 2)
    with pytest.raises(OptionError, match=r"coefficients=2\.0"):
        LatentClassLogit(components=2, coefficients=2.0)


def test_start_surrounds_the_common_coefficients():
    _, rows, _ = planted(400)
    pyro.clear_param_store()
    single = build(1)
    EM(single, FullPartition(single, components=1)).step(*rows)
    best = single.theta[0].detach().clone()
    pyro.clear_param_store()
    model = build(200)
    stretched = torch.tensor([1.0, 100.0, 0.0]).double()
    model.start(rows[0] * stretched, *rows[1:], generator=torch.Generator().manual_seed(0))
    common = torch.cat([best[:2] / stretched[:2], torch.zeros(1).double()])
    away = (model.theta.detach() - common) * stretched
    assert (away[:, :2].mean(0).abs() < 0.4).all()
    assert ((away[:, :2].std(0) > 0.8) & (away[:, :2].std(0) < 2)).all()
    assert (model.theta[:, 2] == 0).all()
    model.start(*rows, spread=0.0)
    assert_near(model.theta[5], best, 1e-8)


def test_probabilities_average_those_of_the_classes():
    for options in ({}, {"covariates": 2}):
        pyro.clear_param_store()
        model, (x, a, _, *u), _ = planted(20, **options)
        found = model.probabilities(x, a, *u)
        for j in range(J):
            one = torch.where(a[:, :1, j], j, -1)
            log_joint = brute_log_joint(model, x[:, :1], a[:, :1], one, *u)
            assert_near(
                found[:, 0, j], torch.where(a[:, 0, j], log_joint.logsumexp(-1).exp(), 0.0), 1e-10
            )


def test_tables_are_the_programs_arguments():
    random = np.random.default_rng(0)
    table = pd.DataFrame({"id": np.repeat(np.arange(30), 3), "mode": ["a", "b", "c"] * 30})
    table["cost"], table["age"] = random.random(90), np.repeat(random.random(30), 3)
    table["taken"], table["weight"] = np.tile([1, 0, 0], 30), np.repeat(random.random(30), 3)
    for options in (
        {},
        {"covariates": ["age"]},
        {"weight": "weight"},
        {"covariates": ["age"], "weight": "weight"},
    ):
        pyro.clear_param_store()
        keys = {"chooser": "id", "alternative": "mode", "chosen": "taken", "generic": ["cost"]}
        choices = choices_from_long(table, **keys, **options)
        given = {
            "coefficients": choices.coefficients,
            "covariates": choices.covariate_names or None,
        }
        model = LatentClassLogit(components=2, **given, ridge=0.1, gate_ridge=0.1)
        model.start(*choices.rows)
        em = EM(model, FullPartition(model, components=2))
        assert em.step(*choices.rows) >= em.step(*choices.rows)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(OptionError, match="distinct names"):
        LatentClassLogit(components=2, coefficients=["a", "a"])
    with pytest.raises(OptionError, match="coefficients=0"):
        LatentClassLogit(components=2, coefficients=0)
    with pytest.raises(OptionError, match="components"):
        LatentClassLogit(components=1, coefficients=2, covariates=1)
    with pytest.raises(OptionError, match="ridge"):
        LatentClassLogit(components=1, coefficients=2, ridge=-1.0)
    x, a = situations(3)
    with pytest.raises(DataError, match="2 covariates for a model with 0"):
        build()(x, a, None, torch.zeros(3, 2).double())
    pyro.clear_param_store()
    with pytest.raises(DataError, match="0 covariates for a model with 2"):
        build(covariates=2)(x, a)
    pyro.clear_param_store()
    with pytest.raises(OptionError, match="attributes"):
        build()(x[..., :2], a)
