r"""Multinomial logit of (chooser, component) pairs: log probabilities and their gradients.

With attributes :math:`x_{tj}` of alternative j relative to those of the chosen one, the log
probability of a chooser's choices is
:math:`-\sum_t \log \sum_j e^{x_{tj}^T \theta_c}`, over its situations t and the available
alternatives j. Its gradient in theta is :math:`-\sum_{tj} p_{tj} x_{tj}`. Pairs are processed in
blocks of bounded memory: nothing of size N x C x T x J is built.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.tiles import component_tiles

# Elements of one array of a block in which all components have the same rows.
_BLOCK_ELEMENTS = 1 << 20


class Choices(NamedTuple):
    """T situations of N choosers, made by :func:`relative`."""

    design: Tensor  # (N, T, J, L)  relative to the chosen alternative; zero where not available
    available: Tensor  # (N, T, J)

    def at(self, rows: Tensor) -> "Choices":
        """Select the choosers numbered ``rows``."""
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
    """Subtract the attributes of the chosen alternatives.

    A padded situation gets one alternative without attributes, so it has probability one and no
    gradient. Attributes of alternatives that are not available are replaced by zero, even if they
    are NaN. An attribute that all alternatives have in common becomes exactly zero.

    :param design: (N, T, J, L) attributes.
    :param available: (N, T, J) bool.
    :param chosen: (N, T) chosen alternatives, -1 for padded situations.
    """
    padded = (chosen < 0).unsqueeze(-1)
    is_first = torch.arange(available.shape[-1], device=available.device) == 0
    counted = available & ~padded
    index = chosen.clamp_min(0)[..., None, None].expand(*chosen.shape, 1, design.shape[-1])
    difference = design - design.gather(-2, index)
    difference = torch.where(counted.unsqueeze(-1), difference, 0.0)
    return Choices(difference, counted | (padded & is_first))


def blocks(pairs: Pairs, width: int) -> Iterator[Block]:
    """Cut the pairs into blocks of bounded memory.

    :param width: elements that the caller needs per pair.
    """
    if not pairs.all_pairs or pairs.rows is not None:
        for tile in component_tiles(pairs.sorted, width):
            yield Block(*tile)
        return
    components = torch.arange(pairs.components, device=pairs.z.device)
    rows = torch.arange(pairs.z.shape[1], device=pairs.z.device).unsqueeze(0)
    step = max(1, _BLOCK_ELEMENTS // (pairs.components * max(1, width)))
    for block_rows in rows.split(step, 1):
        slots = components.unsqueeze(-1) * rows.shape[1] + block_rows
        yield Block(components, block_rows, slots, torch.ones_like(slots, dtype=torch.bool))


def utilities(choices: Choices, theta: Tensor) -> Tensor:
    """Compute the utilities of all alternatives.

    :param choices: those of (G, R) choosers, or (1, R) where all components have the same.
    :param theta: (G, L) coefficients.
    :returns: (G, R, T, J), -inf where an alternative is not available.
    """
    flat = choices.design.flatten(1, 3)
    if len(flat) == 1:
        utility = theta @ flat[0].mT
    else:
        utility = (flat @ theta.unsqueeze(-1)).squeeze(-1)
    utility = utility.unflatten(-1, choices.design.shape[1:4])
    return utility.masked_fill(~choices.available, -torch.inf)


def collect(weights: Tensor, design: Tensor) -> Tensor:
    """Sum ``weights`` (G, R, T, J) times ``design`` (G or 1, R, T, J, L) to (G, L)."""
    weights, flat = weights.flatten(1), design.flatten(1, 3)
    return weights @ flat[0] if len(flat) == 1 else (weights.unsqueeze(1) @ flat).squeeze(1)


def choice_log_prob(choices: Choices, theta: Tensor, pairs: Pairs) -> Tensor:
    """Compute the log probabilities of the choices under the component of each pair.

    Differentiable, also twice, in the design and in theta.

    :param theta: (C, L) coefficients.
    :returns: (S, N), zero at padding.

    >>> # One chooser, one situation, three alternatives.
    >>> design = torch.tensor([[[[0.0], [1.0], [torch.nan]]]])
    >>> choices = relative(design, ~design.isnan()[..., 0], torch.tensor([[1]]))
    >>> pairs = Pairs(torch.tensor([[0], [1]]), 2)
    >>> choice_log_prob(choices, torch.tensor([[0.0], [1.0]]), pairs).exp()
    tensor([[0.5000],
            [0.7311]])
    """
    log_prob: Tensor = _ChoiceLogProb.apply(*choices, theta, pairs)
    return log_prob


class _ChoiceLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, design: Tensor, available: Tensor, theta: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(design, available, theta)
        ctx.pairs = pairs
        choices, out = Choices(design, available), theta.new_zeros(pairs.z.numel())
        for block in blocks(pairs, choices.width):
            utility = utilities(choices.at(block.rows), theta[block.components])
            log_prob = -utility.logsumexp(-1).sum(-1)
            out[block.slots[block.valid]] = log_prob[block.valid]
        return out.reshape(pairs.z.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        design, available, theta = ctx.saved_tensors
        choices, grad = Choices(design, available), grad.reshape(-1)
        grad_design, grad_theta = torch.zeros_like(design), torch.zeros_like(theta)
        for block in blocks(ctx.pairs, choices.width):
            block_choices, block_theta = choices.at(block.rows), theta[block.components]
            slope = torch.where(block.valid, grad[block.slots], 0.0)[..., None, None]
            weights = -slope * utilities(block_choices, block_theta).softmax(-1)
            if ctx.needs_input_grad[2]:
                grad_theta.index_add_(0, block.components, collect(weights, block_choices.design))
            if ctx.needs_input_grad[0]:
                equation = "grtj,gl->rtjl" if len(block.rows) == 1 else "grtj,gl->grtjl"
                block_grad = torch.einsum(equation, weights, block_theta)
                block_grad = block_grad.reshape(-1, *design.shape[1:])
                grad_design.index_add_(0, block.rows.reshape(-1), block_grad)
        return (grad_design if ctx.needs_input_grad[0] else None), None, grad_theta, None
