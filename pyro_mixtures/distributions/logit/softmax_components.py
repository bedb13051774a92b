"""Softmax distributions over items as components: mixtures of multinomial logits."""

from typing import Any, NoReturn

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

# Largest table of all log probabilities that is kept, in numbers.
_TABLE = 1 << 24
# Numbers in a block of rows and responsibilities, and in a block of cumulative probabilities.
_NUMBERS = 1 << 20
# Products with all components cost less than gathered ones with one in this many.
_DENSE = 16
_COVARIANCES: TensorMemo[Curvature] = TensorMemo()


class SoftmaxComponents(Components):
    r"""C softmax distributions over p items with ``features`` (p, L), by ``theta`` (..., C, L).

    An outcome is an item number j, and :math:`P(j | c) = \exp(x_j \cdot \theta_c) / \sum_l
    \exp(x_l \cdot \theta_c)`, a multinomial logit. The log density of a row is log P minus the
    row's share of the ridge penalty, :math:`\lambda |\theta_c|^2`. So n rows of a component
    share :math:`n \lambda |\theta_c|^2`, and EM stays monotone.

    Only differences between the features of items matter. Without ridge, ``theta`` is identified
    only up to directions in which no items differ: features that are constant over items, or
    combinations of collinear ones. The M-step does not move along them.

    The M-step raises :math:`n_c (\theta_c \cdot \bar x_c - \log \sum_l e^{x_l \cdot \theta_c} -
    \lambda |\theta_c|^2)`, where :math:`\bar x_c` are the mean features of the component's n_c
    draws, by steps that never lower it. Without ridge, a component all of whose items lie on the
    boundary of the items' convex hull (a single item, for example) has no finite maximizer: theta
    grows until the objective hardly increases, and stays finite.

    Bing, Bunea, Niles-Weed, Wegkamp, "Learning large softmax mixtures with warm start EM", arXiv
    2409.09903.

    :param theta: (..., C, L).
    :param features: (p, L), a constant that all components share. Center them if they are far from
        zero.
    :param ridge: lambda, not negative.
    :param solver: of the M-step. ``"newton"`` takes about 2 p L^2 C operations per step.
        ``"gradient"`` takes 6 to 10 p L C operations: it goes along the gradient, preconditioned by
        the inverse covariance of the features over all items (approximately Newton's matrix for
        Gaussian features), as far as Newton's method would in that direction.
    :param steps: number of solver steps in each M-step; None iterates to convergence.
    :raises OptionError: when shapes or options do not fit.
    :raises DataError: when items are out of range.

    >>> features = torch.tensor([[0.0], [1.0], [2.0]])
    >>> family = SoftmaxComponents(torch.tensor([[0.0], [1.0]]), features)
    >>> family[torch.tensor([0, 1])].log_prob(torch.tensor([2, 2])).exp()
    tensor([0.3333, 0.6652])
    """

    argument_names = ("theta",)
    option_names = ("features", "ridge", "solver", "steps")
    arg_constraints = {"theta": constraints.real_vector}
    location = "theta"
    has_rsample = False
    # Every block would read all features again.
    maximizes_in_blocks = False
    pads = True  # take() returns -inf for padding

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
            raise OptionError(f"steps={steps} must be positive, or None to iterate to convergence")
        self.theta, self.features = theta, features
        self.ridge, self.solver, self.steps = ridge, solver, steps
        self._known: tuple[int, LogTable | Tensor] | None = None
        super().__init__(theta.shape[:-1], torch.Size(), validate_args=validate_args)

    @property
    def items(self) -> int:
        """p, the number of items."""
        return len(self.features)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
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
        # Pairs are sorted outside torch, which a trace cannot see.
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return self._gathered_log_prob(theta, index, items)
        pairs = self._pairs(items, index)
        penalty = self.ridge * theta.square().sum(-1)
        if self._records_gradients():
            offset = -log_totals(theta, self.features) - penalty
            log_prob = _products(theta, self.features, pairs, offset)
        else:
            log_prob = self._known_log_prob(theta, pairs, penalty)
        return log_prob.reshape(index.shape)

    def _known_log_prob(self, theta: Tensor, pairs: Pairs, penalty: Tensor) -> Tensor:
        known = self.known()
        if isinstance(known, Tensor):
            return _products(theta, self.features, pairs, -known.to(theta) - penalty)
        log_prob = _look_up(known.log_prob, pairs)
        if self.ridge:
            log_prob -= penalty.unsqueeze(-1) if pairs.all_pairs else penalty[pairs.z.clamp_min(0)]
        return log_prob

    def _gathered_log_prob(self, theta: Tensor, index: Tensor, items: Tensor) -> Tensor:
        """Return log densities by plain torch indexing, which is slower but traceable."""
        offset = -(theta @ self.features.T).logsumexp(-1) - self.ridge * theta.square().sum(-1)
        z = index.clamp_min(0)
        log_prob = (theta[z] * self.features[items.expand(index.shape)]).sum(-1) + offset[z]
        return torch.where(index < 0, -torch.inf, log_prob)

    def known(self) -> LogTable | Tensor:
        """Return log normalizers (C,) in float64, or all log probabilities if they are few.

        They are computed once for each theta.
        """
        if self._known is None or self._known[0] != self.theta._version:
            with torch.no_grad():
                theta = self.flat(self.theta, 1)
                make = log_table if len(theta) * self.items <= _TABLE else running_log_totals
                self._known = self.theta._version, make(theta, self.features)
        return self._known[1]

    def totals(self) -> Tensor:
        """Return log normalizers (C,) in float64, without gradients."""
        known = self.known()
        return known if isinstance(known, Tensor) else known.log_total

    def _records_gradients(self) -> bool:
        return torch.is_grad_enabled() and self.theta.requires_grad

    def _items(self, value: Tensor) -> Tensor:
        """Check item numbers."""
        if value.is_floating_point() or value.dtype == torch.bool:
            raise DataError(f"items must be integers (N,), not {value.dtype}")
        items = value.long()
        if items.numel():
            lowest, highest = (int(t) for t in items.aminmax())
            if lowest < 0 or highest >= self.items:
                raise DataError(f"items lie in [{lowest}, {highest}], not in [0, {self.items})")
        return items

    def _pairs(self, items: Tensor, index: Tensor) -> Pairs:
        """Return the pairs of items with the components ``index``."""
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
        """Draw item numbers by inverting cumulative probabilities, in blocks of components."""
        with torch.no_grad():
            theta, totals = self.flat(self.theta, 1), self.totals()
            components, position = torch.unique(index, return_inverse=True)
            uniform = torch.rand(index.shape, dtype=torch.float64, device=theta.device)
            draws = torch.empty_like(index)
            for block in components.split(max(1, _NUMBERS // self.items)):
                log_prob = theta[block] @ self.features.T - totals[block].to(theta).unsqueeze(-1)
                in_block = (position >= 0) & (position < len(block))
                draws[in_block] = _inverse_cdf(
                    log_prob.double().exp(), position[in_block], uniform[in_block]
                )
                position = position - len(block)
        return draws

    def mean_at(self, index: Tensor) -> NoReturn:
        """Raise an error: item numbers have no meaningful mean.

        :raises ModelError: always.
        """
        raise ModelError("item numbers have no meaningful mean: use feature_means()")

    def feature_means(self) -> Tensor:
        """Return mean features (C, L) of the items that components draw, without gradients."""
        with torch.no_grad():
            theta = self.flat(self.theta, 1)
            return tilted_means(theta, self.features, self.totals()).to(theta)

    # EM.

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> MeanStatistics:
        """Return sums of responsibilities and of features."""
        pairs = self._pairs(self._items(value), index)
        return _feature_sums(self.features, weight.reshape(pairs.z.shape), pairs)

    def maximizers(
        self, statistics: MeanStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return better thetas, starting at the current ones; empty components keep theirs."""
        live = (statistics.count > 0).nonzero()[:, 0]
        theta = self.flat(self.theta.detach(), 1)
        target = statistics.first / empty_to_one(statistics.count).unsqueeze(-1)
        covariance = covariance_of(self.features)
        problem = ItemSoftmaxProblem(
            self.features, target, self.ridge, covariance, newton=self.solver == "newton"
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
        r"""Return theta (L,) of a half split off a component, which makes ``row`` likelier.

        With :math:`\Sigma` the covariance of the features, :math:`\Sigma^{-1} (x_j - E x)` is the
        best estimate of the difference of a component that has drawn item j; its standard deviation
        is about :math:`1 / \sqrt L` of its size.
        """
        theta, mean = self.flat(self.theta.detach(), 1)[component], self.feature_means()[component]
        difference = (self.features[int(row)] - mean).double()
        step = covariance_of(self.features).inverse()[0] @ difference / len(difference) ** 0.5
        return theta + step.to(theta)


def covariance_of(features: Tensor) -> Curvature:
    """Return the covariance (1, L, L) of ``features`` over all items, computed once per tensor."""
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
            f"theta {tuple(theta.shape)} and features {tuple(features.shape)}: "
            "pass (C, L), and (p, L) with p >= 2"
        )
    if theta.dtype != features.dtype:
        raise OptionError(f"theta is {theta.dtype} but features are {features.dtype}: cast one")
    if features.requires_grad:
        raise ClosedFormError(
            "features must be constants, but these require gradients: pass features.detach()"
        )


def _products(theta: Tensor, features: Tensor, pairs: Pairs, offset: Tensor) -> Tensor:
    """Return products (S, B) of the items' features with ``theta`` (C, L), plus ``offset`` (C,)."""
    if pairs.all_pairs:
        assert pairs.rows is not None
        return torch.addmm(offset.unsqueeze(-1), theta, features[pairs.rows].T)
    return pair_products(features, theta.unsqueeze(1), pairs).squeeze(-1) + take(offset, pairs.z)


def _look_up(table: Tensor, pairs: Pairs) -> Tensor:
    """Return entries (S, B) of the ``table`` (C, p)."""
    assert pairs.rows is not None
    if pairs.all_pairs:
        return table.index_select(1, pairs.rows)
    if pairs.z.numel() and (int(pairs.z.min()) < -1 or int(pairs.z.max()) >= len(table)):
        raise pairs.out_of_range()
    entry = torch.where(pairs.z < 0, -1, pairs.z * table.shape[1] + pairs.rows)
    return take(table.reshape(-1), entry)


def _inverse_cdf(probs: Tensor, row: Tensor, uniform: Tensor) -> Tensor:
    """Return items (n,) where cumulative sums of ``probs[row]`` (n, p) pass ``uniform`` (n,)."""
    sums = probs.cumsum(-1)
    # All rows form one ascending sequence, row r from r to r + 1.
    row_numbers = torch.arange(len(sums), device=sums.device).unsqueeze(-1)
    steps = (sums / sums[:, -1:] + row_numbers).flatten()
    return torch.searchsorted(steps, uniform + row, right=True) - row * probs.shape[1]


def _feature_sums(features: Tensor, weight: Tensor, pairs: Pairs) -> MeanStatistics:
    """Return sums of the ``weight`` (S, B) and of the weighted features."""
    if _DENSE * len(pairs.z) >= pairs.components:
        return _dense_sums(features, weight, pairs)
    count = count_weights(pairs.z.reshape(-1), weight.reshape(-1), pairs.components)
    return MeanStatistics(count, pair_outer(weight.reshape(-1, 1), features, pairs).squeeze(1))


def _dense_sums(features: Tensor, weight: Tensor, pairs: Pairs) -> MeanStatistics:
    """Return the same sums by matrix products with all components, one block of rows at a time."""
    assert pairs.rows is not None
    components, columns = pairs.components, features.shape[1]
    count, first = (
        torch.zeros(components, width, dtype=torch.float64, device=features.device)
        for width in (1, columns)
    )
    step = max(64, _NUMBERS // (components + columns))
    for begin in range(0, len(pairs.rows), step):
        block = slice(begin, begin + step)
        table = weight[:, block]
        if not pairs.all_pairs:
            table = _dense_weights(pairs.z[:, block], table, components)
        count += table.sum(1, keepdim=True, dtype=torch.float64)
        first += table.to(features) @ features[pairs.rows[block]]
    return MeanStatistics(count.squeeze(-1), first)


def _dense_weights(z: Tensor, weight: Tensor, components: int) -> Tensor:
    """Return weights (C, n) of all components from ``weight`` (S, n) of candidates ``z``."""
    numbers = torch.arange(components, device=z.device).unsqueeze(-1)
    if len(z) == components and bool(((z == numbers) | (z < 0)).all()):
        return torch.where(z < 0, 0.0, weight)
    # Padding (-1) is added to an extra first row, which is cut off.
    table = torch.zeros(components + 1, z.shape[1], dtype=weight.dtype, device=weight.device)
    return table.scatter_add_(0, z + 1, weight)[1:]
