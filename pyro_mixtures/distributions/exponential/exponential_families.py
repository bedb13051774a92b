"""Poisson, Bernoulli, exponential and multinomial components, by their means."""

import torch
from torch import Tensor
from torch.distributions import Multinomial, constraints

from pyro_mixtures.distributions.exponential.bregman import BregmanComponents, MeanStatistics
from pyro_mixtures.errors import OptionError


class Poissons(BregmanComponents):
    """Independent Poisson counts of ``mean`` (C, D), positive: the generalised Kullback-Leibler divergence.

    Rows (N, D) are not negative, and need not be integers.

    >>> Poissons(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))[torch.tensor([0])].log_prob(torch.tensor([[0.0, 1.0]])).exp()
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
    """Independent binary features of ``mean`` (C, D) inside (0, 1): the logistic loss.

    Rows (N, D) hold 0 and 1, or shares between them.

    >>> Bernoullis(torch.tensor([[0.5, 0.1], [0.5, 0.5]]))[torch.tensor([0])].log_prob(torch.tensor([[1.0, 0.0]])).exp()
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
        # One lies further from its next smaller number than zero from its next larger one.
        least = torch.finfo(mean.dtype).eps
        return torch.minimum(torch.maximum(mean, floor), 1 - floor.clamp_min(least))

    @staticmethod
    def distance_to_boundary(mean: Tensor) -> Tensor:
        return torch.minimum(mean, 1 - mean)

    def sample_at(self, index: Tensor) -> Tensor:
        return torch.bernoulli(self.mean_at(index))


class Exponentials(BregmanComponents):
    """Independent exponential features of ``mean`` (C, D), positive: the Itakura-Saito divergence.

    Rows (N, D) are not negative. A part of zeros alone has no finite minimal loss.

    >>> Exponentials(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))[torch.tensor([0])].log_prob(torch.zeros(1, 2)).exp()
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
    """Histograms over D bins of shares ``mean`` (C, D) on the simplex: the Kullback-Leibler divergence of histograms.

    Rows (N, D) are counts, or shares; a row counts for as much as its total.

    :param total: of the rows that are drawn.

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
            raise OptionError(f"total={total} must be positive")
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
        """Shares below ``floor`` (D,) are raised to it, at the expense of all others: the maximiser that keeps it."""
        low = mean < floor
        while True:
            left = 1 - torch.where(low, floor, 0.0).sum(-1, keepdim=True)
            rest = torch.where(low, 0.0, mean)
            new = torch.where(low, floor, rest * (left / rest.sum(-1, keepdim=True)))
            sunk = new < floor
            if not bool((sunk & ~low).any()):
                return new
            low = low | sunk

    @staticmethod
    def row_size(x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)

    @staticmethod
    def part_size(statistics: MeanStatistics) -> Tensor:
        return statistics.first.sum(-1)

    def sample_at(self, index: Tensor) -> Tensor:
        return Multinomial(self.total, self.mean_at(index), validate_args=False).sample()


def _log(mean: Tensor) -> Tensor:
    """Logarithms that vanish in a product with zero, also where the mean is zero."""
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def _relative(mean: Tensor, shift: Tensor) -> Tensor:
    """``shift / mean``, not below -1; zero where the mean is zero, and so are all rows that it is of."""
    known = mean > 0
    return (torch.where(known, shift, 0.0) / torch.where(known, mean, 1.0)).clamp_min(-1)


def _entropy_gap(mean: Tensor, shift: Tensor) -> Tensor:
    """``a log(a / mean) - shift`` of a = mean + shift, precise for small shifts."""
    relative = _relative(mean, shift)
    # The logarithm of zero vanishes in the product.
    return mean * ((1 + relative) * torch.log1p(relative).clamp_min(-1e3) - relative)
