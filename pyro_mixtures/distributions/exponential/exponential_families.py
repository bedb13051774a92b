"""Poisson, Bernoulli, exponential and multinomial components, by their means."""

import torch
from torch import Tensor
from torch.distributions import Multinomial, constraints

from pyro_mixtures.distributions.exponential.bregman import BregmanComponents, MeanStatistics
from pyro_mixtures.errors import OptionError


class Poissons(BregmanComponents):
    """Independent Poisson counts; the divergence is the generalized Kullback-Leibler divergence.

    Rows (N, D) are not negative and need not be integers.

    :param mean: (C, D), positive.
    :raises DataError: for negative rows.

    >>> poissons = Poissons(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    >>> poissons[torch.tensor([0])].log_prob(torch.tensor([[0.0, 1.0]])).exp()
    tensor([0.0996])
    """

    arg_constraints = {"mean": constraints.independent(constraints.positive, 1)}
    support = constraints.independent(constraints.nonnegative, 1)
    has_rsample = False

    @staticmethod
    def natural(mean: Tensor) -> Tensor:
        return mean.log()

    @staticmethod
    def log_partition(mean: Tensor) -> Tensor:
        return mean.sum(-1)

    @staticmethod
    def base(x: Tensor) -> Tensor:
        return -(x + 1).lgamma().sum(-1)

    @staticmethod
    def loss(x: Tensor, mean: Tensor) -> Tensor:
        return (mean - x * _log(mean)).sum(-1)

    @staticmethod
    def gap(mean: Tensor, shift: Tensor) -> Tensor:
        return _entropy_gap(mean, shift).sum(-1)

    @staticmethod
    def inside(mean: Tensor, floor: Tensor) -> Tensor:
        return torch.maximum(mean, floor)

    def sample_at(self, index: Tensor) -> Tensor:
        return torch.poisson(self.mean_at(index))


class Bernoullis(BregmanComponents):
    """Independent binary features; the divergence is the logistic loss.

    Rows (N, D) hold 0 and 1, or fractions between them.

    :param mean: (C, D), in (0, 1).
    :raises DataError: for rows outside [0, 1].

    >>> bernoullis = Bernoullis(torch.tensor([[0.5, 0.1], [0.5, 0.5]]))
    >>> bernoullis[torch.tensor([0])].log_prob(torch.tensor([[1.0, 0.0]])).exp()
    tensor([0.4500])
    """

    arg_constraints = {"mean": constraints.independent(constraints.unit_interval, 1)}
    support = constraints.independent(constraints.unit_interval, 1)
    has_rsample = False

    @staticmethod
    def natural(mean: Tensor) -> Tensor:
        return mean.log() - torch.log1p(-mean)

    @staticmethod
    def log_partition(mean: Tensor) -> Tensor:
        return -torch.log1p(-mean).sum(-1)

    @staticmethod
    def base(x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])

    @staticmethod
    def loss(x: Tensor, mean: Tensor) -> Tensor:
        return -(x * _log(mean) + (1 - x) * _log(1 - mean)).sum(-1)

    @staticmethod
    def gap(mean: Tensor, shift: Tensor) -> Tensor:
        return (_entropy_gap(mean, shift) + _entropy_gap(1 - mean, -shift)).sum(-1)

    @staticmethod
    def inside(mean: Tensor, floor: Tensor) -> Tensor:
        # Floating-point numbers are less dense below one than above zero.
        least = torch.finfo(mean.dtype).eps
        return torch.minimum(torch.maximum(mean, floor), 1 - floor.clamp_min(least))

    @staticmethod
    def distance_to_boundary(mean: Tensor) -> Tensor:
        return torch.minimum(mean, 1 - mean)

    def sample_at(self, index: Tensor) -> Tensor:
        return torch.bernoulli(self.mean_at(index))


