"""Categoricals over a few candidate components per row: the guide's q(z), the model's support."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.shapes import Shape, broadcast
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import PartitionError


class CandidateCategorical(TorchDistribution):
    """The distribution q(z): a categorical whose support is each row's own candidate set.

    Enumeration runs over the candidates alone, so stock ``TraceEnum_ELBO`` computes the truncated
    free energy.

    :param candidates: (*batch, S) distinct component numbers, or (S,) shared by all rows.
    :param logits: (*batch, S) unnormalized log probabilities of the candidates.
    :raises PartitionError: when a set lists a component twice, or sizes differ.

    >>> q = CandidateCategorical(torch.tensor([[7, 2], [3, 9]]), torch.zeros(2, 2))
    >>> q.enumerate_support(expand=True)
    tensor([[7, 3],
            [2, 9]])
    >>> q.log_prob(torch.tensor([2, 4])).exp()
    tensor([0.5000, 0.0000])
    """

    arg_constraints = {}
    support = constraints.nonnegative_integer
    has_enumerate_support = True

    def __init__(
        self, candidates: Tensor, logits: Tensor, *, validate_args: bool | None = None
    ) -> None:
        if candidates.shape[-1] != logits.shape[-1]:
            raise PartitionError(
                f"{candidates.shape[-1]} candidates per row but {logits.shape[-1]} logits: "
                "pass one logit for each candidate"
            )
        self.shared = candidates.dim() == 1
        if self.shared:
            candidates, order = candidates.sort()
            logits = logits[..., order]
        if validate_args is not False:
            check_distinct(candidates)
        self.candidates = candidates
        self.log_weights = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "CandidateCategorical":
        new: CandidateCategorical = self._get_checked_instance(CandidateCategorical, _instance)
        size = torch.Size(batch_shape)
        new.shared = self.shared
        new.candidates = self.candidates if self.shared else self.candidates.expand(*size, -1)
        new.log_weights = self.log_weights.expand(*size, -1)
        super(CandidateCategorical, new).__init__(size, torch.Size(), validate_args=False)
        return new

    def enumerate_support(self, expand: bool = True) -> Tensor:
        if not self.shared:
            return self.candidates.movedim(-1, 0)
        values = self.candidates.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values

    def log_prob(self, value: Tensor) -> Tensor:
        if self.shared:
            return self._shared_log_prob(value)
        match = value.unsqueeze(-1) == self.candidates
        return torch.where(match, self.log_weights, -torch.inf).amax(-1)

    def _shared_log_prob(self, value: Tensor) -> Tensor:
        """One gather from the (S, *batch) table: nothing of size (values, *batch, S)."""
        shape = broadcast(value.shape, self.batch_shape)
        last = len(self.candidates) - 1
        slot = torch.searchsorted(self.candidates, value.contiguous()).clamp_max(last)
        is_candidate = self.candidates[slot] == value
        slots = slot.expand(shape).reshape(-1, *self.batch_shape)
        log_prob = self.log_weights.movedim(-1, 0).gather(0, slots)
        return torch.where(is_candidate, log_prob.reshape(shape), -torch.inf)

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        with torch.no_grad():
            categorical = torch.distributions.Categorical(
                logits=self.log_weights, validate_args=False
            )
            slot = categorical.sample(sample_shape)
            table = self.candidates.expand(*slot.shape, -1)
            return table.gather(-1, slot.unsqueeze(-1)).squeeze(-1)


class RestrictedSupport(TorchDistribution):
    """A discrete distribution whose enumeration is restricted to each row's candidates.

    Log probabilities are those of ``base``, not renormalized: the sum over the support gives
    the sum of p(c, x_n) over c in K_n, whose log is the row's truncated log evidence. Only rows
    where ``mask`` is False are renormalized: nothing of them is observed, so they must sum to one.

    :param base: a distribution over component numbers.
    :param candidates: (*batch, S) component numbers, padded with -1, whose log probability is -inf.
    :param mask: which rows are observed; all of them if None.
    :raises PartitionError: when a candidate set lists a component twice.

    >>> from pyro_mixtures.distributions import MixtureWeights
    >>> weights = MixtureWeights(torch.tensor([0.2, 0.3, 0.5]))
    >>> restricted = RestrictedSupport(weights, torch.tensor([[2, -1]]))
    >>> restricted.log_prob(restricted.enumerate_support()).exp()
    tensor([[0.5000],
            [0.0000]])
    """

    arg_constraints = {}
    has_enumerate_support = True

    def __init__(
        self,
        base: TorchDistribution,
        candidates: Tensor,
        *,
        mask: Tensor | bool | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if validate_args is not False:
            check_distinct(candidates)
        self.base, self.candidates, self.row_mask = base, candidates, mask
        shape = broadcast(base.batch_shape, candidates.shape[:-1])
        super().__init__(shape, torch.Size(), validate_args=False)

    @property
    def support(self) -> Any:
        return self.base.support

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "RestrictedSupport":
        return RestrictedSupport(
            self.base.expand(batch_shape), self.candidates, mask=self.row_mask, validate_args=False
        )

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.candidates.expand(*self.batch_shape, -1).movedim(-1, 0)

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self._base_log_prob(value)
        if self.row_mask is None:
            return log_prob
        total = self._base_log_prob(self.enumerate_support()).logsumexp(0)
        observed = torch.as_tensor(self.row_mask, device=log_prob.device)
        return torch.where(observed, log_prob, log_prob - total)

    def _base_log_prob(self, value: Tensor) -> Tensor:
        if isinstance(self.base, ComponentWeights):  # these accept padding
            return self.base.log_prob(value)
        log_prob: Tensor = self.base.log_prob(value.clamp_min(0))
        return torch.where(value < 0, -torch.inf, log_prob)

    @property
    def unrestricted(self) -> TorchDistribution:
        """The distribution whose support is restricted."""
        return self.base

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw from the base distribution, given that the value is a candidate."""
        with torch.no_grad():
            logits = self.log_prob(self.enumerate_support()).movedim(0, -1)
            candidates = self.candidates.expand(logits.shape)
            return CandidateCategorical(candidates, logits, validate_args=False).sample(
                sample_shape
            )


def check_distinct(candidates: Tensor) -> None:
    """Refuse a candidate set that lists a component twice: its probability would count twice.

    :raises PartitionError: which shows the first such set.
    """
    ordered = candidates.sort(-1).values
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    if bool(repeated.any()):
        row = int(repeated.reshape(-1, repeated.shape[-1]).any(-1).nonzero()[0])
        candidate_set = candidates.reshape(-1, candidates.shape[-1])[row].tolist()
        raise PartitionError(
            f"candidate set {row} lists a component twice: {candidate_set}; pad with -1 instead"
        )
