"""The twelve sharp edges of Pyro of DESIGN.md, by number: our piece is right, and the stock way still cuts."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTraceEnum_ELBO,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    infer_discrete,
)
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch.distributions import constraints
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pyro_mixtures.distributions import (
    CandidateCategorical,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    MixtureWeights,
    RestrictedSupport,
    Selected,
)
from pyro_mixtures.errors import MixtureError, ModelError, PartitionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, assign, responsibilities
from pyro_mixtures.partition import CandidateSets
from pyro_mixtures.poutine import data_plate, truncate

CPU = torch.device("cpu")
ELBO = TraceEnum_ELBO(max_plate_nesting=1)
N, C, D = 12, 5, 2
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], device="cpu")
LOC = torch.linspace(-2.0, 2.0, C, device="cpu").unsqueeze(-1).repeat(1, D)


def draw_rows(rows=N, features=D):
    return 1.5 * torch.randn(rows, features, device="cpu")


def no_guide(*args, **kwargs):
    """A guide without sites: all discrete sites are enumerated in the model."""


def mixture_params():
    weights = pyro.param("weights", lambda: WEIGHTS.clone(), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: LOC.clone())
    scale = pyro.param(
        "scale", lambda: torch.ones(C, D, device="cpu"), constraint=constraints.positive
    )
    return weights, loc, scale


def plain(x, index=None, size=None):
    weights, loc, scale = mixture_params()
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def log_joint(x, loc=LOC, scale=1.0, weights=WEIGHTS):
    """log p(c, x_n), (N, C), by stock distributions."""
    return dist.Normal(loc, scale).to_event(1).log_prob(x.unsqueeze(1)) + weights.log()


def exact_loss(x, **kwargs):
    return -float(log_joint(x, **kwargs).logsumexp(-1).sum())


def frozen_guide(strategy, model, *args, table=None):
    """A guide that has searched once and then keeps its candidate sets (``table``, or those it found)."""
    options = {"candidates": 2, "neighbors": 3, "seed": 0} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, **options)
    guide.posterior(*args)
    if table is not None and strategy is TruncatedPartition:
        guide.sets.table = table.clone()
    return guide.eval()


def params_after_em(model, guide, *args):
    pyro.clear_param_store()
    EM(model, guide, empty="keep").step(*args)
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


# ---------------------------------------------------------------- 1: log_prob of the weights


class LargestTensor(TorchDispatchMode):
    """Records the most numbers that any storage made within it can hold."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(
                    self.numel, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        return out


def largest_of_log_prob(make, slots=3, rows=50, components=70):
    argument = torch.full((components,), 1 / components, requires_grad=True, device="cpu")
    z = torch.randint(components, (slots, rows), device="cpu")
    with LargestTensor() as seen:
        make(argument).expand((rows,)).log_prob(z).sum().backward()
    assert argument.grad is not None
    return seen.numel, slots * rows, slots * rows * components


@pytest.mark.meta
@pytest.mark.parametrize("argument", ["probs", "logits"])
def test_edge_01_log_prob_builds_nothing_larger_than_its_values(argument):
    largest, values, _ = largest_of_log_prob(lambda tensor: MixtureWeights(**{argument: tensor}))
    assert largest == values


@pytest.mark.parametrize("argument", ["probs", "logits"])
def test_edge_01_stock_categorical_builds_all_components_of_every_value(argument):
    largest, _, everything = largest_of_log_prob(
        lambda tensor: dist.Categorical(**{argument: tensor})
    )
    assert largest >= everything


@pytest.mark.meta
def test_edge_01_log_prob_and_gradient_are_those_of_the_stock_categorical():
    z = torch.randint(C, (3, N), device="cpu")
    ours, stock = (WEIGHTS.clone().requires_grad_() for _ in range(2))
    # The weights are on the simplex already, so the stock normalisation changes nothing but the
    # gradient's offset.
    mine = MixtureWeights(ours / ours.sum()).expand((N,)).log_prob(z)
    theirs = dist.Categorical(stock).expand((N,)).log_prob(z)
    assert_close(mine, theirs)
    mine.sum().backward()
    theirs.sum().backward()
    assert_close(ours.grad, stock.grad)


# ---------------------------------------------------------------- 2: masks


def masked(x, mask, only_x=False):
    weights, loc, scale = mixture_params()
    with pyro.plate("data", len(x), device=x.device):
        with poutine.mask(mask=torch.ones_like(mask) if only_x else mask):
            z = pyro.sample("z", MixtureWeights(weights))
        with poutine.mask(mask=mask):
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def masked_rows():
    x, mask = draw_rows(), torch.arange(N, device="cpu") % 3 > 0
    return x, mask, torch.ones(int(mask.sum()), dtype=torch.bool, device="cpu")


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_edge_02_masked_rows_contribute_nothing(strategy):
    x, mask, all_components = masked_rows()
    guide = frozen_guide(strategy, masked, x, mask)
    table = guide.sets.table[mask] if strategy is TruncatedPartition else None
    alone = frozen_guide(strategy, masked, x[mask], all_components, table=table)
    assert_close(
        ELBO.loss(masked, guide, x, mask),
        ELBO.loss(masked, alone, x[mask], all_components),
        rtol=1e-6,
        atol=0,
    )
    losses = [
        EM(masked, g).evaluate_loss(*a)
        for g, a in ((guide, (x, mask)), (alone, (x[mask], all_components)))
    ]
    assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    assert_close(
        params_after_em(masked, guide, x, mask),
        params_after_em(masked, alone, x[mask], all_components),
    )


