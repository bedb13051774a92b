"""Responsibilities of a batch of rows, which the E-step of every strategy returns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.poutine.joint import Joint, log_joint
from pyro_mixtures.poutine.structure import ProgramStructure


class Posterior(NamedTuple):
    """q(z) of B rows over S candidates each: the optimal distribution on these candidates."""

    candidates: Tensor  # (S, B), or (S, 1) where all rows share them
    log_prob: Tensor  # (S, B)  log q
    log_evidence: Tensor  # (B,)  log sum_{candidates} p(c, x); 0 where masked
    index: Tensor  # type: ignore[assignment]  # (B,) row numbers; shadows tuple.index
    size: int  # N
    scale: Tensor | float  # row weights of z
    mask: Tensor | None  # (B,) of z
    evaluations: int  # number of joint densities that were evaluated
    best_first: bool = False  # whether each row's candidates begin with the most probable

    @property
    def probs(self) -> Tensor:
        """Responsibilities (S, B), whose columns sum to one."""
        return self.log_prob.exp()

    @property
    def row_weight(self) -> Tensor:
        """Weight (B,) of each row in sums over rows: its scale, or 0 where masked."""
        weight = torch.ones_like(self.log_evidence) * self.scale
        return weight if self.mask is None else weight * self.mask

    @property
    def winner(self) -> Tensor:
        """Most probable component (B,) of each row."""
        if self.best_first:
            return self.candidates[0].expand(self.log_prob.shape[1:])
        # max() is several times faster than argmax() over a short first dimension.
        best = self.log_prob.max(0).indices
        return self.candidates.expand(self.log_prob.shape).gather(0, best.unsqueeze(0))[0]

    def free_energy(self) -> Tensor:
        """Return the sum over rows of the (truncated) log evidence times the row weight.

        The sum is over the rows of the batch; it is not scaled up to the data set.
        """
        return (self.row_weight.double() * self.log_evidence).sum()

    def top(self, count: int) -> "Posterior":
        """Return the ``count`` most probable candidates only, not renormalized."""
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
    """Normalize the log joints of candidates.

    :param joint: the E-step that evaluated them; it supplies rows, row weights and the mask.
    :param candidates: (S, B) or (S, 1), the candidates over which q(z) is normalized.
    :param log_joint: (S, B) their log joints.
    :param log_evidence: (B,) logarithm of their sum.
    :param evaluations: number of joint densities that were evaluated.
    :param best_first: whether each row's candidates begin with the most probable.
    :returns: q(z) of the rows over these candidates.
    """
    log_prob = log_joint - log_evidence
    if joint.mask is not None:
        log_evidence = torch.where(joint.mask, log_evidence, 0.0)
    rows = (joint.index, joint.size, joint.scale, joint.mask)
    return Posterior(candidates, log_prob, log_evidence, *rows, evaluations, best_first)


def exact_posterior(
    model: Callable[..., Any],
    structure: ProgramStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    given: Mapping[str, Tensor] | None = None,
) -> Posterior:
    """Compute q(z) = p(z | x) over all C components, one (C, B) array.

    :param model: the Pyro program.
    :param structure: its structure.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param given: values of its other latent sites, by name.
    :returns: q(z) of the rows; the candidates of every row are 0, ..., C - 1.
    :raises NumericalError, DataError: when a row has no finite log joint.
    """

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
