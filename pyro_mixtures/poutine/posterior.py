"""Responsibilities of a batch of rows: what every strategy's E-step returns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.poutine.joint import Joint, log_joint
from pyro_mixtures.poutine.structure import ProgramStructure


class Posterior(NamedTuple):
    """q(z) of B rows over S candidates each, optimal among the distributions on those candidates."""

    candidates: Tensor  # (S, B), or (S, 1) where all rows share them
    log_prob: Tensor  # (S, B)  log q
    log_evidence: Tensor  # (B,)    log sum_{candidates} p(c, x); 0 where masked
    index: Tensor  # type: ignore[assignment]  # (B,) row numbers; shadows tuple.index
    size: int  # N
    scale: Tensor | float  # row weights of z
    mask: Tensor | None
    evaluations: int  # joint densities that were evaluated
    best_first: bool = False  # whether each row's candidates begin with the most probable

    @property
    def probs(self) -> Tensor:
        """Responsibilities (S, B), columns summing to one."""
        return self.log_prob.exp()

    @property
    def row_weight(self) -> Tensor:
        """Weight (B,) of each row in sums over rows: its scale, 0 where masked."""
        weight = torch.ones_like(self.log_evidence) * self.scale
        return weight if self.mask is None else weight * self.mask

    @property
    def winner(self) -> Tensor:
        """The most probable component of each row, (B,)."""
        if self.best_first:
            return self.candidates[0].expand(self.log_prob.shape[1:])
        best = self.log_prob.max(
            0
        ).indices  # several times faster than argmax over a short first dimension
        return self.candidates.expand(self.log_prob.shape).gather(0, best.unsqueeze(0))[0]

    def free_energy(self) -> Tensor:
        """Sum over rows of the (truncated) evidence, by row weight; not scaled up to the data set."""
        return (self.row_weight.double() * self.log_evidence).sum()

    def top(self, count: int) -> "Posterior":
        """The ``count`` most probable candidates only, not renormalised."""
        best = self.log_prob.topk(min(count, len(self.log_prob)), dim=0)
        candidates = self.candidates.expand(self.log_prob.shape).gather(0, best.indices)
        return self._replace(candidates=candidates, log_prob=best.values, best_first=True)


def posterior_of(
    joint: Joint,
    candidates: Tensor,
    log_joint: Tensor,
    log_evidence: Tensor,
    evaluations: int,
    *,
    best_first: bool,
) -> Posterior:
    """Normalise the log joints of the kept ``candidates`` by the log of their sum."""
    log_prob = log_joint - log_evidence
    if joint.mask is not None:
        log_evidence = torch.where(joint.mask, log_evidence, 0.0)
    args = (joint.index, joint.size, joint.scale, joint.mask)
    return Posterior(candidates, log_prob, log_evidence, *args, evaluations, best_first)


def exact_posterior(
    model: Callable,
    structure: ProgramStructure,
    args: tuple,
    kwargs: Mapping[str, Any],
    given: Mapping[str, Tensor] | None = None,
) -> Posterior:
    """q(z) = p(z | x) over all C components: one (C, B) array."""

    def all_components(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(structure.components, device=device).unsqueeze(-1)

    joint = log_joint(model, structure, all_components, args, kwargs, given)
    log_evidence = joint.log_joint.logsumexp(0)
    return posterior_of(
        joint,
        joint.candidates,
        joint.log_joint,
        log_evidence,
        joint.log_joint.numel(),
        best_first=False,
    )