@pytest.mark.meta
def test_edge_02_masked_rows_that_hold_nan_are_ignored_or_refused():
    x, mask, all_components = masked_rows()
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.nan)
    guide = frozen_guide(FullPartition, masked, x, mask)
    try:
        assert_close(
            EM(masked, guide).evaluate_loss(spoiled, mask), exact_loss(x[mask]), rtol=1e-6, atol=0
        )
        after = params_after_em(masked, guide, spoiled, mask)
    except MixtureError as error:
        assert "nan" in str(error)  # noqa: PT017
        return
    alone = frozen_guide(FullPartition, masked, x[mask], all_components)
    assert_close(after, params_after_em(masked, alone, x[mask], all_components))


def prior_of_sets(table):
    return float(WEIGHTS[table.long()].sum(-1).log().sum())


@pytest.mark.meta
def test_edge_02_masking_only_x_leaves_the_prior_of_the_candidates():
    x, mask, all_components = masked_rows()
    guide = frozen_guide(TruncatedPartition, masked, x, mask, True)
    alone = frozen_guide(
        TruncatedPartition, masked, x[mask], all_components, table=guide.sets.table[mask]
    )
    left = ELBO.loss(masked, guide, x, mask, True) - ELBO.loss(
        masked, alone, x[mask], all_components
    )
    bias = -prior_of_sets(guide.sets.table[~mask])
    assert bias > 0.1
    assert_close(left, bias, rtol=1e-4, atol=0)


@pytest.mark.meta
def test_edge_02_truncate_of_a_program_that_masks_only_x_leaves_the_prior_of_the_candidates():
    x, mask, _ = masked_rows()
    sets = CandidateSets(
        rows=N, components=C, candidates=2, generator=torch.Generator(CPU).manual_seed(0)
    ).table.long()
    loss = ELBO.loss(truncate(masked, "z", sets), no_guide, x, mask, True)
    alone = -float(log_joint(x).gather(-1, sets).logsumexp(-1)[mask].sum())
    assert_close(loss - alone, -prior_of_sets(sets[~mask]), rtol=1e-4, atol=0)


@pytest.mark.meta
def test_edge_02_truncate_of_a_program_that_masks_z_and_x_counts_masked_rows_as_nothing():
    x, mask, _ = masked_rows()
    sets = CandidateSets(
        rows=N, components=C, candidates=2, generator=torch.Generator(CPU).manual_seed(0)
    ).table.long()
    loss = ELBO.loss(truncate(masked, "z", sets), no_guide, x, mask)
    assert_close(
        loss, -float(log_joint(x).gather(-1, sets).logsumexp(-1)[mask].sum()), rtol=1e-6, atol=0
    )


# ---------------------------------------------------------------- 3: row weights


def weighted(x, row_weight):
    weights, loc, scale = mixture_params()
    with pyro.plate("data", len(x), device=x.device), poutine.scale(scale=row_weight):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def gradients(model, guide, *args):
    pyro.clear_param_store()
    ELBO.loss_and_grads(model, guide, *args)
    return {
        name: value.unconstrained().grad.clone() for name, value in pyro.get_param_store().items()
    }


@pytest.mark.meta
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_edge_03_row_of_weight_two_counts_twice_and_of_weight_zero_not_at_all(strategy, zeros):
    row_weight = torch.tensor(
        [2.0, 0, 1, 1, 2, 0, 1, 2, 1, 1, 0, 1] if zeros else [2.0, 1, 1] * 4, device="cpu"
    )
    x, copies = (
        draw_rows(),
        torch.repeat_interleave(torch.arange(N, device="cpu"), row_weight.long()),
    )
    ones = torch.ones(len(copies), device="cpu")
    # Pyro's validation asks for positive scales; without it a scale of zero means what it says.
    with pyro.validation_enabled(not zeros):
        guide = frozen_guide(strategy, weighted, x, row_weight)
        table = guide.sets.table[copies] if strategy is TruncatedPartition else None
        repeated = frozen_guide(strategy, weighted, x[copies], ones, table=table)
        loss = ELBO.loss(weighted, guide, x, row_weight)
        assert_close(loss, ELBO.loss(weighted, repeated, x[copies], ones), rtol=1e-6, atol=0)
        assert_close(loss, EM(weighted, guide).evaluate_loss(x, row_weight), rtol=1e-6, atol=0)
        theirs = gradients(weighted, repeated, x[copies], ones)
        assert_close(gradients(weighted, guide, x, row_weight), theirs, rtol=1e-4, atol=1e-4)
        after = params_after_em(weighted, guide, x, row_weight)
        assert_close(
            after, params_after_em(weighted, repeated, x[copies], ones), rtol=1e-5, atol=1e-5
        )


