r"""Newton's method for the multinomial logits of many components at once, each over its own weighted choosers.

Component c minimises :math:`-\sum_n q_{nc} (\log p(y_n \mid \theta_c) - \lambda |\theta_c|^2)`, a
convex problem. Its Hessian is the sum over situations of :math:`q \sum_j p_j (x_j - \bar x)(x_j -
\bar x)^T` with
:math:`\bar x = \sum_j p_j x_j`, and the penalty's: McFadden, "Conditional logit analysis of
qualitative choice behavior" (1974).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.choices import Block, Choices, blocks, utilities
from pyro_mixtures.ops.optimize.newton import Expansion, newton
from pyro_mixtures.ops.pairs import Pairs


class WeightedChoices(NamedTuple):
    """Choosers of one batch, and the (chooser, component) pairs with their responsibilities."""

    choices: Choices
    pairs: Pairs  # z (S, N)
    weight: Tensor  # (S * N,)  q

    @property
    def situations(self) -> Tensor:
        """How many situations with a choice the pairs have between them, weighted."""
        each = (self.choices.available.sum(-1) > 1).sum(-1)
        return torch.where(
            self.pairs.z >= 0, each * self.weight.double().reshape(self.pairs.z.shape), 0.0
        ).sum()


def expand(batches: Iterable[WeightedChoices], theta: Tensor, ridge: float) -> Expansion:
    """The problems of C components about ``theta`` (C, L), with penalty ``ridge`` a chooser."""
    zero = torch.zeros_like(theta)
    out = Expansion(
        zero.sum(-1), zero.sum(-1), zero, theta.new_zeros(*theta.shape, theta.shape[-1])
    )
    for choices, pairs, weight in batches:
        for block in blocks(pairs, 3 * choices.width):
            found = _expand_block(
                choices.at(block.rows), theta[block.components], _weights(weight, block)
            )
            for total, part in zip(out, found, strict=True):
                total.index_add_(0, block.components, part)
    share = ridge * out.count.unsqueeze(-1)
    return Expansion(
        out.count,
        out.value + (share * theta.square()).sum(-1),
        out.gradient + 2 * share * theta,
        out.hessian + (2 * share).expand_as(theta).diag_embed(),
    )


def _weights(weight: Tensor, block: Block) -> Tensor:
    return torch.where(block.valid, weight[block.slots].double(), 0.0)


def _expand_block(choices: Choices, theta: Tensor, q: Tensor) -> Expansion:
    """Losses of a block's choosers with weights ``q`` (G, R), without penalties."""
    x = choices.design.double()
    utility, wide = utilities(choices._replace(design=x), theta), q[..., None, None]
    log_sum = utility.logsumexp(-1)
    share = (utility - log_sum.unsqueeze(-1)).exp()
    mean = (
        torch.einsum("grtj,rtjl->grtl", share, x[0])
        if len(x) == 1
        else torch.einsum("grtj,grtjl->grtl", share, x)
    )
    away = ((x - mean.unsqueeze(-2)) * (wide * share).sqrt().unsqueeze(-1)).flatten(1, 3)
    return Expansion(
        q.sum(-1), (q * log_sum.sum(-1)).sum(-1), (wide * mean).sum((1, 2)), away.mT @ away
    )


def minimize(batches: list[WeightedChoices], start: Tensor, ridge: float) -> Tensor:
    """Coefficients (C, L) of the minima in float64, from ``start``, by :func:`~pyro_mixtures.ops.optimize.newton.newton`."""
    return newton(
        lambda theta: expand(batches, theta, ridge), start, _value_at_zero(batches, start)
    )


def _value_at_zero(batches: list[WeightedChoices], like: Tensor) -> Tensor:
    """Losses (C,) where every available alternative is as likely as any other."""
    total = torch.zeros_like(like[:, 0])
    for choices, pairs, weight in batches:
        each = choices.available.sum(-1).to(like).log().sum(-1)
        rows, slots, starts = pairs.sorted
        component = torch.repeat_interleave(starts.diff(), output_size=len(rows))
        total.index_add_(0, component, each[rows] * weight[slots].double())
    return total
