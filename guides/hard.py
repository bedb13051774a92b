"""Hard q(z): every row belongs to one component, under caps on the parts' sizes if wanted."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.guides.base import PartitionGuide
from pyro_mixtures.partition.assignment import METHODS, assign
from pyro_mixtures.poutine import Joint, Posterior, log_joint
from pyro_mixtures.poutine.leave_one_out import LeaveOneOutMessenger

SCORES = ("loss", "leave_one_out", "modular_bound")
# Badly fitted rows kept of every batch, for parts that have become empty.
_WORST = 256


class HardPartition(PartitionGuide):
    r"""A partition of the rows: q(z) is one component a row, and the ELBO is minus the partition's objective.

    Over a program whose components are likelihoods, or pseudo-likelihoods exp(-loss), :class:`EM` with this guide
    alternates two exact minimisations of :math:`F(S) = \sum_k \min_\theta \sum_{i \in S_k} \ell(\theta; i)`: Lloyd's
    algorithm for k-means, classification EM for Gaussian mixtures, and their kin for regressions and classifiers. With
    constant, equal weights the prior of z leaves F as it is; weights that are params are part of it.

    :param score: what a row pays for a component. ``"loss"``: its loss there. ``"leave_one_out"``: in its own part
        ``alpha`` times what it adds to that part's minimal loss, elsewhere its loss, which takes account of the pull
        that a row has on its own part. ``"modular_bound"``: the literal modular bound, for study alone: elsewhere the
        loss of the row by itself over ``alpha``, which does not depend on the part.
    :param alpha: factor of the leave-one-out gain, in (0, 1].
    :param capacity: most rows of a part; ``least``: fewest. Both need all rows in one call.
    :param assignment: under such bounds ``"optimal"`` (a transportation problem) or ``"greedy"`` filling, which may
        raise the objective.
    :raises OptionError: when an option has an impossible value.

    ``objective`` is F after a pass: the losses of the rows where they are, without the prior of z.
    Rows stay where they are where nothing is better. Masked rows have no part. A part that becomes empty takes the
    worst rows of the part that has the worst one, half of it at most, which cannot raise the objective. (Not under
    bounds: ``least`` keeps parts from becoming empty. Nor where weights are learned: a part may cost more than it
    gains.)

    Sangani et al., "Discrete Continuous Optimization Framework for Simultaneous Clustering and Training in Mixture
    Models", ICML 2023; the leave-one-out rule and its closed forms are derived here.

    >>> import torch
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=2, features=2)
    >>> guide = HardPartition(model, components=2)
    >>> guide.plant(torch.arange(100) // 50)
    >>> em = EM(model, guide)
    >>> loss = em.step(x)
    >>> guide.sizes.tolist()
    [50, 50]
    """

    revives = True

    def __init__(
        self,
        model: Callable,
        *,
        components: int,
        score: str = "loss",
        alpha: float = 1.0,
        capacity: int | None = None,
        least: int = 0,
        assignment: str = "optimal",
        site: str = "z",
        beside: Callable | None = None,
    ):
        super().__init__(model, components=components, site=site, beside=beside)
        if score not in SCORES:
            raise OptionError(f"unknown score {score!r}; choose one of {SCORES}")
        if assignment not in METHODS:
            raise OptionError(f"unknown assignment {assignment!r}; choose one of {METHODS}")
        if not 0 < alpha <= 1:
            raise OptionError(f"alpha={alpha} must lie in (0, 1]")
        if least < 0 or (capacity is not None and capacity < max(1, least)):
            raise OptionError(f"capacity={capacity} and least={least}: give 0 <= least <= capacity")
        self.score, self.alpha, self.capacity, self.least, self.assignment = score, alpha, capacity, least, assignment
        self.labels: Tensor | None = None  # (N,) int32, -1 where a row was not seen yet
        self._planted = False  # whether the labels are to be fitted before they are changed
        self._moves: Tensor | None = None  # (N,) int32, empty parts that rows are to be moved to, -1 elsewhere
        self._worst: list[tuple[Tensor, Tensor]] = []  # losses and numbers of badly fitted rows
        self._statistics: Mapping[str, Any] | None = None  # of the partition that the params fit

    @property
    def sizes(self) -> Tensor:
        """Rows of each part (C,)."""
        if self.labels is None:
            return torch.zeros(self.components, dtype=torch.int64, device="cpu")
        return torch.bincount(self.labels[self.labels >= 0].long(), minlength=self.components)

    def part_sizes(self) -> tuple[int, ...]:
        return tuple(self.sizes.tolist())

    @property
    def needs_all_rows(self) -> bool:
        return self.capacity is not None or self.least > 0

    def plant(self, labels: Tensor) -> None:
        """Start from ``labels`` (N,): the next EM step fits the parts as they are, before any row moves.

        Gradient steps of stock SVI fit them until :meth:`release`.
        """
        if not isinstance(labels, Tensor):
            raise PartitionError(f"labels must be a tensor of integers (N,), not a {type(labels).__name__}")
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise PartitionError(f"labels must be integers (N,), not {labels.dtype} {tuple(labels.shape)}")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.components):
            raise PartitionError(f"labels hold numbers outside [0, {self.components})")
        self.labels, self._planted = labels.to("cpu", torch.int32, copy=True), True
        self._moves = self._statistics = None

    def release(self) -> None:
        """Let planted rows move from now on."""
        self._planted = False

    def fitted(self, statistics: Mapping[str, Any], *, learned_weights: bool) -> None:
        """Told by EM that the params now fit the partition; finds rows for empty parts, moved in the next step."""
        self._statistics, self._planted, self._moves = statistics, False, None
        if self.labels is not None and self._worst and not self.needs_all_rows and not learned_weights:
            self._revive(self.labels)
        self._worst = []

    def _revive(self, labels: Tensor) -> None:
        """Promise every empty part rows of one other, of which the worst fitted one is."""
        sizes = self.sizes
        empty = (sizes == 0).nonzero()[:, 0].tolist()
        if not empty:
            return
        loss, rows = (torch.cat(parts) for parts in zip(*self._worst, strict=True))
        rows = rows[loss.argsort(descending=True, stable=True)][: int(loss.isfinite().sum())]
        self._moves = torch.full_like(labels, -1)
        for part in empty:
            free = rows[(self._moves[rows] < 0) & (sizes[labels[rows].long()] > 1)]
            if not len(free):
                return
            donor = labels[free[0]].long()
            taken = free[labels[free] == donor][: int(sizes[donor]) // 2]
            self._moves[taken] = part
            sizes[donor] -= len(taken)
            self.revived += 1

    def _e_step(
        self, model: Callable, args: tuple, kwargs: Mapping[str, Any], given: Mapping[str, Tensor]
    ) -> Posterior:
        if not self.training or self._planted:
            return self._as_it_stands(model, args, kwargs, given)
        gains = self._gains()
        handled = model if gains is None else gains(model)
        joint = log_joint(handled, self._declared(), self._everyone, args, kwargs, given)
        labels, rows = self._labels_for(joint.size), joint.index.to("cpu")
        before = labels[rows].long()
        moves = None if self._moves is None else self._moves[rows].long()
        if moves is not None:  # nobody else joins an empty part: its params fit nothing
            empty = moves[moves >= 0].unique().to(joint.index.device)
            joint = joint._replace(log_joint=joint.log_joint.index_fill(0, empty, -torch.inf))
        best = now = self._assign(joint, gains, before)
        if moves is not None:  # rows that would stay found it: they cost no more where they are fitted by themselves
            now = torch.where((moves >= 0) & (best == before), moves, best)
        if joint.mask is not None:  # such rows belong to no part
            now = torch.where(joint.mask.to("cpu"), now, before)
        self.moved += int((now != before).sum())
        labels[rows] = now.to(labels.dtype)
        posterior = self._counted(joint, best.to(joint.index.device))
        self._remember_worst(posterior)
        return posterior._replace(candidates=now.clamp_min(0).to(joint.index.device).unsqueeze(0))

    def _gains(self) -> LeaveOneOutMessenger | None:
        """Collects what rows add to their parts, where the score wants it and a partition has been fitted."""
        if self.score == "loss" or self._statistics is None or self.labels is None:
            return None
        return LeaveOneOutMessenger(self._declared(), self._statistics, self.labels, self.score == "modular_bound")

    def _assign(self, joint: Joint, gains: LeaveOneOutMessenger | None, before: Tensor) -> Tensor:
        """The rows' components (B,), on the CPU."""
        cost = -joint.log_joint
        if gains is not None:
            cost = self._scored(cost, joint, gains, before.to(cost.device))
        if not self.needs_all_rows:
            return _cheapest(cost, before.to(cost.device)).to("cpu")
        if len(joint.index) != joint.size:
            raise OptionError(
                f"bounds on the parts' sizes need all {joint.size} rows in one call, not {len(joint.index)}: leave "
                "batch_size= out"
            )
        best = before.clamp_min(0)
        some = slice(None) if joint.mask is None else joint.mask.to("cpu")
        best[some] = assign(cost.T.to("cpu")[some], most=self.capacity, least=self.least, method=self.assignment)
        return best

    def _scored(self, cost: Tensor, joint: Joint, gains: LeaveOneOutMessenger, before: Tensor) -> Tensor:
        prior = joint.log_density - joint.log_joint
        if gains.alone is not None:
            cost = (gains.alone + prior) / self.alpha
        own = self.alpha * (gains.total + prior.expand(cost.shape).gather(0, before.clamp_min(0).unsqueeze(0))[0])
        # A row that is masked, or that nobody has seen before, has no part of its own.
        rows = ((before >= 0) & own.isfinite()).nonzero()[:, 0]
        return cost.index_put((before[rows], rows), own[rows].to(cost))

    def _as_it_stands(
        self, model: Callable, args: tuple, kwargs: Mapping[str, Any], given: Mapping[str, Tensor]
    ) -> Posterior:
        """The rows where they are; those that nobody has seen where they fit best."""

        def propose(index: Tensor, size: int, device: torch.device) -> Tensor:
            known = self._known(index, size).to(device).unsqueeze(0)
            return self._everyone(index, size, device) if bool((known < 0).any()) else known

        joint = log_joint(model, self._declared(), propose, args, kwargs, given)
        if len(joint.candidates) == 1:
            return self._counted(joint, torch.zeros_like(joint.index))
        known = self._known(joint.index, joint.size).to(joint.index.device)
        return self._counted(joint, torch.where(known < 0, joint.log_joint.argmax(0), known))

    def _counted(self, joint: Joint, slot: Tensor) -> Posterior:
        """q on the candidates in place ``slot`` (B,), their losses added to the objective."""
        posterior = _posterior(joint, slot)
        if self.training:
            log_density = joint.log_density.expand(joint.log_joint.shape).gather(0, slot.unsqueeze(0))[0]
            weight = posterior.row_weight
            losses = torch.where(weight > 0, -weight * log_density, 0.0)
            self.objective += float(losses.sum(dtype=torch.float64))
        return posterior

    def _known(self, index: Tensor, size: int) -> Tensor:
        """Labels of the rows ``index``, on the CPU, -1 for unseen ones; where there are none, none are made."""
        index = index.to("cpu")
        if self.labels is None:
            return torch.full_like(index, -1)
        return self._labels_for(size)[index].long()

    def unseen(
        self, *args, model: Callable | None = None, given: Mapping[str, Tensor] | None = None, **kwargs
    ) -> Posterior:
        """Each row in the component of largest joint density, whatever the parts' sizes."""
        self._read(args, kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        joint = log_joint(model or self.model, self._declared(), self._everyone, args, kwargs, values)
        return _posterior(joint, joint.log_joint.argmax(0))

    def reset_wins(self) -> None:
        super().reset_wins()
        self.moved = self.revived = 0
        self.objective = 0.0

    def get_extra_state(self):
        return None if self.labels is None else {"labels": self.labels, "planted": self._planted}

    def set_extra_state(self, state) -> None:
        self.labels, self._planted, self._moves, self._statistics, self._worst = None, False, None, None, []
        if state is None:
            return
        if "labels" not in state:
            raise PartitionError(f"this is the state {sorted(state)} of another guide, not that of a HardPartition")
        self.plant(state["labels"].clamp_min(0))
        self.labels, self._planted = state["labels"].to("cpu", torch.int32, copy=True), state["planted"]

    def _everyone(self, index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(self.components, device=device).unsqueeze(-1)

    def _labels_for(self, size: int) -> Tensor:
        if self.labels is None:
            self._check_rows(size)
            if self.capacity is not None and self.capacity * self.components < size:
                raise DataError(
                    f"{self.components} parts of at most capacity={self.capacity} rows do not hold {size} rows"
                )
            if self.least * self.components > size:
                raise DataError(f"{size} rows are too few for {self.components} parts of at least least={self.least}")
            self.labels = torch.full((size,), -1, dtype=torch.int32, device="cpu")
        if len(self.labels) != size:
            raise PartitionError(
                f"this guide holds the labels of {len(self.labels)} rows, but the data now have {size}: make a new "
                "guide, or pass index= and size= for minibatches"
            )
        return self.labels

    def _remember_worst(self, posterior: Posterior) -> None:
        loss = torch.where(posterior.row_weight > 0, -posterior.evidence, -torch.inf)
        worst = loss.topk(min(max(_WORST, self.components), len(loss)))
        self._worst.append((worst.values.to("cpu", torch.float64), posterior.index[worst.indices].to("cpu")))


def _cheapest(cost: Tensor, before: Tensor) -> Tensor:
    """The component (B,) of least ``cost`` (C, B): that of ``before``, where no other is less."""
    least, best = cost.min(0)  # several times faster than argmin
    now = cost.gather(0, before.clamp_min(0).unsqueeze(0))[0]
    return torch.where((before >= 0) & (now <= least), before, best)


def _posterior(joint: Joint, slot: Tensor) -> Posterior:
    """All of q on the candidate in place ``slot`` (B,)."""
    at = slot.unsqueeze(0)
    evidence = joint.log_joint.gather(0, at)[0]
    candidates = joint.candidates.expand(joint.log_joint.shape).gather(0, at)
    if joint.mask is not None:
        evidence = torch.where(joint.mask, evidence, 0.0)
    log_prob = torch.zeros_like(evidence).unsqueeze(0)
    given = (joint.index, joint.size, joint.scale, joint.mask)
    return Posterior(candidates, log_prob, evidence, *given, joint.log_joint.numel(), best_first=True)