def test_edge_03_model_side_enumeration_refuses_row_weights():
    sets = torch.arange(3, device="cpu").expand(N, 3)
    with pytest.raises(ValueError, match=r"scalar poutine\.scale"):
        ELBO.loss(
            truncate(weighted, "z", sets),
            no_guide,
            draw_rows(),
            torch.full((N,), 2.0, device="cpu"),
        )


# ---------------------------------------------------------------- 4: duplicates and padding


@pytest.mark.meta
@pytest.mark.parametrize("shared", [False, True])
def test_edge_04_duplicate_candidates_are_refused(shared):
    twice = torch.tensor([1, 1, 3] if shared else [[0, 1, 2], [3, 1, 3]], device="cpu")
    row, given = (0, "1, 1, 3") if shared else (1, "3, 1, 3")
    message = rf"candidate set {row} lists a component twice: \[{given}\]; pad with -1"
    with pytest.raises(PartitionError, match=message):
        CandidateCategorical(twice, torch.zeros(twice.shape, device="cpu"))
    with pytest.raises(PartitionError, match=message):
        RestrictedSupport(MixtureWeights(WEIGHTS), twice)


@pytest.mark.meta
def test_edge_04_truncate_refuses_duplicate_candidates():
    twice = torch.zeros(N, 2, dtype=torch.long, device="cpu")
    with pytest.raises(PartitionError, match="lists a component twice"):
        ELBO.loss(truncate(plain, "z", twice), no_guide, draw_rows())


def test_edge_04_unchecked_duplicates_would_count_twice():
    twice = RestrictedSupport(
        MixtureWeights(WEIGHTS), torch.tensor([[2, 2]], device="cpu"), validate_args=False
    )
    assert_close(twice.log_prob(twice.enumerate_support()).logsumexp(0).exp(), 2 * WEIGHTS[2:3])


@pytest.mark.meta
def test_edge_04_padding_counts_as_nothing_in_truncate():
    x = draw_rows()
    padded = torch.tensor([[0, -1, 3, -1]], device="cpu").repeat(N, 1)
    padded[::2] = torch.tensor([4, 1, -1, -1], device="cpu")
    found = ELBO.loss(truncate(plain, "z", padded), no_guide, x)
    joint = torch.where(padded >= 0, log_joint(x).gather(-1, padded.clamp_min(0)), -torch.inf)
    assert_close(found, -float(joint.logsumexp(-1).sum()), rtol=1e-6, atol=0)


@pytest.mark.meta
def test_edge_04_padding_gives_no_gradient_and_no_nan():
    x, pair = draw_rows(), torch.tensor([[0, 3]], device="cpu").expand(N, 2)
    padded = torch.nn.functional.pad(pair, (0, 1), value=-1)
    found = [gradients(truncate(plain, "z", sets), no_guide, x) for sets in (padded, pair)]
    assert_close(found[0], found[1])


# ---------------------------------------------------------------- 5: subsampling plates

BATCH = 60


class Subsampling:
    """A program whose plate draws its own minibatch, remembering every one of them."""

    def __init__(self):
        self.drawn = []

    def __call__(self, data):
        weights, loc, scale = mixture_params()
        with pyro.plate("data", len(data), subsample_size=BATCH, device=data.device) as index:
            self.drawn.append(index)
            z = pyro.sample("z", MixtureWeights(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=data[index])


def test_edge_05_stock_rerun_draws_other_rows():
    model = Subsampling()
    infer_discrete(model, first_available_dim=-2, temperature=0)(draw_rows(200))
    assert len({tuple(index.tolist()) for index in model.drawn}) > 1


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_edge_05_guide_and_model_use_the_rows_of_the_e_step(strategy):
    data, model = draw_rows(200), Subsampling()
    options = {"candidates": C, "neighbors": 3} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, **options)
    guide.posterior(data)
    model.drawn.clear()
    loss = ELBO.loss(model, guide, data)
    e_step, scored = model.drawn
    assert torch.equal(e_step, scored)
    assert_close(loss, exact_loss(data[scored]) * len(data) / BATCH, rtol=1e-5, atol=0)


@pytest.mark.meta
def test_edge_05_svi_steps_change_the_candidates_of_their_own_rows_only():
    data, model = draw_rows(200), Subsampling()
    guide = TruncatedPartition(model, components=C, candidates=2, neighbors=5, explore=3, seed=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), ELBO)
    svi.step(data)
    for _ in range(5):
        model.drawn.clear()
        before = guide.sets.table.clone()
        svi.step(data)
        changed = (guide.sets.table != before).any(-1).nonzero()[:, 0]
        assert set(changed.tolist()) <= set(model.drawn[-1].tolist())
        assert all(torch.equal(index, model.drawn[-1]) for index in model.drawn)


@pytest.mark.meta
def test_edge_05_em_takes_its_statistics_from_the_rows_of_the_e_step():
    data, model = draw_rows(200), Subsampling()
    guide = FullPartition(model, components=C)
    guide.posterior(data)
    model.drawn.clear()
    found = params_after_em(model, guide, data)
    assert (found["loc"] - LOC).abs().max() > 0.01
    rows = data[model.drawn[0]]
    assert_close(found, params_after_em(plain, FullPartition(plain, components=C), rows))


