r"""Multinomial logit for (chooser, component) pairs: log probabilities of choices, and what their derivatives share.

With attributes :math:`x_{tj}` of alternative j relative to those of the chosen one, a chooser's log
probability is
:math:`-\sum_t \log \sum_j e^{x_{tj}^T \theta_c}` over its situations t and the alternatives that
are available. Its gradient in theta is :math:`-\sum_{tj} p_{tj} x_{tj}`. Pairs are met in blocks of
bounded memory: nothing of size N x C x T x J is built.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.tiles import tiles

# Elements of one array of a block in which all components meet the same rows.
_BLOCK_ELEMENTS = 1 << 20


class Choices(NamedTuple):
    """T situations of N choosers, made by :func:`relative`."""

    design: Tensor  # (N, T, J, L)  relative to the chosen alternative; zero where not available
    available: Tensor  # (N, T, J)

    def at(self, rows: Tensor) -> "Choices":
        """Those of the numbered choosers."""
        return Choices(self.design[rows], self.available[rows])

    @property
    def width(self) -> int:
        """Elements of one chooser's design."""
        return self.design[0].numel()


class Block(NamedTuple):
    """Pairs of G components with R choosers each."""

    components: Tensor  # (G,)
    rows: Tensor  # (G, R), or (1, R) where all components have the same choosers
    slots: Tensor  # (G, R)
    valid: Tensor  # (G, R)


def relative(design: Tensor, available: Tensor, chosen: Tensor) -> Choices:
    """Choices from attributes (N, T, J, L) and the chosen alternatives (N, T), -1 for padded situations.

    A padded situation gets one alternative, of no attributes: it has probability one and no
    gradient without being looked at again. What alternatives that are not available hold, NaN
    included, is replaced by zero. An attribute that all alternatives have in common becomes zero
    exactly.
    """
    padded = (chosen < 0).unsqueeze(-1)
    first = torch.arange(available.shape[-1], device=available.device) == 0
    seen = available & ~padded
    own = chosen.clamp_min(0)[..., None, None].expand(*chosen.shape, 1, design.shape[-1])
    away = torch.where(seen.unsqueeze(-1), design - design.gather(-2, own), 0.0)
    return Choices(away, seen | (padded & first))


def blocks(pairs: Pairs, width: int) -> Iterator[Block]:
    """The pairs in blocks, ``width`` elements a pair."""
    if not pairs.all_pairs or pairs.rows is not None:
        for tile in tiles(pairs.sorted, width):
            yield Block(*tile)
        return
    components = torch.arange(pairs.components, device=pairs.z.device)
    rows = torch.arange(pairs.z.shape[1], device=pairs.z.device).unsqueeze(0)
    step = max(1, _BLOCK_ELEMENTS // (pairs.components * max(1, width)))
    for some in rows.split(step, 1):
        slots = components.unsqueeze(-1) * rows.shape[1] + some
        yield Block(components, some, slots, torch.ones_like(slots, dtype=torch.bool))


def utilities(choices: Choices, theta: Tensor) -> Tensor:
    """Utilities (G, R, T, J) of choosers (G or 1, R) under ``theta`` (G, L), -inf where not available."""
    flat = choices.design.flatten(1, 3)
    found = theta @ flat[0].mT if len(flat) == 1 else (flat @ theta.unsqueeze(-1)).squeeze(-1)
    return found.unflatten(-1, choices.design.shape[1:4]).masked_fill(
        ~choices.available, -torch.inf
    )


def collect(weights: Tensor, design: Tensor) -> Tensor:
    """Sums (G, L) of ``weights`` (G, R, T, J) times ``design`` (G or 1, R, T, J, L)."""
    weights, flat = weights.flatten(1), design.flatten(1, 3)
    return weights @ flat[0] if len(flat) == 1 else (weights.unsqueeze(1) @ flat).squeeze(1)


def choice_log_prob(choices: Choices, theta: Tensor, pairs: Pairs) -> Tensor:
    """Log probabilities (S, N) of the choices under ``theta`` (C, L) of each pair's component; zero at padding.

    Differentiable, twice if need be, in the design and in theta.

    >>> design = torch.tensor([[[[0.0], [1.0], [torch.nan]]]])  # one chooser, one situation, three alternatives
    >>> choices = relative(design, ~design.isnan()[..., 0], torch.tensor([[1]]))
    >>> choice_log_prob(choices, torch.tensor([[0.0], [1.0]]), Pairs(torch.tensor([[0], [1]]), 2)).exp()
    tensor([[0.5000],
            [0.7311]])
    """
    return _ChoiceLogProb.apply(*choices, theta, pairs)


class _ChoiceLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, design, available, theta, pairs):
        ctx.save_for_backward(design, available, theta)
        ctx.pairs = pairs
        choices, out = Choices(design, available), theta.new_zeros(pairs.z.numel())
        for block in blocks(pairs, choices.width):
            found = (
                -utilities(choices.at(block.rows), theta[block.components]).logsumexp(-1).sum(-1)
            )
            out[block.slots[block.valid]] = found[block.valid]
        return out.reshape(pairs.z.shape)

    @staticmethod
    def backward(ctx, grad):
        design, available, theta = ctx.saved_tensors
        choices, grad = Choices(design, available), grad.reshape(-1)
        of_design, of_theta = torch.zeros_like(design), torch.zeros_like(theta)
        for block in blocks(ctx.pairs, choices.width):
            some, own = choices.at(block.rows), theta[block.components]
            slope = torch.where(block.valid, grad[block.slots], 0.0)[..., None, None]
            share = -slope * utilities(some, own).softmax(-1)
            if ctx.needs_input_grad[2]:
                of_theta.index_add_(0, block.components, collect(share, some.design))
            if ctx.needs_input_grad[0]:
                each = torch.einsum(
                    "grtj,gl->rtjl" if len(block.rows) == 1 else "grtj,gl->grtjl", share, own
                )
                of_design.index_add_(0, block.rows.reshape(-1), each.reshape(-1, *design.shape[1:]))
        return (of_design if ctx.needs_input_grad[0] else None), None, of_theta, None