class Exponentials(BregmanComponents):
    """Independent exponential features; the divergence is that of Itakura and Saito.

    Rows (N, D) are not negative. The minimal loss of a cluster whose rows are all zero is not
    finite.

    :param mean: (C, D), positive.
    :raises DataError: for negative rows.

    >>> exponentials = Exponentials(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    >>> exponentials[torch.tensor([0])].log_prob(torch.zeros(1, 2)).exp()
    tensor([0.5000])
    """

    arg_constraints = {"mean": constraints.independent(constraints.positive, 1)}
    support = constraints.independent(constraints.nonnegative, 1)
    has_rsample = True

    @staticmethod
    def natural(mean: Tensor) -> Tensor:
        return -mean.reciprocal()

    @staticmethod
    def log_partition(mean: Tensor) -> Tensor:
        return mean.log().sum(-1)

    @staticmethod
    def base(x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])

    @staticmethod
    def loss(x: Tensor, mean: Tensor) -> Tensor:
        return (x / mean.clamp_min(torch.finfo(mean.dtype).tiny) + _log(mean)).sum(-1)

    @staticmethod
    def gap(mean: Tensor, shift: Tensor) -> Tensor:
        relative = _relative(mean, shift).clamp_min(-1 + torch.finfo(mean.dtype).eps)
        return (relative - torch.log1p(relative)).sum(-1)

    @staticmethod
    def inside(mean: Tensor, floor: Tensor) -> Tensor:
        return torch.maximum(mean, floor)

    def sample_at(self, index: Tensor) -> Tensor:
        mean = self.mean_at(index)
        return mean * torch.empty_like(mean).exponential_()


class Multinomials(BregmanComponents):
    """Histograms over D bins; the divergence is that of Kullback and Leibler.

    Rows (N, D) are counts or proportions; the weight of a row is its total.

    :param mean: (C, D) proportions of the bins, on the simplex.
    :param total: the total of rows that are drawn.
    :raises DataError: for negative rows.

    >>> histograms = Multinomials(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
    >>> histograms[torch.tensor([1])].log_prob(torch.tensor([[1.0, 1.0]])).exp()
    tensor([0.1800])
    """

    arg_constraints = {"mean": constraints.simplex}
    option_names = ("total",)
    support = constraints.independent(constraints.nonnegative, 1)
    has_rsample = False

    def __init__(self, mean: Tensor, *, total: int = 1, validate_args: bool | None = None):
        if total < 1:
            raise OptionError(f"total={total} must be positive: it is the total of drawn rows")
        self.total = total
        super().__init__(mean, validate_args=validate_args)

    @staticmethod
    def natural(mean: Tensor) -> Tensor:
        return mean.log()

    @staticmethod
    def log_partition(mean: Tensor) -> Tensor:
        return torch.zeros_like(mean[..., 0])

    @staticmethod
    def base(x: Tensor) -> Tensor:
        return (x.sum(-1) + 1).lgamma() - (x + 1).lgamma().sum(-1)

    @staticmethod
    def loss(x: Tensor, mean: Tensor) -> Tensor:
        return -(x * _log(mean)).sum(-1)

    @staticmethod
    def gap(mean: Tensor, shift: Tensor) -> Tensor:
        return _entropy_gap(mean, shift).sum(-1)

    @staticmethod
    def inside(mean: Tensor, floor: Tensor) -> Tensor:
        """Raise proportions below ``floor`` (D,) to it and rescale all others.

        The result is the maximizer under the constraint that proportions are at least ``floor``.
        """
        low = mean < floor
        while True:
            remaining = 1 - torch.where(low, floor, 0.0).sum(-1, keepdim=True)
            others = torch.where(low, 0.0, mean)
            rescaled = others * (remaining / others.sum(-1, keepdim=True))
            raised = torch.where(low, floor, rescaled)
            below = raised < floor
            if not bool((below & ~low).any()):
                return raised
            low = low | below

    @staticmethod
    def row_size(x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)

    @staticmethod
    def total_size(statistics: MeanStatistics) -> Tensor:
        return statistics.first.sum(-1)

    def sample_at(self, index: Tensor) -> Tensor:
        return Multinomial(self.total, self.mean_at(index), validate_args=False).sample()


def _log(mean: Tensor) -> Tensor:
    """Logarithms, finite where the mean is zero so that products with zero vanish."""
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def _relative(mean: Tensor, shift: Tensor) -> Tensor:
    """``shift / mean``, at least -1; zero where the mean (hence each of its rows) is zero."""
    positive = mean > 0
    return (torch.where(positive, shift, 0.0) / torch.where(positive, mean, 1.0)).clamp_min(-1)


def _entropy_gap(mean: Tensor, shift: Tensor) -> Tensor:
    """``a log(a / mean) - shift`` of a = mean + shift, precise for small shifts."""
    relative = _relative(mean, shift)
    # The logarithm of zero is made finite: its factor is zero.
    return mean * ((1 + relative) * torch.log1p(relative).clamp_min(-1e3) - relative)