# ---------------------------------------------------------------- 6: AutoGuides and the data plate


def with_prior(x, index=None, size=None):
    weights = pyro.param("weights", lambda: WEIGHTS.clone(), constraint=constraints.simplex)
    with pyro.plate("components", C, device=x.device):
        loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, torch.ones(D, device=x.device))[z], obs=x)


class PerRow:
    """A program with a latent number a row, remembering the row numbers of its data plate."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, index=None, size=None):
        weights, loc, scale = mixture_params()
        with data_plate(x, index, size) as rows:
            self.seen.append(rows)
            shift = pyro.sample("shift", dist.Normal(torch.zeros((), device=x.device), 1.0))
            z = pyro.sample("z", MixtureWeights(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x - shift.unsqueeze(-1))


INDEX = torch.tensor([3, 11, 7, 2, 0], device="cpu")


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_edge_06_autonormal_beside_leaves_the_minibatch_as_it_was_given(strategy):
    x = draw_rows()
    global_guide = AutoNormal(poutine.block(with_prior, hide=["z"]))
    options = {"candidates": C, "neighbors": 3} if strategy is TruncatedPartition else {}
    guide = strategy(with_prior, components=C, global_guide=global_guide, **options)
    drawn = []

    def recorded(*args, **kwargs):
        values = guide(*args, **kwargs)
        drawn.append(values["loc"].detach())
        return values

    guide(x)
    found = ELBO.loss(with_prior, recorded, x[INDEX], index=INDEX, size=N)
    q = dist.Normal(global_guide.locs.loc, global_guide.scales.loc)
    prior = (q.log_prob(drawn[-1]) - dist.Normal(LOC, 1.0).log_prob(drawn[-1])).sum()
    rows = exact_loss(x[INDEX], loc=drawn[-1]) * N / len(INDEX)
    assert_close(found, float(prior.detach()) + rows, rtol=1e-5, atol=0)
    assert sorted(global_guide.plates) == ["components"]


@pytest.mark.meta
def test_edge_06_svi_with_a_prior_learns_from_minibatches():
    x = torch.cat([torch.randn(30, D, device="cpu") - 4, torch.randn(30, D, device="cpu") + 4])
    guide = TruncatedPartition(
        with_prior,
        components=C,
        candidates=2,
        neighbors=3,
        seed=0,
        global_guide=AutoNormal(poutine.block(with_prior, hide=["z"]), init_scale=0.01),
    )
    svi = SVI(with_prior, guide, pyro.optim.Adam({"lr": 0.2}), ELBO)
    first = svi.evaluate_loss(x)
    for step in range(20):
        index = torch.arange(step % 2, 60, 2, device="cpu")
        svi.step(x[index], index=index, size=len(x))
    assert svi.evaluate_loss(x) < first - 20


def test_edge_06_stock_autonormal_that_opens_the_data_plate_overrides_the_minibatch():
    x, seen = draw_rows(), []

    def model(x, index):
        with pyro.plate("data", N, subsample=index) as rows:
            seen.append(rows)
            shift = pyro.sample("shift", dist.Normal(torch.zeros((), device="cpu"), 1.0))
            pyro.sample(
                "x",
                dist.Normal(shift.unsqueeze(-1), 1.0).expand([len(index), D]).to_event(1),
                obs=x[index],
            )

    def rows_scored(**options):
        guide = AutoNormal(model, **options)
        guide(x, INDEX)
        seen.clear()
        pyro.set_rng_seed(1)
        Trace_ELBO().loss(model, guide, x, INDEX)
        return seen[-1].tolist()

    assert rows_scored() != INDEX.tolist()
    given = rows_scored(create_plates=lambda x, index: pyro.plate("data", N, subsample=index))
    assert given == INDEX.tolist()


def data_plate_of(x, index=None, size=None):
    return data_plate(x, index, size)


@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
@pytest.mark.parametrize("create_plates", [None, data_plate_of], ids=["all rows", "create_plates"])
def test_edge_06_latent_of_every_row_works_beside(create_plates, strategy):
    """With all rows as Pyro's autoguide comes; with minibatches by its create_plates=."""
    x, model = draw_rows(), PerRow()
    global_guide = AutoNormal(poutine.block(model, hide=["z"]), create_plates=create_plates)
    options = {"candidates": 2, "neighbors": 3} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, global_guide=global_guide, **options)
    index = torch.arange(N, device="cpu") if create_plates is None else INDEX
    batch = {} if create_plates is None else {"index": INDEX, "size": N}
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO).step(x[index], **batch)
    assert all(rows.tolist() == index.tolist() for rows in model.seen)


def test_edge_06_autoguide_that_overrides_the_minibatch_is_refused_with_the_remedy():
    x, model = draw_rows(), PerRow()
    guide = FullPartition(
        model, components=C, global_guide=AutoNormal(poutine.block(model, hide=["z"]))
    )
    with pytest.raises(ModelError, match="create_plates"):
        ELBO.loss(model, guide, x[INDEX], index=INDEX, size=N)


