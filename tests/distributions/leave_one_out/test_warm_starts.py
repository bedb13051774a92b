"""Leave-one-out gains of torch modules by a few steps: bounds, limits, memory and errors."""

import pytest
import torch
from torch import Tensor
from torch.nn import Dropout, Linear, Parameter, Sequential, Tanh

from pyro_mixtures.distributions.leave_one_out import warm_starts
from pyro_mixtures.distributions.regression.pseudo_likelihoods import PseudoLikelihoods
from pyro_mixtures.errors import ClosedFormError, NumericalError, OptionError

pytestmark = pytest.mark.usefixtures("on_one_thread")

P, N = 3, 24
TYPES = [torch.float32, torch.float64]


def rows_of(dtype=torch.float64, rows: int = N):
    """Covariates, outcomes, clusters (one row outside) and weights."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, noise, w = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        for shape in ((rows, P), (rows,), (rows,))
    )
    index = (torch.arange(rows, device="cpu") >= 9).long()
    return x.to(dtype), (x.sum(-1) + 0.5 * noise).to(dtype), index, (0.5 * w).exp().to(dtype)


def least_squares(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, float]:
    a, root = torch.cat([x, torch.ones_like(x[:, :1])], 1).double(), w.double().sqrt()
    b = torch.linalg.pinv(a * root.unsqueeze(-1)) @ (y.double() * root)
    return b, float((w.double() * (y.double() - a @ b).square()).sum())


def fitted_lines(x, y, index, w) -> list[Linear]:
    lines = []
    for c in (0, 1):
        line, (best, _) = (
            Linear(P, 1, dtype=x.dtype, device="cpu"),
            least_squares(*(t[index == c] for t in (x, y, w))),
        )
        with torch.no_grad():
            line.weight[0], line.bias[0] = best[:P], best[P]
        lines.append(line)
    return lines


def exact_gains(x, y, index, w) -> Tensor:
    gains = []
    for i in range(len(x)):
        cluster = index == index[i]
        rest = cluster.clone()
        rest[i] = False
        gains.append(
            least_squares(x[cluster], y[cluster], w[cluster])[1]
            - least_squares(x[rest], y[rest], w[rest])[1]
        )
    return torch.tensor(gains, dtype=torch.float64, device="cpu")


def gains_of(experts, x, y, index, w, loss="squared", **options) -> tuple[Tensor, Tensor]:
    """Gains, and the weighted losses of the rows."""
    family = PseudoLikelihoods(x, experts, loss=loss, event_shape=y.shape[1:], **options)
    with torch.no_grad():
        found = family.leave_one_out_at(family.partition_statistics_at(index, y, w), index, y, w)
        return found, -w * family[index].log_prob(y)


def network(outputs: int = 1, seed: int = 0) -> Sequential:
    torch.manual_seed(seed)
    return Sequential(Linear(P, 5), Tanh(), Linear(5, outputs)).double()


@pytest.mark.meta
@pytest.mark.parametrize("dtype", TYPES)
def test_gains_rise_to_those_of_refits(dtype):
    given = rows_of(dtype)
    exact, experts = exact_gains(*given), fitted_lines(*given)
    tiny = 1e-4 if dtype == torch.float32 else 1e-10
    before = None
    for steps in (0, 1, 4, 80):
        found, own = gains_of(experts, *given, leave_one_out_steps=steps)
        assert found.dtype == dtype
        assert (found.double() <= exact + tiny).all()
        if steps == 0:
            torch.testing.assert_close(found, own, rtol=10 * tiny, atol=tiny)
        else:
            assert (found >= before - tiny).all()
        before = found
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)
    assert (exact - found).sum() < 1e-3 * (exact - own).sum() + tiny


def test_a_few_steps_find_most_of_the_pull():
    given = rows_of()
    exact, (found, own) = exact_gains(*given), gains_of(fitted_lines(*given), *given)
    assert (found - own).sum() > 0.6 * (exact - own).sum()


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_gains_of_networks_are_bounded_whether_fitted_or_not(loss):
    """Between the row's loss after the steps, and the loss above that of the others."""
    x, y, index, w = rows_of()
    y = (y > 0).long() + (y > 1).long() if loss == "cross_entropy" else y
    experts = [network(3 if loss == "cross_entropy" else 1, seed) for seed in (0, 1)]
    for steps in (1, 5, 30):
        found, own = gains_of(experts, x, y, index, w, loss, leave_one_out_steps=steps)
        whole = torch.zeros(2).double().index_add(0, index, own)
        assert (found > 0).all()
        assert (found <= whole[index]).all()  # losses are not negative


