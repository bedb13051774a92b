r"""Newton's method for the multinomial logits of many components, each with its weighted choosers.

Component c minimizes :math:`-\sum_n q_{nc} (\log p(y_n \mid \theta_c) - \lambda |\theta_c|^2)`, a
convex problem. Its Hessian is the sum of :math:`q \sum_j p_j (x_j - \bar x)(x_j - \bar x)^T` over
situations, with :math:`\bar x = \sum_j p_j x_j`, plus that of the penalty: McFadden, "Conditional
logit analysis of qualitative choice behavior" (1974).
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
        """Weighted number () of situations with a choice, over all pairs."""
        situations = (self.choices.available.sum(-1) > 1).sum(-1)
        weight = self.weight.double().reshape(self.pairs.z.shape)
        return torch.where(self.pairs.z >= 0, situations * weight, 0.0).sum()


def expand(batches: Iterable[WeightedChoices], theta: Tensor, ridge: float) -> Expansion:
    """Expand the problems of C components about ``theta`` (C, L), with ``ridge`` per chooser."""
    zeros = torch.zeros_like(theta)
    hessian = theta.new_zeros(*theta.shape, theta.shape[-1])
    totals = Expansion(zeros.sum(-1), zeros.sum(-1), zeros, hessian)
    for choices, pairs, weight in batches:
        for block in blocks(pairs, 3 * choices.width):
            block_expansion = _expand_block(
                choices.at(block.rows), theta[block.components], _block_weights(weight, block)
            )
            for total, block_sum in zip(totals, block_expansion, strict=True):
                total.index_add_(0, block.components, block_sum)
    penalty = ridge * totals.count.unsqueeze(-1)
    return Expansion(
        totals.count,
        totals.value + (penalty * theta.square()).sum(-1),
        totals.gradient + 2 * penalty * theta,
        totals.hessian + (2 * penalty).expand_as(theta).diag_embed(),
    )


def _block_weights(weight: Tensor, block: Block) -> Tensor:
    return torch.where(block.valid, weight[block.slots].double(), 0.0)


def _expand_block(choices: Choices, theta: Tensor, q: Tensor) -> Expansion:
    """Expand the losses of a block's choosers with weights ``q`` (G, R), without penalties."""
    x = choices.design.double()
    utility = utilities(choices._replace(design=x), theta)
    log_sum = utility.logsumexp(-1)
    probability = (utility - log_sum.unsqueeze(-1)).exp()
    if len(x) == 1:
        mean = torch.einsum("grtj,rtjl->grtl", probability, x[0])
    else:
        mean = torch.einsum("grtj,grtjl->grtl", probability, x)
    q_situation = q[..., None, None]
    scaled = (x - mean.unsqueeze(-2)) * (q_situation * probability).sqrt().unsqueeze(-1)
    scaled = scaled.flatten(1, 3)
    return Expansion(
        count=q.sum(-1),
        value=(q * log_sum.sum(-1)).sum(-1),
        gradient=(q_situation * mean).sum((1, 2)),
        hessian=scaled.mT @ scaled,
    )


def minimize(batches: list[WeightedChoices], start: Tensor, ridge: float) -> Tensor:
    """Find the coefficients (C, L) of the minima in float64, from ``start``, by Newton's method."""
    return newton(
        lambda theta: expand(batches, theta, ridge), start, _value_at_zero(batches, start)
    )


def _value_at_zero(batches: list[WeightedChoices], like: Tensor) -> Tensor:
    """Compute the losses (C,) where all available alternatives are equally likely."""
    total = torch.zeros_like(like[:, 0])
    for choices, pairs, weight in batches:
        chooser_loss = choices.available.sum(-1).to(like).log().sum(-1)
        rows, slots, starts = pairs.sorted
        component = torch.repeat_interleave(starts.diff(), output_size=len(rows))
        total.index_add_(0, component, chooser_loss[rows] * weight[slots].double())
    return total