# ---------------------------------------------------------------- 7: vectorised particles

FAMILIES = {
    "isotropic": lambda loc: IsotropicNormals(loc, torch.full((C,), 0.5, device="cpu")),
    "diagonal": lambda loc: DiagonalNormals(loc, torch.full((D,), 0.5, device="cpu")),
    "full": lambda loc: FullNormals(loc, 0.5 * torch.eye(D, device="cpu")),
    "factors": lambda loc: FactorAnalyzers(
        loc, torch.zeros(C, D, 1, device="cpu"), torch.full((D,), 0.25, device="cpu")
    ),
}


def draw_means(style, device):
    """Means (C, D) with a prior, in a plate over components or as one event."""
    if style == "event":
        return pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(2))
    with pyro.plate("components", C, device=device):
        loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
    return loc.unsqueeze(-3) if style == "plate, unsqueezed" else loc


def batched(style, select):
    def model(x, rows=None):
        loc = draw_means(style, CPU)
        with pyro.plate("data", len(x) if rows is None else rows, device="cpu"):
            z = pyro.sample("z", MixtureWeights(WEIGHTS), infer={"enumerate": "parallel"})
            return pyro.sample("x", select(loc, z), obs=x)

    return model


def vectorised_loss(model, x, particles):
    """The loss of vectorised particles, and what it must be for the means that were drawn."""
    global_guide, drawn = AutoNormal(poutine.block(model, hide=["z"])), []
    global_guide(x)

    def guide(x):
        drawn.append(global_guide(x)["loc"].detach())

    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    found = elbo.loss(model, guide, x)
    loc = drawn[-1].reshape(particles, C, D)
    q = dist.Normal(global_guide.locs.loc.detach(), global_guide.scales.loc.detach())
    prior = (q.log_prob(loc) - dist.Normal(LOC, 1.0).log_prob(loc)).sum((1, 2))
    each = [float(p) + exact_loss(x, loc=one, scale=0.5) for p, one in zip(prior, loc, strict=True)]
    return found, sum(each) / particles


@pytest.mark.meta
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("style", ["event", "plate, unsqueezed"])
def test_edge_07_vectorised_particles_select_their_own_components(style, family):
    model = batched(style, lambda loc, z: FAMILIES[family](loc)[z])
    for particles, rows in ((3, 7), (4, 4)):
        pyro.clear_param_store()
        found, expected = vectorised_loss(model, draw_rows(rows), particles)
        assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.meta
@pytest.mark.parametrize("rows", [7, 3])
def test_edge_07_vectorised_particles_with_means_from_a_plate_are_right_or_refused(rows):
    """As many rows as particles is the treacherous case: shapes fit by accident."""
    model = batched("plate", lambda loc, z: FAMILIES["diagonal"](loc)[z])
    try:
        found, expected = vectorised_loss(model, draw_rows(rows), 3)
    except MixtureError as error:
        assert "unsqueeze" in str(error)  # noqa: PT017
        return
    assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.meta
def test_edge_07_plain_indexing_breaks_under_vectorised_particles_and_vindex_does_not():
    def stock(loc):
        return dist.Normal(loc, 0.5).to_event(1)

    with pytest.raises((IndexError, RuntimeError, ValueError)):
        vectorised_loss(batched("plate", lambda loc, z: stock(loc[z])), draw_rows(7), 3)
    pyro.clear_param_store()
    right = batched("plate, unsqueezed", lambda loc, z: stock(Vindex(loc)[..., z, :]))
    found, expected = vectorised_loss(right, draw_rows(7), 3)
    assert_close(found, expected, rtol=1e-4, atol=0)


def predicted(style, draws, rows, unsqueeze=False):
    """Distance between parallel draws of x and the means of their own components (noise is tiny)."""
    scale = torch.full((D,), 1e-3, device="cpu")

    def select(loc, z):
        return DiagonalNormals(loc.unsqueeze(-3) if unsqueeze else loc, scale)[z]

    loc = 5 * torch.randn(draws, C, D, device="cpu")
    predictive = Predictive(
        batched(style, select), {"loc": loc}, return_sites=["z", "x"], parallel=True
    )
    found = predictive(None, rows)
    assert found["z"].shape == (draws, rows)
    means = Vindex(loc.unsqueeze(-3))[..., found["z"], :]
    return float((found["x"] - means).abs().max())


@pytest.mark.meta
@pytest.mark.parametrize("style", ["event", "plate"])
def test_edge_07_parallel_predictions_come_from_their_own_components(style):
    """Predictive hands over means (draws, C, D) in either style: the data plate's dimension has to be added."""
    for draws, rows in ((3, 6), (4, 4)):
        assert predicted(style, draws, rows, unsqueeze=True) < 0.02


@pytest.mark.meta
@pytest.mark.parametrize("rows", [6, 3])
@pytest.mark.parametrize("style", ["event", "plate"])
def test_edge_07_parallel_predictions_without_unsqueeze_are_right_or_refused(style, rows):
    try:
        assert predicted(style, 3, rows) < 0.02
    except MixtureError as error:
        assert "unsqueeze" in str(error)  # noqa: PT017


