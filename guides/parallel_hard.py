"""Hard partitions of several restarts, fitted at the same time as one mixture."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides.assignment_costs import cheapest_clusters
from pyro_mixtures.guides.hard import HardPartition, weighted_sums
from pyro_mixtures.infer.parallel_guide import ParallelGuide, RestartCounts
from pyro_mixtures.poutine import Joint, Posterior
from pyro_mixtures.poutine.joint import Propose

# Tolerance for the sum of a restart's weights: they are differences of rounded log joints.
_ROUNDING = 0.01


class ParallelHardPartition(HardPartition, ParallelGuide):
    """R hard partitions, each into K clusters by its own components.

    The model has R K components: the first K belong to the first restart, and so on. One pass over
    the rows is one step of R fits; see :func:`~pyro_mixtures.infer.fit_restarts`.

    :param components: R K, the number of the model's components.
    :param restarts: R.
    :raises OptionError: when ``restarts`` does not divide ``components``, or another option of
        :class:`HardPartition` has an impossible value.

    ``labels`` are (R, N) in [0, K), and ``sizes`` are (R, K). Every row is in one cluster of each
    restart, with weight one. The weights of a restart's components must sum to 1 / R. They
    count R times, so that each restart has weights of sum one. Losses of EM, ``objective``,
    ``moved`` and ``reseeded`` are sums over the restarts; ``restart_counts`` has those of each.
    ``rows_won`` is that of the first restart. Stock SVI averages over the restarts.

    >>> import torch
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import KMeans
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = KMeans(components=4, features=2)
    >>> guide = ParallelHardPartition(model, components=4, restarts=2)
    >>> guide.set_labels(torch.stack([torch.arange(100) // 50, torch.arange(100) % 2]))
    >>> loss = EM(model, guide).step(x)
    >>> guide.sizes.tolist()
    [[50, 50], [50, 50]]
    """

    restarts: int = 1  # R; one while the base classes are initialized

    def __init__(
        self, model: Callable[..., Any], *, components: int, restarts: int, **options: Any
    ):
        if restarts < 1 or components % restarts:
            raise OptionError(
                f"restarts={restarts} does not divide components={components}: give the model and "
                "the guide K * restarts components"
            )
        super().__init__(model, components=components, **options)
        self.restarts = restarts
        self._held = torch.zeros(restarts, dtype=torch.bool, device="cpu")  # see hold()
        self.reset_counts()

    @property
    def clusters(self) -> int:
        """K, the number of clusters of each restart."""
        return self.components // self.restarts

    @property
    def sizes(self) -> Tensor:
        """Rows of each cluster, (R, K) int64 on the CPU."""
        return super().sizes.reshape(self.restarts, self.clusters)

    @property
    def objective(self) -> float:
        """Sum of the rows' losses over all restarts, in nats, without the prior of z."""
        return float(self.restart_counts.objective.sum())

    @property
    def moved(self) -> int:
        """Rows that changed their component, over all restarts."""
        return int(self.restart_counts.moved.sum())

    @property
    def reseeded(self) -> int:
        """Empty components that were given rows, over all restarts."""
        return int(self.restart_counts.reseeded.sum())

    def reset_counts(self) -> None:
        """Reset the counts at the start of an epoch."""
        super().reset_counts()
        self.restart_counts = RestartCounts.zeros(self.restarts)

    def set_labels(self, labels: Tensor) -> None:
        """Start from ``labels`` (R, N), integers in [0, K), as :meth:`HardPartition.set_labels`."""
        super().set_labels(labels)
        self._held = torch.zeros_like(self._held)

    def hold(self, restarts: Tensor) -> None:
        """Keep the labels of the restarts marked True (R,) until new labels are set."""
        self._held = restarts.to("cpu", torch.bool)
        if self._moves is not None:
            self._moves[self._held] = -1

    def losses(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the ELBO (R,) of each partition as it stands, in nats; change nothing."""
        self._read(args, kwargs)
        training = self.training
        self.eval()
        try:
            given = self.latent_values(*args, **kwargs)
            posterior, log_evidence = self._keep_labels(self.model, args, kwargs, given)
        finally:
            self.train(training)
        return weighted_sums(posterior.row_weight, -log_evidence)

    def posterior_of_new_rows(
        self,
        *args: Any,
        model: Callable[..., Any] | None = None,
        given: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """Raise an error: new rows belong to no single mixture.

        :raises OptionError: always, since R restarts are R mixtures.
        """
        raise OptionError(
            f"the guide holds {self.restarts} restarts, which are different mixtures: score rows "
            "with the model and the guide of one restart, such as RestartsResult.best"
        )

    def _joint(
        self,
        model: Callable[..., Any],
        propose: Propose,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Tensor],
    ) -> Joint:
        joint = super()._joint(model, propose, args, kwargs, given)
        if len(joint.log_joint) == self.components:
            log_weights = joint.log_joint - joint.log_density
            seen = log_weights if joint.mask is None else log_weights[:, joint.mask]
            self._check_weights(seen[:, :1])
        return joint._replace(log_joint=joint.log_joint + math.log(self.restarts))

    def _check_weights(self, log_weights: Tensor) -> None:
        """Refuse weights (R K, B) that would couple the restarts."""
        totals = self._of_each(log_weights).logsumexp(1).exp() * self.restarts
        off = (totals.isfinite() & ((totals - 1).abs() > _ROUNDING)).nonzero().tolist()
        for restart, row in off[:1]:
            raise OptionError(
                f"the weights of restart {restart} sum to "
                f"{float(totals[restart, row]) / self.restarts:.3g}, not 1 / {self.restarts}: "
                "parallel restarts need weights that are equal and constant, or params of the "
                "closed-form M-step (no gate, no empty='drop')"
            )

    def _of_each(self, table: Tensor) -> Tensor:
        """Reshape (R K, B) to (R, K, B)."""
        return table.reshape(self.restarts, self.clusters, table.shape[-1])

    # What HardPartition does for one partition.

    def _components_of(self, labels: Tensor) -> Tensor:
        """Return the component numbers (R, B) of ``labels`` (R, B); -1 stays."""
        first = torch.arange(0, self.components, self.clusters, device=labels.device)
        return torch.where(labels >= 0, labels + first.unsqueeze(1), -1)

    def _cheapest(self, costs: Tensor, labels: Tensor) -> Tensor:
        return cheapest_clusters(self._of_each(costs), labels)

    def _assign_within_bounds(self, costs: Tensor, labels: Tensor, free: Tensor) -> Tensor:
        each = zip(self._of_each(costs), labels, free, strict=True)
        return torch.stack([self._bounded(*restart) for restart in each])

    def _fixed_rows(self, before: Tensor, moves: Tensor | None) -> Tensor | None:
        held = self._held.unsqueeze(1) & (before >= 0)
        return held if moves is None else held | (moves >= 0)

    def _moves_to_empty_components(self, labels: Tensor) -> Tensor | None:
        all_moves = torch.full_like(labels, -1)
        for restart, worst_rows in enumerate(self._worst_rows.in_order()):
            moves = self._rows_for_empty(labels[restart], worst_rows)
            if moves is not None and not self._held[restart]:
                all_moves[restart] = moves
                self.restart_counts.reseeded[restart] += len(moves[moves >= 0].unique())
        return all_moves if bool((all_moves >= 0).any()) else None

    def _count_moved(self, moved: Tensor) -> None:
        self.restart_counts.moved += moved.sum(1)

    def _count_losses(self, weight: Tensor, loss: Tensor, objective: Tensor) -> None:
        self.restart_counts.loss += weighted_sums(weight, loss)
        self.restart_counts.objective += weighted_sums(weight, objective)

    def _labels_shape(self, size: int) -> tuple[int, ...]:
        return (self.restarts, size)

    @property
    def _labels_form(self) -> str:
        return f"({self.restarts}, N)"


def hard_partition(
    model: Callable[..., Any], *, components: int, restarts: int = 1, **options: Any
) -> HardPartition:
    """Return a :class:`HardPartition` for one restart, a :class:`ParallelHardPartition` for more.

    It is what the ``build(restarts=1)`` of :func:`~pyro_mixtures.infer.fit_restarts` needs.

    :param components: K * ``restarts``, the number of the model's components.
    :param options: those of :class:`HardPartition`.

    >>> from pyro_mixtures.models import KMeans
    >>> hard_partition(KMeans(components=6, features=2), components=6, restarts=3).clusters
    2
    """
    if restarts == 1:
        return HardPartition(model, components=components, **options)
    return ParallelHardPartition(model, components=components, restarts=restarts, **options)