def test_gains_exclude_what_training_alone_gains():
    """One step lowers the loss of unfitted experts by far more than one row's share of it."""
    x, y, index, w = rows_of()
    experts = [network(seed=seed) for seed in (0, 1)]
    found, own = gains_of(experts, x, y, index, w, leave_one_out_steps=5)
    family = PseudoLikelihoods(x, experts, loss="squared")
    naive = []
    for c in (0, 1):
        some = index == c

        def losses(at, c=c, some=some):
            return family._losses(torch.func.functional_call(experts[c], at, (x[some],)), y[some])

        params = {name: p.detach() for name, p in experts[c].named_parameters()}
        length = warm_starts._rate(losses, params, w[some]) / w[some].sum()
        fallen = (
            own[some].sum()
            - warm_starts._descend(losses, params, w[some].unsqueeze(0), length, 5)[0]
        )
        naive.append(float(fallen))
    assert min(naive) > 3 * own.mean()
    assert ((found - own).abs() < 0.5 * torch.tensor(naive)[index]).all()


def test_steps_that_are_too_long_are_not_taken():
    """Steps that are far too long are halved for each row until they reach the minimum."""
    given = rows_of()
    exact, experts = exact_gains(*given), fitted_lines(*given)
    found, own = gains_of(experts, *given, leave_one_out_steps=5, leave_one_out_rate=1e3)
    torch.testing.assert_close(found, own)
    found, _ = gains_of(experts, *given, leave_one_out_steps=150, leave_one_out_rate=1e3)
    assert (found <= exact + 1e-10).all()
    assert (exact - found).sum() < 0.05 * (exact - own).sum()


def test_problems_are_solved_in_as_small_groups_as_memory_asks(monkeypatch):
    given = rows_of()
    experts = [network(seed=seed) for seed in (0, 1)]
    whole, sizes = gains_of(experts, *given)[0], []
    real = warm_starts._descend

    def watched(losses, start, weight, *rest):
        sizes.append(len(weight))
        return real(losses, start, weight, *rest)

    monkeypatch.setattr(warm_starts, "_descend", watched)
    monkeypatch.setattr(warm_starts, "_NUMBERS", 1000)
    torch.testing.assert_close(gains_of(experts, *given)[0], whole)
    assert 1 < max(sizes) < 9


def test_a_row_by_itself_is_its_part_and_rows_outside_have_no_gain():
    x, y, index, w = rows_of()
    index[0], index[1:9] = 0, -1
    w[5] = 0
    found, own = gains_of(fitted_lines(x, y, index.clamp_min(0), w), x, y, index, w)
    assert (found[1:9] == 0).all()
    assert 0 <= found[0] <= own[0]


def test_frozen_parameters_are_constants():
    given = rows_of()
    experts = fitted_lines(*given)
    for expert in experts:
        expert.weight.requires_grad_(False)
    found, own = gains_of(experts, *given, leave_one_out_steps=60)
    _, _, index, w = given
    total = torch.zeros(2).double().index_add(0, index, w)[index]
    torch.testing.assert_close(found, own * total / (total - w))  # exact means of residuals


def test_experts_without_parameters_have_their_losses():
    given = rows_of()
    found, own = gains_of([torch.nn.Flatten(0)] * 2, given[0][:, 0].unsqueeze(-1), *given[1:])
    torch.testing.assert_close(found, own)


def test_experts_that_cannot_be_run_side_by_side_are_refused():
    given = rows_of()
    with pytest.raises(ClosedFormError, match=r"vmap.*score='loss'"):
        gains_of([Sequential(Linear(P, 1), Dropout()).double() for _ in range(2)], *given)


def test_losses_without_curvature_need_a_rate():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            return self.value.expand(len(x))

    given = rows_of()
    absolute = lambda output, y: (output - y).abs()  # noqa: E731
    with pytest.raises(NumericalError, match="leave_one_out_rate"):
        gains_of([Constant(), Constant()], *given, absolute)
    found, _ = gains_of([Constant(), Constant()], *given, absolute, leave_one_out_rate=0.1)
    assert (found > 0).all()


@pytest.mark.parametrize(
    "options",
    [{"leave_one_out_steps": -1}, {"leave_one_out_steps": 2.5}, {"leave_one_out_rate": 0.0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        PseudoLikelihoods(torch.zeros(2, 1), [torch.nn.Identity()], loss="squared", **options)