@pytest.mark.meta
@pytest.mark.parametrize("particles", [1, 3, C])
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_edge_07_guides_under_vectorised_particles_are_right_or_refused(strategy, particles):
    """As many particles as candidates is the treacherous case: candidate s would be scored under particle s."""
    model = batched("event", lambda loc, z: FAMILIES["diagonal"](loc)[z])
    x, drawn = draw_rows(7), []
    global_guide = AutoNormal(poutine.block(model, hide=["z"]), init_scale=1.0)
    options = {"candidates": C, "neighbors": C} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, global_guide=global_guide, **options)
    guide(x)

    def recorded(x):
        drawn.append(guide(x)["loc"].detach())

    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    try:
        found = elbo.loss(model, recorded, x)
    except MixtureError as error:
        assert "vectorize_particles" in str(error)  # noqa: PT017
        return
    loc = drawn[-1].reshape(particles, C, D)
    q = dist.Normal(global_guide.locs.loc.detach(), global_guide.scales.loc.detach())
    prior = (q.log_prob(loc) - dist.Normal(LOC, 1.0).log_prob(loc)).sum((1, 2))
    each = [float(p) + exact_loss(x, loc=one, scale=0.5) for p, one in zip(prior, loc, strict=True)]
    assert_close(found, sum(each) / particles, rtol=1e-4, atol=0)


# ---------------------------------------------------------------- 8: posterior prediction


def apart(rows=40):
    """A program of far-apart components, rows of it, and where they came from."""
    loc = 20.0 * torch.arange(C, device="cpu").unsqueeze(-1).repeat(1, D)
    truth = torch.arange(rows, device="cpu") % C

    def model(x):
        with pyro.plate("data", len(x), device=x.device):
            z = pyro.sample("z", MixtureWeights(WEIGHTS))
            pyro.sample("x", DiagonalNormals(loc, torch.ones(D, device=x.device))[z], obs=x)

    return model, loc[truth] + torch.randn(rows, D, device="cpu"), truth


@pytest.mark.meta
def test_edge_08_predictive_draws_components_from_the_prior():
    model, x, truth = apart()
    z = Predictive(model, {}, num_samples=200, return_sites=["z"])(x)["z"]
    assert (z == truth).float().mean() < 0.4
    shares = torch.bincount(z.reshape(-1), minlength=C) / z.numel()
    assert_close(shares, WEIGHTS, rtol=0, atol=0.02)


@pytest.mark.meta
@pytest.mark.parametrize("truncated", [False, True])
def test_edge_08_assign_and_responsibilities_give_the_posterior(truncated):
    model, x, truth = apart()
    guide = (
        TruncatedPartition(model, components=C, candidates=2, neighbors=C, seed=0)
        if truncated
        else None
    )
    assert torch.equal(assign(model, x, guide=guide), truth)
    found = responsibilities(model, x, top=1, guide=guide)
    assert torch.equal(found.components[:, 0], truth)
    assert_close(found.probs[:, 0], torch.ones(len(x), device="cpu"))


# ---------------------------------------------------------------- 9: marginals


def enumerated(weights, select):
    def model(x):
        with pyro.plate("data", len(x), device=x.device):
            z = pyro.sample("z", weights, infer={"enumerate": "parallel"})
            pyro.sample("x", select(z), obs=x)

    return model


STOCK = enumerated(dist.Categorical(WEIGHTS), lambda z: dist.Normal(LOC[z], 1.0).to_event(1))
OURS = enumerated(
    MixtureWeights(WEIGHTS), lambda z: DiagonalNormals(LOC, torch.ones(D, device="cpu"))[z]
)


def table_of(found, components=C):
    """Responsibilities as a dense (N, C) table."""
    table = torch.zeros(len(found.probs), components, device="cpu")
    return table.scatter(1, found.components, found.probs)


@pytest.mark.meta
@pytest.mark.parametrize("model", [STOCK, OURS], ids=["stock", "ours"])
def test_edge_09_responsibilities_are_the_exact_marginals(model):
    x = draw_rows()
    exact = ELBO.compute_marginals(STOCK, no_guide, x)["z"].probs
    assert_close(table_of(responsibilities(model, x, top=C)), exact)
    assert_close(exact, log_joint(x).softmax(-1))


@pytest.mark.meta
def test_edge_09_mixture_weights_work_with_compute_marginals_and_sample_posterior():
    x = draw_rows()
    marginal = ELBO.compute_marginals(OURS, no_guide, x)["z"]
    assert_close(marginal.log_prob(marginal.enumerate_support()).T.exp(), log_joint(x).softmax(-1))
    best = infer_discrete(OURS, first_available_dim=-2, temperature=0)
    assert torch.equal(
        poutine.trace(best).get_trace(x).nodes["z"]["value"], log_joint(x).argmax(-1)
    )
    copies = x[:1].expand(2000, D)
    draws = (
        poutine.trace(infer_discrete(OURS, first_available_dim=-2))
        .get_trace(copies)
        .nodes["z"]["value"]
    )
    shares = torch.bincount(draws, minlength=C) / len(draws)
    assert_close(shares, log_joint(x[:1]).softmax(-1)[0], rtol=0, atol=0.04)


