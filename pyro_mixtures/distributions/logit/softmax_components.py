r"""Softmax distributions over items as components: mixtures of multinomial logits."""

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import Components, check_floating
from pyro_mixtures.distributions.exponential.bregman import MeanStatistics
from pyro_mixtures.distributions.normal.closed_form import empty_to_one
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.bilinear import pair_outer, pair_products
from pyro_mixtures.ops.logits import (
    Curvature,
    LogTable,
    item_covariance,
    log_table,
    log_totals,
    running_log_totals,
    tilted_means,
)
from pyro_mixtures.ops.lookup import count_weights, take
from pyro_mixtures.ops.memo import TensorMemo
from pyro_mixtures.ops.optimize.item_softmax import SOLVERS, ItemSoftmaxProblem, fit_thetas

# All log probabilities are kept where they are no more numbers than this.
_TABLE = 1 << 24
# Numbers of a block of rows and responsibilities, and of a block of cumulative probabilities.
_NUMBERS = 1 << 20
# Products with all components cost less than gathered ones with every so-many-th.
_DENSE = 16
_COVARIANCES: TensorMemo[Curvature] = TensorMemo()


class SoftmaxComponents(Components):
    r"""C softmax distributions over p items with ``features`` (p, L) by their ``theta`` (..., C, L).

    An outcome is an item number j, and :math:`P(j | c) = \exp(x_j \cdot \theta_c) / \sum_l \exp(x_l
    \cdot \theta_c)`, a multinomial logit. The log density of a row is that less its share of the
    ridge penalty,
    :math:`\lambda |\theta_c|^2`, so that n rows of a component bear :math:`n \lambda |\theta_c|^2`
    between them and EM stays monotone.

    A constant added to a feature of all items changes nothing, and features enter by their
    differences alone. Without ridge ``theta`` is identified only up to directions in which no items
    differ: features that are constant over items, or combinations of collinear ones; the M-step
    does not move along them.

    The M-step raises :math:`n_c (\theta_c \cdot \bar x_c - \log \sum_l e^{x_l \cdot \theta_c} -
    \lambda |\theta_c|^2)`,
    :math:`\bar x_c` the mean features of the component's n_c draws, by steps that never lower it. A
    component all of whose items lie on the border of the items' convex hull (a single item, say)
    has no finite maximiser without ridge: theta grows until the objective has all but stopped
    growing, and stays finite.

    Bing, Bunea, Niles-Weed, Wegkamp, "Learning large softmax mixtures with warm start EM", arXiv
    2409.09903.

    :param features: (p, L), a constant that all components share; far from zero, they are best
        centred.
    :param ridge: lambda, not negative.
    :param solver: of the M-step. ``"newton"`` takes about 2 p L^2 C operations a step.
        ``"gradient"`` takes 6 to 10 p L C, uphill by the inverse of the features' covariance over
        all items, which for Gaussian features is about Newton's matrix, and as far as Newton's
        method in that direction.
    :param steps: steps of the solver in each M-step, None for as many as it takes.
    :raises OptionError, DataError: when arguments do not fit, or items are out of range.

    >>> family = SoftmaxComponents(torch.tensor([[0.0], [1.0]]), features=torch.tensor([[0.0], [1.0], [2.0]]))
    >>> family[torch.tensor([0, 1])].log_prob(torch.tensor([2, 2])).exp()
    tensor([0.3333, 0.6652])
    """

    argument_names = ("theta",)
    option_names = ("features", "ridge", "solver", "steps")
    arg_constraints = {"theta": constraints.real_vector}
    location = "theta"
    has_rsample = False
    # Every part would read all features again.
    maximizes_in_blocks = False
    pads = True  # take() does

    def __init__(
        self,
        theta: Tensor,
        features: Tensor,
        *,
        ridge: float = 0.0,
        solver: str = "newton",
        steps: int | None = 1,
        validate_args: bool | None = None,
    ):
        check_floating("SoftmaxComponents", theta, features)
        _check_shapes(theta, features)
        if not ridge >= 0:
            raise OptionError(f"ridge={ridge} must not be negative")
        if solver not in SOLVERS:
            raise OptionError(f"unknown solver {solver!r}; choose one of {SOLVERS}")
        if steps is not None and steps < 1:
            raise OptionError(f"steps={steps} must be positive, or None for as many as it takes")
        self.theta, self.features, self.ridge, self.solver, self.steps = (
            theta,
            features,
            ridge,
            solver,
            steps,
        )
        self._known: tuple[int, LogTable | Tensor] | None = None
        super().__init__(theta.shape[:-1], torch.Size(), validate_args=validate_args)

    @property
    def items(self) -> int:
        """p, the number of items."""
        return len(self.features)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return constraints.integer_interval(0, self.items - 1)

    @property
    def min_rows(self) -> int:
        return 1 if self.ridge else self.features.shape[1] + 1

    def redundant(self, free: frozenset[str]) -> int:
        if self.ridge or "theta" not in free:
            return 0
        spread = covariance_of(self.features)
        # The trace of the projector on the directions in which items differ.
        rank = round(float((spread.covariance * spread.inverse()).sum()))
        return self.batch_shape.numel() * (self.features.shape[1] - rank)

    # Densities.

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        theta, items = self.flat(self.theta, 1), self._items(value)
        if torch.jit.is_tracing():  # pairs are sorted outside torch, which a trace cannot see
            return self._gathered_log_prob(theta, index, items)
        pairs = self._pairs(items, index)
        penalty = self.ridge * theta.square().sum(-1)
        if self._recorded():
            found = _products(
                theta, self.features, pairs, -log_totals(theta, self.features) - penalty
            )
        else:
            found = self._known_log_prob(theta, pairs, penalty)
        return found.reshape(index.shape)

    def _known_log_prob(self, theta: Tensor, pairs: Pairs, penalty: Tensor) -> Tensor:
        known = self.known()
        if isinstance(known, Tensor):
            return _products(theta, self.features, pairs, -known.to(theta) - penalty)
        found = _look_up(known.log_prob, pairs)
        if self.ridge:
            found -= penalty.unsqueeze(-1) if pairs.all_pairs else penalty[pairs.z.clamp_min(0)]
        return found

    def _gathered_log_prob(self, theta: Tensor, index: Tensor, items: Tensor) -> Tensor:
        """The same by plain torch indexing: slower, and traceable."""
        offset = -(theta @ self.features.T).logsumexp(-1) - self.ridge * theta.square().sum(-1)
        c = index.clamp_min(0)
        found = (theta[c] * self.features[items.expand(index.shape)]).sum(-1) + offset[c]
        return torch.where(index < 0, -torch.inf, found)

    def known(self) -> LogTable | Tensor:
        """Log normalisers (C,) in float64, or, where they are few, all log probabilities; made once for each theta."""
        if self._known is None or self._known[0] != self.theta._version:
            with torch.no_grad():
                theta = self.flat(self.theta, 1)
                make = log_table if len(theta) * self.items <= _TABLE else running_log_totals
                self._known = self.theta._version, make(theta, self.features)
        return self._known[1]

    def totals(self) -> Tensor:
        """Log normalisers (C,) in float64, without gradients."""
        known = self.known()
        return known if isinstance(known, Tensor) else known.log_total

    def _recorded(self) -> bool:
        return torch.is_grad_enabled() and self.theta.requires_grad

    def _items(self, value: Tensor) -> Tensor:
        """Item numbers, checked."""
        if value.is_floating_point() or value.dtype == torch.bool:
            raise DataError(f"items are selected by integers (N,), not by {value.dtype}")
        items = value.long()
        if items.numel():
            least, most = (int(t) for t in items.aminmax())
            if least < 0 or most >= self.items:
                raise DataError(f"items lie in [{least}, {most}], not in [0, {self.items})")
        return items

    def _pairs(self, items: Tensor, index: Tensor) -> Pairs:
        """The pairs of rows with the components ``index``; pairs' rows are the items themselves."""
        components, lead = self.batch_shape.numel(), index.dim() - items.dim()
        if index.shape[lead:] == items.shape:
            return Pairs(
                index.reshape(index.shape[:lead].numel(), items.numel()),
                components,
                items.reshape(-1),
            )
        return Pairs(index.reshape(1, -1), components, items.expand(index.shape).reshape(-1))

    # Draws.

    def sample_at(self, index: Tensor) -> Tensor:
        """Item numbers, by the inverse of cumulative probabilities, of some components at a time."""
        with torch.no_grad():
            theta, totals = self.flat(self.theta, 1), self.totals()
            used, place = torch.unique(index, return_inverse=True)
            where, out = (
                torch.rand(index.shape, dtype=torch.float64, device=theta.device),
                torch.empty_like(index),
            )
            for some in used.split(max(1, _NUMBERS // self.items)):
                log_prob = theta[some] @ self.features.T - totals[some].to(theta).unsqueeze(-1)
                mine = (place >= 0) & (place < len(some))
                out[mine] = _inverse(log_prob.double().exp(), place[mine], where[mine])
                place = place - len(some)
        return out

    def mean_at(self, index: Tensor) -> Tensor:
        raise ModelError("item numbers are names, their mean says nothing: see feature_means()")

    def feature_means(self) -> Tensor:
        """Mean features (C, L) of the items that each component draws, without gradients."""
        with torch.no_grad():
            theta = self.flat(self.theta, 1)
            return tilted_means(theta, self.features, self.totals()).to(theta)

    # EM.

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> MeanStatistics:
        """Sums of responsibilities and of features."""
        pairs = self._pairs(self._items(value), index)
        return _feature_sums(self.features, weight.reshape(pairs.z.shape), pairs)

    def maximizers(
        self, statistics: MeanStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Better thetas, from the present ones; those of empty components stay where they are."""
        live = (statistics.count > 0).nonzero()[:, 0]
        theta, target = (
            self.flat(self.theta.detach(), 1),
            statistics.first / empty_to_one(statistics.count).unsqueeze(-1),
        )
        spread = covariance_of(self.features)
        problem = ItemSoftmaxProblem(
            self.features, target, self.ridge, spread, newton=self.solver == "newton"
        )
        if len(live) == len(theta):
            new = fit_thetas(problem, theta, self.known(), steps=self.steps)
        else:
            new = theta.clone()
            new[live] = fit_thetas(
                problem.select(live), theta[live], self.totals()[live], steps=self.steps
            )
        return {"theta": new.reshape(self.theta.shape)}

    def split_loc(self, component: int, row: Tensor) -> Tensor:
        r"""Theta (L,) of a half split off the ``component`` that makes the item ``row`` () likelier.

        With :math:`\Sigma` the covariance of the features, :math:`\Sigma^{-1} (x_j - E x)` is the
        best guess of what distinguishes a component that has drawn item j; its deviation is about
        one part in :math:`\sqrt L` of it.
        """
        theta, mean = self.flat(self.theta.detach(), 1)[component], self.feature_means()[component]
        away = (self.features[int(row)] - mean).double()
        return theta + (covariance_of(self.features).inverse()[0] @ away / len(away) ** 0.5).to(
            theta
        )


def covariance_of(features: Tensor) -> Curvature:
    """Covariance (1, L, L) of ``features`` over all items; made once for each tensor."""
    covariance = _COVARIANCES.get(features)
    if covariance is None:
        covariance = item_covariance(features)
        _COVARIANCES.set(features, covariance)
    return covariance


def _check_shapes(theta: Tensor, features: Tensor) -> None:
    if (
        theta.dim() < 2
        or features.dim() != 2
        or theta.shape[-1] != features.shape[-1]
        or len(features) < 2
    ):
        raise OptionError(
            f"theta {tuple(theta.shape)} and features {tuple(features.shape)}: give (C, L), and (p, L) with p >= 2"
        )
    if theta.dtype != features.dtype:
        raise OptionError(f"theta is {theta.dtype} but features are {features.dtype}: cast one")
    if features.requires_grad:
        raise ClosedFormError(
            "features are constants here, but these require gradients: pass features.detach()"
        )


def _products(theta: Tensor, features: Tensor, pairs: Pairs, offset: Tensor) -> Tensor:
    """Products (S, B) of the rows' features with their components' ``theta`` (C, L), plus ``offset`` (C,)."""
    if pairs.all_pairs:
        assert pairs.rows is not None
        return torch.addmm(offset.unsqueeze(-1), theta, features[pairs.rows].T)
    return pair_products(features, theta.unsqueeze(1), pairs).squeeze(-1) + take(offset, pairs.z)


def _look_up(table: Tensor, pairs: Pairs) -> Tensor:
    """Entries (S, B) of the ``table`` (C, p)."""
    assert pairs.rows is not None
    if pairs.all_pairs:
        return table.index_select(1, pairs.rows)
    if pairs.z.numel() and (int(pairs.z.min()) < -1 or int(pairs.z.max()) >= len(table)):
        raise pairs.out_of_range()
    return take(
        table.reshape(-1), torch.where(pairs.z < 0, -1, pairs.z * table.shape[1] + pairs.rows)
    )


def _inverse(prob: Tensor, row: Tensor, where: Tensor) -> Tensor:
    """Where ``where`` (n,) in [0, 1) falls among the cumulative sums of ``prob[row]`` (g, p)."""
    sums = prob.cumsum(-1)
    # All rows as one ascending sequence: row r from r to r + 1.
    steps = (
        sums / sums[:, -1:] + torch.arange(len(sums), device=sums.device).unsqueeze(-1)
    ).flatten()
    return torch.searchsorted(steps, where + row, right=True) - row * prob.shape[1]


def _feature_sums(features: Tensor, weight: Tensor, pairs: Pairs) -> MeanStatistics:
    """Sums of the ``weight`` (S, B) and of the weighted features."""
    if _DENSE * len(pairs.z) >= pairs.components:
        return _dense_sums(features, weight, pairs)
    count = count_weights(pairs.z.reshape(-1), weight.reshape(-1), pairs.components)
    return MeanStatistics(count, pair_outer(weight.reshape(-1, 1), features, pairs).squeeze(1))


def _dense_sums(features: Tensor, weight: Tensor, pairs: Pairs) -> MeanStatistics:
    """The same by matrix products, some rows at a time, as if all rows met all components."""
    assert pairs.rows is not None
    shape = pairs.components, features.shape[1]
    count, first = (
        torch.zeros(shape[0], w, dtype=torch.float64, device=features.device) for w in (1, shape[1])
    )
    step = max(64, _NUMBERS // sum(shape))
    for at in range(0, len(pairs.rows), step):
        some = slice(at, at + step)
        table = (
            weight[:, some]
            if pairs.all_pairs
            else _spread(pairs.z[:, some], weight[:, some], shape[0])
        )
        count += table.sum(1, keepdim=True, dtype=torch.float64)
        first += table.to(features) @ features[pairs.rows[some]]
    return MeanStatistics(count.squeeze(-1), first)


def _spread(z: Tensor, weight: Tensor, components: int) -> Tensor:
    """Weights (C, n) of all components, of ``weight`` (S, n) of the components ``z`` (S, n); -1 pads."""
    own = torch.arange(components, device=z.device).unsqueeze(-1)
    if len(z) == components and bool(((z == own) | (z < 0)).all()):
        return torch.where(z < 0, 0.0, weight)
    # -1 falls into the place before the first, which is cut off.
    table = torch.zeros(components + 1, z.shape[1], dtype=weight.dtype, device=weight.device)
    return table.scatter_add_(0, z + 1, weight)[1:]
