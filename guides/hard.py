"""Hard q(z): every row belongs to one component, with bounds on the clusters' sizes if wanted."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.guides.assignment_costs import (
    SCORES,
    LeaveOneOutGains,
    MinimumRowsMessenger,
    assignment_costs,
    cheapest_clusters,
)
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.partition.assignment import METHODS, assign
from pyro_mixtures.partition.reseeding import WorstRows, moves_to_empty_clusters
from pyro_mixtures.poutine import Joint, Posterior, log_joint
from pyro_mixtures.poutine.joint import Propose


class HardPartition(LabeledGuide):
    r"""A partition of the rows: q(z) is one component per row.

    The ELBO is minus the objective of the partition. Over a program whose components are
    likelihoods, or pseudo-likelihoods exp(-loss), :class:`~pyro_mixtures.infer.EM` with this guide
    alternates two exact minimizations of :math:`F(S) = \sum_k \min_\theta \sum_{i \in S_k}
    \ell(\theta; i)`: Lloyd's algorithm for k-means, classification EM for Gaussian mixtures, and
    the analogous algorithms for regressions and classifiers. Constant, equal weights do not change
    F; weights that are params add the prior of z to it.

    :param model: the Pyro program; its arguments are the guide's.
    :param components: C, the number of the model's components.
    :param score: the cost of assigning a row to a component. ``"loss"``: its loss there.
        ``"leave_one_out"``: for the row's own cluster ``alpha`` times what the row adds to the
        minimal loss of that cluster, which accounts for the pull of a row on its own cluster;
        for other clusters its loss. ``"modular_bound"``: the literal modular bound, for study only:
        for other clusters the loss of the row by itself over ``alpha``, which does not depend on
        the cluster.
    :param alpha: factor of the leave-one-out gain, in (0, 1].
    :param capacity: largest number of rows of a cluster; None for no limit.
    :param min_size: smallest number of rows of a cluster. Both bounds need all rows in one call.
    :param assignment: how rows are assigned under such bounds: ``"optimal"`` solves a
        transportation problem, ``"greedy"`` filling is faster and may raise the objective.
    :param site: name of the discrete site.
    :param global_guide: a guide over the model's other latent sites.
    :raises OptionError: when an option has an impossible value.

    Rows keep their labels unless another component is better. Masked rows have no label. After a
    pass over the rows, ``objective`` is F: the sum of the rows' losses in nats, without the prior
    of z; ``moved`` is the number of rows that changed their component.

    An empty component takes rows of the cluster that contains the worst fitted row: its worst
    fitted rows, half of the cluster and ``capacity`` at most. This cannot raise the objective. The
    component stays empty if it would get fewer rows than the family needs, or if the other clusters
    cannot hold all rows. ``min_size`` keeps clusters from becoming empty. With learned weights
    components stay empty: m of n rows that form a cluster of their own raise the prior's share of
    the objective, :math:`-\sum_k n_k \log(n_k / N)`, by :math:`n \log n - m \log m - (n - m)
    \log(n - m) > 0`, while all that is known of their losses is that they do not rise.

    Sangani et al., "Discrete Continuous Optimization Framework for Simultaneous Clustering and
    Training in Mixture Models", ICML 2023. The leave-one-out rule and its closed forms are derived
    here.

    >>> import torch
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=2, features=2)
    >>> guide = HardPartition(model, components=2)
    >>> guide.set_labels(torch.arange(100) // 50)
    >>> em = EM(model, guide)
    >>> loss = em.step(x)
    >>> guide.sizes.tolist()
    [50, 50]
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        components: int,
        score: str = "loss",
        alpha: float = 1.0,
        capacity: int | None = None,
        min_size: int = 0,
        assignment: str = "optimal",
        site: str = "z",
        global_guide: Callable[..., Any] | None = None,
    ):
        super().__init__(model, components=components, site=site, global_guide=global_guide)
        if score not in SCORES:
            raise OptionError(f"unknown score {score!r}; choose one of {SCORES}")
        if assignment not in METHODS:
            raise OptionError(f"unknown assignment {assignment!r}; choose one of {METHODS}")
        if not 0 < alpha <= 1:
            raise OptionError(f"alpha={alpha} must lie in (0, 1]")
        if min_size < 0 or (capacity is not None and capacity < max(1, min_size)):
            raise OptionError(
                f"capacity={capacity} and min_size={min_size}: pass 0 <= min_size <= capacity"
            )
        self.score = score
        self.alpha = alpha
        self.capacity = capacity
        self.min_size = min_size
        self.assignment = assignment
        self.labels: Tensor | None = None  # (N,) int32, -1 for rows not seen yet
        self._labels_fixed = False  # whether the labels have to be fitted before rows may move
        # (N,) int32, the empty component that a row moves to in the next step, -1 elsewhere.
        self._moves: Tensor | None = None
        self._worst_rows = WorstRows(keep=components)
        self._min_rows = 1  # rows that a cluster needs to be fitted
        self._statistics: Mapping[str, Any] | None = None  # of the partition that the params fit

    # State that users see.

    @property
    def clusters(self) -> int:
        """K, the number of clusters that a row can belong to."""
        return self.components

    @property
    def sizes(self) -> Tensor:
        """Rows of each cluster, (C,) int64 on the CPU."""
        if self.labels is None:
            return torch.zeros(self.components, dtype=torch.int64, device="cpu")
        components = self._components_of(self.labels)
        return torch.bincount(components[components >= 0].long(), minlength=self.components)

    @property
    def needs_all_rows(self) -> bool:
        """Bounds on the clusters' sizes need all rows in one call."""
        return self.capacity is not None or self.min_size > 0

    @property
    def objective(self) -> float:
        """Sum of the rows' losses since :meth:`reset_counts`, in nats, without the prior of z."""
        return self._objective

    @property
    def moved(self) -> int:
        """Rows that changed their component since :meth:`reset_counts`."""
        return self._moved

    @property
    def reseeded(self) -> int:
        """Empty components that were given rows since :meth:`reset_counts`."""
        return self._reseeded

    def reset_counts(self) -> None:
        """Reset the counts at the start of an epoch."""
        super().reset_counts()
        self._objective = 0.0
        self._moved = self._reseeded = 0

    def epoch_details(self) -> dict[str, Any]:
        """Return the rows that moved, the objective and the clusters' sizes."""
        sizes = tuple(self.sizes.flatten().tolist())
        return {"moved": self.moved, "objective": self.objective, "sizes": sizes}

    def set_labels(self, labels: Tensor) -> None:
        """Start from ``labels`` (N,), integers in [0, C).

        The next EM step fits the params to these clusters before any row moves. Gradient steps of
        stock SVI keep the labels until :meth:`release`.

        :raises PartitionError: when the labels are not such integers.
        """
        self._check_labels(labels)
        self.labels = labels.to("cpu", torch.int32, copy=True).contiguous()
        self._labels_fixed = True
        self._moves = self._statistics = None

    def release(self) -> None:
        """Let rows move from now on, after :meth:`set_labels`."""
        self._labels_fixed = False

    # E-step.

    def e_step(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Tensor],
    ) -> Posterior:
        if not self.training or self._labels_fixed:
            return self._keep_labels(model, args, kwargs, given)[0]
        gains = self._gains()
        watched = model if gains is None else gains.watch(model)
        joint = self._joint(watched, self._all_components, args, kwargs, given)
        labels, rows = self._labels_for(joint.size), joint.index.to("cpu")
        before = labels[..., rows].long()
        moves = None if self._moves is None else self._moves[..., rows].long()
        if moves is not None:
            joint = self._close_empty_components(joint, moves)
        best = self._assign(joint, gains, before, self._fixed_rows(before, moves))
        # Rows that move to an empty component count where they were in this step: fitted by
        # themselves they cost no more.
        after = best if moves is None else torch.where(moves >= 0, moves, best)
        if joint.mask is not None:  # masked rows have no label
            after = torch.where(joint.mask.to("cpu"), after, before)
        labels[..., rows] = after.to(labels.dtype)
        self._count_moved(after != before)
        device = joint.index.device
        posterior, log_evidence = self._counted(joint, self._components_of(best.to(device)))
        losses = torch.where(posterior.row_weight > 0, -log_evidence, -torch.inf)
        self._worst_rows.add(losses, joint.index)
        return posterior._replace(candidates=self._components_of(after.clamp_min(0).to(device)))

    def _keep_labels(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Tensor],
    ) -> tuple[Posterior, Tensor]:
        """Return q(z) at the labels as they are, as :meth:`_counted` does.

        Rows that were not seen yet are assigned to their most probable component.
        """

        def propose(index: Tensor, size: int, device: torch.device) -> Tensor:
            labels = self._known_labels(index, size)
            if bool((labels < 0).any()):
                return self._all_components(index, size, device)
            return self._components_of(labels).to(device)

        joint = self._joint(model, propose, args, kwargs, given)
        labels = self._known_labels(joint.index, joint.size).to(joint.index.device)
        unseen = labels < 0
        if not bool(unseen.any()):
            places = torch.arange(len(joint.log_joint), device=labels.device).unsqueeze(1)
            return self._counted(joint, places.expand(joint.log_joint.shape))
        best = self._cheapest(-joint.log_joint, labels)
        return self._counted(joint, self._components_of(torch.where(unseen, best, labels)))

    def _joint(
        self,
        model: Callable[..., Any],
        propose: Propose,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Tensor],
    ) -> Joint:
        """Return the log joints; read on the way how many rows a cluster needs."""
        reader = MinimumRowsMessenger(self._known_structure())
        joint = log_joint(reader(model), self._known_structure(), propose, args, kwargs, given)
        self._min_rows = reader.rows
        return joint

    def _assign(
        self, joint: Joint, gains: LeaveOneOutGains | None, before: Tensor, fixed: Tensor | None
    ) -> Tensor:
        """Return the best labels (B,) on the CPU; rows that are ``fixed`` keep those ``before``."""
        known = before.to(joint.log_joint.device)
        costs = assignment_costs(joint, self._components_of(known), gains, self.alpha)
        if not self.needs_all_rows:
            best = self._cheapest(costs, known).to("cpu")
            return best if fixed is None else torch.where(fixed, before, best)
        if len(joint.index) != joint.size:
            raise OptionError(
                f"bounds on the clusters' sizes need all {joint.size} rows in one call, not "
                f"{len(joint.index)}: leave batch_size= out"
            )
        free = torch.ones_like(before, dtype=torch.bool) if fixed is None else ~fixed
        if joint.mask is not None:
            free = free & joint.mask.to("cpu")
        return self._assign_within_bounds(costs.to("cpu"), before.clamp_min(0), free)

    def _bounded(self, costs: Tensor, labels: Tensor, free: Tensor) -> Tensor:
        """Return ``labels`` (N,) with those of ``free`` rows set by ``costs`` (K, N)."""
        if not bool(free.any()):
            return labels
        assigned = assign(
            costs.T[free],
            capacity=self.capacity,
            min_size=self.min_size,
            method=self.assignment,
        )
        return labels.masked_scatter(free, assigned)

    def _close_empty_components(self, joint: Joint, moves: Tensor) -> Joint:
        """Exclude empty components that rows will move to: their params fit nothing yet."""
        targets = self._components_of(moves)
        empty = targets[targets >= 0].unique().to(joint.index.device)
        return joint._replace(log_joint=joint.log_joint.index_fill(0, empty, -torch.inf))

    def _counted(self, joint: Joint, places: Tensor) -> tuple[Posterior, Tensor]:
        """Return q at the candidates in ``places`` (1, B), and its log evidence; count losses."""
        posterior, log_evidence = hard_posterior(joint, places)
        if self.training:
            log_density = joint.log_density.expand(joint.log_joint.shape).gather(0, places)
            self._count_losses(posterior.row_weight, -log_evidence, -log_density)
        return posterior, log_evidence

    def posterior_of_new_rows(
        self,
        *args: Any,
        model: Callable[..., Any] | None = None,
        given: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """Return q(z) with each row in the component of largest joint density.

        Bounds on the clusters' sizes do not apply to new rows.
        """
        self._read(args, kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        joint = log_joint(
            model or self.model, self._known_structure(), self._all_components, args, kwargs, values
        )
        return hard_posterior(joint, joint.log_joint.argmax(0, keepdim=True))[0]

    # M-step.

    def record_statistics(self, statistics: Mapping[str, Any], *, learned_weights: bool) -> None:
        """Note that the params now fit the partition; find rows for empty components.

        These rows move in the next step.
        """
        # The loss alone needs no statistics, which may be views of params, and as large.
        self._statistics = None if self.score == "loss" else statistics
        self._labels_fixed, self._moves = False, None
        if self.labels is not None and not self.min_size and not learned_weights:
            self._moves = self._moves_to_empty_components(self.labels)
        self._worst_rows.clear()

    def _rows_for_empty(self, labels: Tensor, worst_rows: Tensor) -> Tensor | None:
        """Return the empty cluster (N,) that each row moves to, -1 for none; None if none moves."""
        return moves_to_empty_clusters(
            labels, worst_rows, self.clusters, min_rows=self._min_rows, capacity=self.capacity
        )

    # What ParallelHardPartition does for each of its restarts.

    def _components_of(self, labels: Tensor) -> Tensor:
        """Return the component numbers (1, B) of ``labels`` (B,); -1 stays."""
        return labels.unsqueeze(0)

    def _cheapest(self, costs: Tensor, labels: Tensor) -> Tensor:
        """Return the labels (B,) of least ``costs`` (C, B)."""
        return cheapest_clusters(costs.unsqueeze(0), labels.unsqueeze(0))[0]

    def _assign_within_bounds(self, costs: Tensor, labels: Tensor, free: Tensor) -> Tensor:
        return self._bounded(costs, labels, free)

    def _fixed_rows(self, before: Tensor, moves: Tensor | None) -> Tensor | None:
        """Return which rows (B,) keep their labels in this step; None for no row."""
        return None if moves is None else moves >= 0

    def _moves_to_empty_components(self, labels: Tensor) -> Tensor | None:
        worst_rows = self._worst_rows.in_order()
        moves = self._rows_for_empty(labels, worst_rows[0]) if worst_rows else None
        if moves is not None:
            self._reseeded += len(moves[moves >= 0].unique())
        return moves

    def _count_moved(self, moved: Tensor) -> None:
        self._moved += int(moved.sum())

    def _count_losses(self, weight: Tensor, loss: Tensor, objective: Tensor) -> None:
        """Add the losses (1, B) with and without the prior of z, by row weight (B,)."""
        self._objective += float(weighted_sums(weight, objective)[0])

    def _labels_for(self, size: int) -> Tensor:
        """Return the labels (N,), to be read or written."""
        if self.labels is None:
            self._check_size(size)
            self.labels = torch.full(self._labels_shape(size), -1, dtype=torch.int32, device="cpu")
        if self.labels.shape[-1] != size:
            raise PartitionError(
                f"this guide holds the labels of {self.labels.shape[-1]} rows, but the data now "
                f"have {size}: make a new guide, or pass index= and size= for minibatches"
            )
        return self.labels

    def _labels_shape(self, size: int) -> tuple[int, ...]:
        return (size,)

    @property
    def _labels_form(self) -> str:
        return "(N,)"

    # Helpers.

    def _gains(self) -> LeaveOneOutGains | None:
        """Return the collector of leave-one-out gains, once a partition has been fitted."""
        if self._statistics is None or self.labels is None:
            return None
        components = self._components_of(self.labels)
        return LeaveOneOutGains(self._known_structure(), self._statistics, components, self.score)

    def _known_labels(self, index: Tensor, size: int) -> Tensor:
        """Return the labels (B,) of the rows ``index``, on the CPU; -1 for rows not seen yet."""
        index = index.to("cpu")
        if self.labels is None:
            shape = self._labels_shape(len(index))
            return torch.full(shape, -1, dtype=torch.int64, device="cpu")
        return self._labels_for(size)[..., index].long()

    def _all_components(self, index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(self.components, device=device).unsqueeze(-1)

    def _check_labels(self, labels: Any) -> None:
        form = self._labels_form
        if not isinstance(labels, Tensor):
            raise PartitionError(
                f"labels must be a tensor of integers {form}, not a {type(labels).__name__}"
            )
        integers = not (labels.is_floating_point() or labels.dtype == torch.bool)
        rows = labels.shape[-1] if labels.dim() else 0
        if labels.shape != self._labels_shape(rows) or not integers:
            raise PartitionError(
                f"labels must be integers {form}, not {labels.dtype} {tuple(labels.shape)}"
            )
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= self.clusters):
            raise PartitionError(f"labels contain numbers outside [0, {self.clusters})")

    def _check_size(self, size: int) -> None:
        clusters = self.clusters
        if clusters > size:
            raise DataError(
                f"{clusters} components for {size} rows: pass more rows, or fewer components"
            )
        if self.capacity is not None and self.capacity * clusters < size:
            raise DataError(
                f"{clusters} clusters of at most capacity={self.capacity} rows cannot hold {size} "
                "rows: raise capacity=, or pass more components"
            )
        if self.min_size * clusters > size:
            raise DataError(
                f"{size} rows are too few for {clusters} clusters of at least "
                f"min_size={self.min_size} rows: lower min_size=, or pass fewer components"
            )

    def get_extra_state(self) -> dict[str, Any] | None:
        """Return the state that ``state_dict`` stores."""
        if self.labels is None:
            return None
        return {"labels": self.labels, "labels_fixed": self._labels_fixed}

    def set_extra_state(self, state: Any) -> None:
        """Restore the state of ``state_dict``.

        :raises PartitionError: for the state of another guide.
        """
        self.labels, self._labels_fixed, self._moves, self._statistics = None, False, None, None
        self._worst_rows.clear()
        if state is None:
            return
        if not {"labels", "labels_fixed"} <= set(state):
            raise PartitionError(
                f"this state holds {sorted(state)}: it is that of another guide, or of another "
                "version, not of a HardPartition; start from labels with set_labels()"
            )
        self.set_labels(state["labels"].clamp_min(0))  # which checks them
        self.labels = state["labels"].to("cpu", torch.int32, copy=True)
        self._labels_fixed = state["labels_fixed"]


def weighted_sums(weight: Tensor, losses: Tensor) -> Tensor:
    """Return the sums (R,) of ``losses`` (R, B) by row ``weight`` (B,), in float64 on the CPU."""
    return torch.where(weight > 0, weight * losses, 0.0).sum(1, dtype=torch.float64).to("cpu")


def hard_posterior(joint: Joint, places: Tensor) -> tuple[Posterior, Tensor]:
    """Return q of weight one on each of the candidates in ``places`` (R, B).

    :returns: the posterior, and the log evidence (R, B) of each of the R partitions.
    """
    log_evidence = joint.log_joint.gather(0, places)
    candidates = joint.candidates.expand(joint.log_joint.shape).gather(0, places)
    if joint.mask is not None:
        log_evidence = torch.where(joint.mask, log_evidence, 0.0)
    posterior = Posterior(
        candidates=candidates,
        log_prob=torch.zeros_like(log_evidence),
        log_evidence=log_evidence.sum(0),
        index=joint.index,
        size=joint.size,
        scale=joint.scale,
        mask=joint.mask,
        evaluations=joint.log_joint.numel(),
        best_first=True,
    )
    return posterior, log_evidence