@pytest.mark.meta
def test_edge_09_truncated_responsibilities_stand_in_for_marginals_of_wrapped_distributions():
    x = draw_rows()
    guide = TruncatedPartition(OURS, components=C, candidates=2, neighbors=C, seed=0)
    guide.posterior(x)
    sets = guide.sets.table.long()
    with pytest.raises(TypeError, match="logits"):
        ELBO.compute_marginals(truncate(OURS, "z", sets), no_guide, x)
    with pytest.raises(NotImplementedError, match="guide enumeration"):
        ELBO.compute_marginals(OURS, guide, x)
    kept = log_joint(x).gather(-1, sets)
    expected = torch.zeros(N, C, device="cpu").scatter(1, sets, kept.softmax(-1))
    posterior = guide.eval().posterior(x)
    found = torch.zeros(N, C, device="cpu").scatter(1, posterior.candidates.T, posterior.probs.T)
    assert_close(found, expected)
    assert_close(table_of(responsibilities(OURS, x, top=2, guide=guide)), expected)


# ---------------------------------------------------------------- 10: JIT

SETS = [torch.tensor(pair, device="cpu").repeat(N, 1) for pair in ([0, 1], [3, 4], [2, -1])]


def jit_program(weights, select):
    def program(x):
        probs, loc, scale = mixture_params()
        with pyro.plate("data", len(x), device=x.device):
            z = pyro.sample("z", weights(probs))
            pyro.sample("x", select(loc, scale, z), obs=x)

    return program


def stock_select(loc, scale, z):
    return dist.Normal(loc[z], scale[z]).to_event(1)


def lazy_select(loc, scale, z):
    return DiagonalNormals(loc, scale)[z]


def jit_loss(elbo, model, *args):
    return elbo.differentiable_loss(model, no_guide, *args)


@pytest.mark.parametrize("weights", [dist.Categorical, MixtureWeights])
@pytest.mark.parametrize("select", [stock_select, lazy_select])
def test_edge_10_jit_takes_new_candidates_from_its_arguments(weights, select):
    program, x = jit_program(weights, select), draw_rows()
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)

    def model(x, sets):
        return truncate(program, "z", sets)(x)

    losses = []
    for sets in SETS:
        found = jit_loss(jit, model, x, sets)
        losses.append(ELBO.loss(model, no_guide, x, sets))
        assert_close(float(found.detach()), losses[-1], rtol=1e-5, atol=0)
    assert len(set(losses)) == len(SETS)
    found.backward()
    from_jit = pyro.param("loc").grad.clone()
    pyro.param("loc").grad = None
    ELBO.loss_and_grads(model, no_guide, x, SETS[-1])
    assert_close(from_jit, pyro.param("loc").grad)


def test_edge_10_jit_keeps_candidates_that_are_not_arguments():
    program, x, attribute = (
        jit_program(MixtureWeights, stock_select),
        draw_rows(),
        {"sets": SETS[0]},
    )
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)

    def model(x):
        return truncate(program, "z", attribute["sets"])(x)

    first = float(jit_loss(jit, model, x).detach())
    attribute["sets"] = SETS[1]
    assert_close(float(jit_loss(jit, model, x).detach()), first)
    assert abs(ELBO.loss(model, no_guide, x) - first) > 0.1


def test_edge_10_exact_guide_works_under_jit():
    program, x = jit_program(MixtureWeights, stock_select), draw_rows()
    guide = FullPartition(program, components=C)
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    for rows, shift in ((x, 0.0), (2 * x, 0.0), (x, 0.3)):
        with torch.no_grad():
            mixture_params()[1].add_(shift)
        found = jit.differentiable_loss(program, guide, rows)
        assert_close(float(found.detach()), exact_loss(rows, loc=LOC + shift), rtol=1e-5, atol=0)


def test_edge_10_truncated_guide_is_refused_under_jit():
    """Its candidate sets are its own state, which a trace would freeze (or read before they are written)."""
    program, x = jit_program(MixtureWeights, stock_select), draw_rows()
    guide = TruncatedPartition(program, components=C, candidates=2, neighbors=3, seed=0)
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    with pytest.raises(MixtureError, match=r"[Jj]it"):
        jit.differentiable_loss(program, guide, x)


# ---------------------------------------------------------------- 11: blocks

HIDDEN = r"block outside hides the site 'z'.*expose it"


@pytest.mark.meta
def test_edge_11_block_that_hides_z_of_truncate_is_refused():
    sets = torch.arange(3, device="cpu").expand(N, 3)
    hidden = poutine.block(truncate(plain, "z", sets), hide=["z"])
    with pytest.raises(ModelError, match=HIDDEN):
        ELBO.loss(hidden, no_guide, draw_rows())


