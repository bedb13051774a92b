"""Hard q(z): every row belongs to one component, under caps on the parts' sizes if wanted."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.guides.hard_blocks import Blocks, Tally
from pyro_mixtures.guides.hard_costs import SCORES, FewestRows, Gains, paid
from pyro_mixtures.infer.labelled_guide import ParallelGuide
from pyro_mixtures.partition.assignment import METHODS, assign
from pyro_mixtures.partition.reseeding import WorstRows, rows_for_empty
from pyro_mixtures.poutine import Joint, Posterior, log_joint
from pyro_mixtures.poutine.joint import Propose


class HardPartition(ParallelGuide):
    r"""A partition of the rows: q(z) is one component a row, and the ELBO is minus the partition's objective.

    Over a program whose components are likelihoods, or pseudo-likelihoods exp(-loss), :class:`EM`
    with this guide alternates two exact minimisations of :math:`F(S) = \sum_k \min_\theta \sum_{i
    \in S_k} \ell(\theta; i)`: Lloyd's algorithm for k-means, classification EM for Gaussian
    mixtures, and their kin for regressions and classifiers. With constant, equal weights the prior
    of z leaves F as it is; weights that are params are part of it.

    :param score: what a row pays for a component. ``"loss"``: its loss there. ``"leave_one_out"``:
        in its own part ``alpha`` times what it adds to that part's minimal loss, elsewhere its
        loss, which takes account of the pull that a row has on its own part. ``"modular_bound"``:
        the literal modular bound, for study alone: elsewhere the loss of the row by itself over
        ``alpha``, which does not depend on the part.
    :param alpha: factor of the leave-one-out gain, in (0, 1].
    :param capacity: most rows of a part; ``min_size``: fewest. Both need all rows in one call.
    :param assignment: under such bounds ``"optimal"`` (a transportation problem) or ``"greedy"``
        filling, which may raise the objective.
    :param blocks: R partitions side by side, each into K = C / R parts by components of its own:
        the model's first K for the first block, and so on. One pass over the rows is a step of R
        fits; see ``fit_restarts``.
    :raises OptionError: when an option has an impossible value.

    ``objective`` is F after a pass: the losses of the rows where they are, without the prior of z.
    Rows stay where they are where nothing is better. Masked rows have no part. A part that becomes
    empty takes the worst rows of the part that has the worst one, half of it and ``capacity`` at
    most, which cannot raise the objective: where fewer would move than the family needs to be
    fitted, or the other parts have no room, it stays empty. (``min_size`` keeps parts from becoming
    so. Where weights are learned, m of n rows that get a part of their own raise the prior's share
    of the objective, :math:`-\sum_k n_k \log(n_k / N)`, by
    :math:`n \log n - m \log m - (n - m) \log(n - m) > 0`, and all that is known of their losses is
    that they do not rise: there parts stay empty.)

    With several blocks ``labels`` are (R, N), from 0 to K - 1 in each, ``sizes`` (R, K), and every
    row is in R parts with weight one each. A block's weights are R times the model's, which each
    have 1 / R of its sum: constant ones must, learned ones do. Losses of EM, ``objective``,
    ``moved`` and ``reseeded`` are sums over blocks, ``tally`` has those of each; ``rows_won``
    counts for the first. Stock SVI averages over blocks.

    Sangani et al., "Discrete Continuous Optimization Framework for Simultaneous Clustering and
    Training in Mixture Models", ICML 2023; the leave-one-out rule and its closed forms are derived
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
        model: Callable,
        *,
        components: int,
        score: str = "loss",
        alpha: float = 1.0,
        capacity: int | None = None,
        min_size: int = 0,
        assignment: str = "optimal",
        blocks: int = 1,
        site: str = "z",
        global_guide: Callable | None = None,
    ):
        super().__init__(model, components=components, site=site, global_guide=global_guide)
        if blocks < 1 or components % blocks:
            raise OptionError(
                f"blocks={blocks} of equal size do not make up components={components}"
            )
        if score not in SCORES:
            raise OptionError(f"unknown score {score!r}; choose one of {SCORES}")
        if assignment not in METHODS:
            raise OptionError(f"unknown assignment {assignment!r}; choose one of {METHODS}")
        if not 0 < alpha <= 1:
            raise OptionError(f"alpha={alpha} must lie in (0, 1]")
        if min_size < 0 or (capacity is not None and capacity < max(1, min_size)):
            raise OptionError(
                f"capacity={capacity} and min_size={min_size}: give 0 <= min_size <= capacity"
            )
        self.blocks, self._blocks, self.tally = (
            blocks,
            Blocks(blocks, components // blocks),
            Tally.zero(blocks),
        )
        self.score, self.alpha, self.capacity, self.min_size, self.assignment = (
            score,
            alpha,
            capacity,
            min_size,
            assignment,
        )
        self.labels: Tensor | None = (
            None  # (N,) int32, or (R, N) in R blocks; -1 where a row was not seen yet
        )
        self._held = torch.zeros(blocks, dtype=torch.bool, device="cpu")  # blocks whose rows stay
        self._planted = False  # whether the labels are to be fitted before they are changed
        self._moves: Tensor | None = (
            None  # (R, N) int32, empty parts that rows are to be moved to, -1 elsewhere
        )
        self._worst = WorstRows(keep=components)
        self._fewest = 1  # rows that a part needs to be fitted
        self._statistics: Mapping[str, Any] | None = None  # of the partition that the params fit

    @property
    def sizes(self) -> Tensor:
        """Rows of each part (C,), in several blocks (R, K)."""
        shape = (self.components,) if self.blocks == 1 else (self.blocks, self._blocks.parts)
        if self.labels is None:
            return torch.zeros(shape, dtype=torch.int64, device="cpu")
        labels = self.labels.reshape(self.blocks, -1)
        parts = self._blocks.numbered(labels)[labels >= 0]
        return torch.bincount(parts.long(), minlength=self.components).reshape(shape)

    def epoch_details(self) -> dict[str, Any]:
        sizes = tuple(self.sizes.flatten().tolist())
        return {"moved": self.moved, "objective": self.objective, "sizes": sizes}

    @property
    def needs_all_rows(self) -> bool:
        return self.capacity is not None or self.min_size > 0

    def set_labels(self, labels: Tensor) -> None:
        """Start from ``labels`` (N,), or (R, N): the next EM step fits the parts as they are, before any row moves.

        Gradient steps of stock SVI fit them until :meth:`release`.
        """
        shape = "(N,)" if self.blocks == 1 else f"({self.blocks}, N)"
        if not isinstance(labels, Tensor):
            raise PartitionError(
                f"labels must be a tensor of integers {shape}, not a {type(labels).__name__}"
            )
        fits = (
            labels.dim() == 1
            if self.blocks == 1
            else labels.dim() == 2 and len(labels) == self.blocks
        )
        if not fits or labels.is_floating_point() or labels.dtype == torch.bool:
            raise PartitionError(
                f"labels must be integers {shape}, not {labels.dtype} {tuple(labels.shape)}"
            )
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= self._blocks.parts):
            raise PartitionError(f"labels hold numbers outside [0, {self._blocks.parts})")
        self.labels, self._planted = labels.to("cpu", torch.int32, copy=True).contiguous(), True
        self._moves = self._statistics = None
        self._held = torch.zeros_like(self._held)

    def release(self) -> None:
        """Let planted rows move from now on."""
        self._planted = False

    def hold(self, blocks: Tensor) -> None:
        """Leave the rows of the ``blocks`` marked True (R,) where they are, until labels are planted."""
        self._held = blocks.to("cpu", torch.bool)
        if self._moves is not None:
            self._moves[self._held] = -1

    def record_statistics(self, statistics: Mapping[str, Any], *, learned_weights: bool) -> None:
        """Told by EM that the params now fit the partition; finds rows for empty parts, moved in the next step."""
        # Scores that look at losses alone need none: they may be views of params, and as large.
        self._statistics = None if self.score == "loss" else statistics
        self._planted, self._moves = False, None
        if self.labels is not None and not self.min_size and not learned_weights:
            self._reseed(self.labels.reshape(self.blocks, -1))
        self._worst.clear()

    def _reseed(self, labels: Tensor) -> None:
        """Promise rows to the empty parts of each block."""
        for block, worst in enumerate(self._worst.in_order()):
            moves = rows_for_empty(
                labels[block],
                worst,
                self._blocks.parts,
                fewest=self._fewest,
                capacity=self.capacity,
            )
            if moves is None or self._held[block]:
                continue
            if self._moves is None:
                self._moves = torch.full_like(labels, -1)
            self._moves[block] = moves
            self.tally.reseeded[block] += len(moves[moves >= 0].unique())

    def _e_step(
        self, model: Callable, args: tuple, kwargs: Mapping[str, Any], given: Mapping[str, Tensor]
    ) -> Posterior:
        if not self.training or self._planted:
            return self._as_it_stands(model, args, kwargs, given)[0]
        gains = self._gains()
        handled = model if gains is None else gains.watch(model)
        joint = self._joint(handled, self._all_components, args, kwargs, given)
        labels, rows = self._labels_for(joint.size), joint.index.to("cpu")
        before = labels[:, rows].long()
        moves = None if self._moves is None else self._moves[:, rows].long()
        stay = self._held.unsqueeze(1) & (before >= 0)
        if moves is not None:  # nobody else joins an empty part: its params fit nothing
            empty = self._blocks.numbered(moves)[moves >= 0].unique().to(joint.index.device)
            joint = joint._replace(log_joint=joint.log_joint.index_fill(0, empty, -torch.inf))
            stay = stay | (moves >= 0)
        best = now = self._assign(joint, gains, before, stay)
        if (
            moves is not None
        ):  # such rows count where they were: they cost no more where they are fitted by themselves
            now = torch.where(moves >= 0, moves, best)
        if joint.mask is not None:  # such rows belong to no part
            now = torch.where(joint.mask.to("cpu"), now, before)
        labels[:, rows] = now.to(labels.dtype)
        self.tally.moved += (now != before).sum(1)
        posterior, log_evidence = self._counted(joint, self._slots(best, joint))
        self._worst.add(
            torch.where(posterior.row_weight > 0, -log_evidence, -torch.inf), joint.index
        )
        return posterior._replace(candidates=self._slots(now.clamp_min(0), joint))

    def _joint(
        self, model: Callable, propose: Propose, args: tuple, kwargs: Mapping[str, Any], given: Any
    ) -> Joint:
        """Log joints of rows and components, every block's weights relative to their sum, 1 / R."""
        reader = FewestRows(self._known_structure())
        joint = log_joint(reader(model), self._known_structure(), propose, args, kwargs, given)
        self._fewest = reader.rows
        if self.blocks == 1:
            return joint
        if len(joint.log_joint) == self.components:
            self._blocks.check_shares(_seen(joint.log_joint - joint.log_density, joint.mask)[:, :1])
        return joint._replace(log_joint=joint.log_joint + math.log(self.blocks))

    def _slots(self, local: Tensor, joint: Joint) -> Tensor:
        """Parts (R, B) of the blocks as numbers among all components, where the rows are."""
        return self._blocks.numbered(local.to(joint.index.device))

    def _gains(self) -> Gains | None:
        """Collects what rows add to their parts, where the score wants it and a partition has been fitted."""
        if self._statistics is None or self.labels is None:
            return None
        labels = self.labels.reshape(self.blocks, -1)
        return Gains(self._known_structure(), self._statistics, labels, self._blocks, self.score)

    def _assign(self, joint: Joint, gains: Gains | None, before: Tensor, stay: Tensor) -> Tensor:
        """The rows' parts (R, B), on the CPU: those ``before`` of rows that ``stay`` (R, B)."""
        known = before.to(joint.log_joint.device)
        cost = paid(joint, known, self._blocks, gains, self.alpha)
        if not self.needs_all_rows:
            return torch.where(stay, before, self._blocks.cheapest(cost, known).to("cpu"))
        if len(joint.index) != joint.size:
            raise OptionError(
                f"bounds on the parts' sizes need all {joint.size} rows in one call, not {len(joint.index)}: leave "
                "batch_size= out"
            )
        best = before.clamp_min(0)
        free = ~stay if joint.mask is None else joint.mask.to("cpu") & ~stay
        for block, table in enumerate(self._blocks.each(cost.to("cpu"))):
            some = free[block]
            if bool(some.any()):
                rows = assign(
                    table.T[some],
                    capacity=self.capacity,
                    min_size=self.min_size,
                    method=self.assignment,
                )
                best[block, some] = rows
        return best

    def _as_it_stands(
        self, model: Callable, args: tuple, kwargs: Mapping[str, Any], given: Mapping[str, Tensor]
    ) -> tuple[Posterior, Tensor]:
        """The rows where they are; those that nobody has seen where they fit best. See :meth:`_counted`."""

        def propose(index: Tensor, size: int, device: torch.device) -> Tensor:
            known = self._known(index, size)
            return (
                self._all_components(index, size, device)
                if bool((known < 0).any())
                else self._blocks.numbered(known).to(device)
            )

        joint = self._joint(model, propose, args, kwargs, given)
        known = self._known(joint.index, joint.size).to(joint.index.device)
        new = known < 0
        if not bool(new.any()):
            slots = torch.arange(self.blocks, device=known.device).unsqueeze(1)
            return self._counted(joint, slots.expand(known.shape))
        best = self._blocks.each(joint.log_joint).argmax(1)
        return self._counted(joint, self._slots(torch.where(new, best, known), joint))

    def _counted(self, joint: Joint, slots: Tensor) -> tuple[Posterior, Tensor]:
        """q on the candidates in places ``slots`` (R, B), and every block's evidence (R, B); added to the tally."""
        posterior, log_evidence = _posterior(joint, slots)
        if self.training:
            log_density = joint.log_density.expand(joint.log_joint.shape).gather(0, slots)
            weight = posterior.row_weight
            self.tally.loss += _total(weight, -log_evidence)
            self.tally.objective += _total(weight, -log_density)
        return posterior, log_evidence

    def _known(self, index: Tensor, size: int) -> Tensor:
        """Labels (R, B) of the rows ``index``, on the CPU, -1 for unseen ones; where there are none, none are made."""
        index = index.to("cpu")
        if self.labels is None:
            return torch.full((self.blocks, len(index)), -1, dtype=torch.int64, device="cpu")
        return self._labels_for(size)[:, index].long()

    def losses(self, *args, **kwargs) -> Tensor:
        """Minus the ELBO (R,), in nats, of every block's partition of the rows as it stands; changes nothing."""
        self._read(args, kwargs)
        training = self.training
        self.eval()
        try:
            given = self.latent_values(*args, **kwargs)
            posterior, log_evidence = self._as_it_stands(self.model, args, kwargs, given)
        finally:
            self.train(training)
        return _total(posterior.row_weight, -log_evidence)

    def posterior_of_new_rows(
        self,
        *args,
        model: Callable | None = None,
        given: Mapping[str, Tensor] | None = None,
        **kwargs,
    ) -> Posterior:
        """Each row in the component of largest joint density, whatever the parts' sizes.

        :raises OptionError: of several blocks, which are as many mixtures.
        """
        if self.blocks > 1:
            raise OptionError(
                f"blocks={self.blocks} are as many mixtures: score rows by a model and guide of one block"
            )
        self._read(args, kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        joint = log_joint(
            model or self.model, self._known_structure(), self._all_components, args, kwargs, values
        )
        return _posterior(joint, joint.log_joint.argmax(0, keepdim=True))[0]

    def reset_counts(self) -> None:
        super().reset_counts()
        self.tally = Tally.zero(self.blocks)

    @property
    def objective(self) -> float:
        return float(self.tally.objective.sum())

    @property
    def moved(self) -> int:
        return int(self.tally.moved.sum())

    @property
    def reseeded(self) -> int:
        return int(self.tally.reseeded.sum())

    def get_extra_state(self):
        return None if self.labels is None else {"labels": self.labels, "planted": self._planted}

    def set_extra_state(self, state) -> None:
        self.labels, self._planted, self._moves, self._statistics = None, False, None, None
        self._worst.clear()
        if state is None:
            return
        if "labels" not in state:
            raise PartitionError(
                f"this is the state {sorted(state)} of another guide, not that of a HardPartition"
            )
        self.set_labels(state["labels"].clamp_min(0))
        self.labels, self._planted = (
            state["labels"].to("cpu", torch.int32, copy=True),
            state["planted"],
        )

    def _all_components(self, index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(self.components, device=device).unsqueeze(-1)

    def _labels_for(self, size: int) -> Tensor:
        """The labels (R, N), to be read or written."""
        if self.labels is None:
            self._check_size(size)
            shape = (size,) if self.blocks == 1 else (self.blocks, size)
            self.labels = torch.full(shape, -1, dtype=torch.int32, device="cpu")
        if self.labels.shape[-1] != size:
            raise PartitionError(
                f"this guide holds the labels of {self.labels.shape[-1]} rows, but the data now have {size}: make a "
                "new guide, or pass index= and size= for minibatches"
            )
        return self.labels.reshape(self.blocks, size)

    def _check_size(self, size: int) -> None:
        parts = self._blocks.parts
        if parts > size:
            raise DataError(
                f"{parts} components for {size} rows: give more rows, or fewer components"
            )
        if self.capacity is not None and self.capacity * parts < size:
            raise DataError(
                f"{parts} parts of at most capacity={self.capacity} rows do not hold {size} rows"
            )
        if self.min_size * parts > size:
            raise DataError(
                f"{size} rows are too few for {parts} parts of at least min_size={self.min_size}"
            )


def _seen(table: Tensor, mask: Tensor | None) -> Tensor:
    """The columns of ``table`` (C, B) that are not masked."""
    return table if mask is None else table[:, mask]


def _total(weight: Tensor, loss: Tensor) -> Tensor:
    """Sums (R,) of ``loss`` (R, B) by weight, on the CPU."""
    return torch.where(weight > 0, weight * loss, 0.0).sum(1, dtype=torch.float64).to("cpu")


def _posterior(joint: Joint, slots: Tensor) -> tuple[Posterior, Tensor]:
    """q of weight one on each of the candidates in places ``slots`` (R, B), and their evidence (R, B)."""
    log_evidence = joint.log_joint.gather(0, slots)
    candidates = joint.candidates.expand(joint.log_joint.shape).gather(0, slots)
    if joint.mask is not None:
        log_evidence = torch.where(joint.mask, log_evidence, 0.0)
    given = (joint.index, joint.size, joint.scale, joint.mask)
    log_prob, evaluations = torch.zeros_like(log_evidence), joint.log_joint.numel()
    return Posterior(
        candidates, log_prob, log_evidence.sum(0), *given, evaluations, best_first=True
    ), log_evidence