@pytest.mark.meta
def test_edge_11_block_inside_truncate_is_refused():
    sets = torch.arange(3, device="cpu").expand(N, 3)
    with pytest.raises(ModelError, match="no visible sample site 'z'"):
        ELBO.loss(truncate(poutine.block(plain, hide=["z"]), "z", sets), no_guide, draw_rows())


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_edge_11_block_that_hides_z_of_a_guide_is_refused(strategy):
    x = draw_rows()
    guide = frozen_guide(strategy, plain, x)
    with pytest.raises(ModelError, match=HIDDEN):
        poutine.trace(poutine.block(guide, hide=["z"])).get_trace(x)


@pytest.mark.meta
def test_edge_11_block_that_hides_z_and_not_the_sites_beside_is_refused():
    x = draw_rows()
    guide = FullPartition(
        with_prior, components=C, global_guide=AutoNormal(poutine.block(with_prior, hide=["z"]))
    )
    guide(x)
    with pytest.raises(ModelError, match=HIDDEN):
        poutine.trace(poutine.block(guide, hide=["z", "data"])).get_trace(x)


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_edge_11_block_of_everything_is_a_dry_run_and_passes(strategy):
    x, sets = draw_rows(), torch.arange(3, device="cpu").expand(N, 3)
    with poutine.block():
        assert frozen_guide(strategy, plain, x)(x)["z"].shape == (N,)
        truncate(plain, "z", sets)(x)
    # Pyro's own dry run, which looks for the deepest plate.
    assert_close(
        TraceEnum_ELBO().loss(plain, FullPartition(plain, components=C), x),
        exact_loss(x),
        rtol=1e-5,
        atol=0,
    )


# ---------------------------------------------------------------- 12: plate expansion


def in_plate(fn, rows=N):
    """What a plate over ``rows`` makes of a distribution."""

    def program():
        with pyro.plate("data", rows, device="cpu"):
            pyro.sample("z", fn)

    return poutine.trace(program).get_trace().nodes["z"]["fn"]


@pytest.mark.meta
def test_edge_12_mixture_weights_stay_themselves_in_a_plate():
    weights = WEIGHTS.clone()
    fn = in_plate(MixtureWeights(weights))
    assert isinstance(fn, MixtureWeights)
    assert fn.arguments["probs"] is weights
    assert fn.batch_shape == (N,)
    assert fn.enumerate_support(expand=False).shape == (C, 1)
    assert_close(fn.enumerate_support(), torch.arange(C, device="cpu").unsqueeze(-1).expand(C, N))


@pytest.mark.meta
def test_edge_12_candidate_categoricals_stay_themselves_in_a_plate():
    sets = torch.tensor([[0, 2], [4, 1]], device="cpu").repeat(N // 2, 1)
    own = in_plate(CandidateCategorical(sets, torch.zeros(N, 2, device="cpu")))
    assert isinstance(own, CandidateCategorical)
    assert torch.equal(own.enumerate_support(), sets.T)
    one_for_all = in_plate(CandidateCategorical(sets[1:2], torch.zeros(1, 2, device="cpu")))
    assert isinstance(one_for_all, CandidateCategorical)
    assert torch.equal(one_for_all.enumerate_support(), sets[1:2].T.expand(2, N))
    shared = in_plate(CandidateCategorical(sets[0], torch.zeros(2, device="cpu")))
    assert isinstance(shared, CandidateCategorical)
    assert torch.equal(shared.enumerate_support(expand=False), sets[0].unsqueeze(-1))
    assert torch.equal(shared.enumerate_support(), sets[0].unsqueeze(-1).expand(2, N))


@pytest.mark.meta
def test_edge_12_restricted_supports_stay_themselves_in_a_plate():
    sets = torch.tensor([[0, 2], [4, -1]], device="cpu").repeat(N // 2, 1)
    for base in (MixtureWeights(WEIGHTS), dist.Categorical(WEIGHTS)):
        fn = in_plate(RestrictedSupport(base, sets))
        assert isinstance(fn, RestrictedSupport)
        assert fn.batch_shape == (N,)
        assert torch.equal(fn.enumerate_support(), sets.T)
        assert_close(
            fn.log_prob(fn.enumerate_support())[:, :2].exp(),
            torch.tensor([[0.1, 0.15], [0.3, 0.0]], device="cpu"),
        )


@pytest.mark.meta
@pytest.mark.parametrize("family", FAMILIES)
def test_edge_12_selection_stays_lazy_in_a_plate(family):
    components, z = FAMILIES[family](LOC), torch.arange(C, device="cpu").unsqueeze(-1)
    fn = in_plate(components[z])
    assert isinstance(fn, Selected)
    assert fn.family is components
    assert fn.z is z
    assert fn.batch_shape == (C, N)
    x = draw_rows()
    assert_close(fn.log_prob(x), log_joint(x, scale=0.5, weights=torch.ones(C, device="cpu")).T)


def test_edge_12_a_stock_expansion_loses_the_candidates_of_the_rows():
    class Candidates(dist.TorchDistribution):
        arg_constraints = {}
        has_enumerate_support = True

        def enumerate_support(self, expand=True):
            return torch.tensor([[3], [5]], device="cpu").repeat(1, N)

    fn = Candidates(torch.Size([N]), validate_args=False).expand([N])
    assert not isinstance(fn, Candidates)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        fn.enumerate_support()
