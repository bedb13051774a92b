"""What became of a partition of rows: sizes, certainty, what truncation costs, stability, outliers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.reports.agreement import Agreement, agreement
from pyro_mixtures.diagnostics.reports.fitted_rows import FittedRows, fitted_rows, params_of
from pyro_mixtures.diagnostics.reports.neighbor_recall import NeighborRecall, WithGraph, neighbor_recall
from pyro_mixtures.errors import DataError
from pyro_mixtures.infer.fit import Fit
from pyro_mixtures.infer.scoring import posteriors
from pyro_mixtures.options import check_whole

Other = Fit | Tensor  # another fit of the same rows, or its labels (N,)


class Gap(NamedTuple):
    """Exact log evidence less what the guide sums over, of random rows."""

    rows: int
    mean: float  # nats
    largest: float  # nats
    missed: float  # share of rows whose most probable component is not that of the guide


@dataclass(frozen=True)
class PartitionReport:
    """Answer of :func:`partition_report`; prints as a few lines. Tensors lie on the CPU."""

    sizes: Tensor  # (C,) int64, rows of which each component is the most probable
    entropy: float  # of the responsibilities, in nats a row
    part_entropy: Tensor  # (C,) float64, the same for the rows of each component; NaN where it has none
    gap: Gap
    recall: NeighborRecall | None  # None for guides without a neighbour graph
    reseeded: int  # components split off others during the fit, or parts given new rows
    dropped: int  # components whose weight is zero for good
    stability: tuple[Agreement, ...]  # with each of the other fits
    outliers: Tensor  # (K,) int64, rows of lowest evidence, the lowest first
    outlier_evidence: Tensor  # (K,) float64, theirs, in nats

    @property
    def rows(self) -> int:
        """Rows that have a component: masked ones have none."""
        return int(self.sizes.sum())

    @property
    def dead(self) -> Tensor:
        """Components without rows."""
        return (self.sizes == 0).nonzero()[:, 0]

    def __str__(self) -> str:
        return "\n".join(f"{name:<18} {value}" for name, value in self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """What it says, as names and values."""
        live = self.sizes[self.sizes > 0]
        changed = f"{self.reseeded} re-seeded during the fit, {self.dropped} dropped for good"
        lines = [
            ("partition", f"{self.rows} rows in {len(live)} of {len(self.sizes)} components"),
            ("sizes", f"largest {int(live.max())}, median {int(live.median())}, smallest {int(live.min())}"),
            ("dead components", f"{_some(self.dead.tolist())}; {changed}"),
            ("entropy of q", f"{self.entropy:.4g} nats a row"),
            ("truncation gap", _of_gap(self.gap)),
        ]
        if self.recall is not None:
            share, of = f"{self.recall.share:.3f}", f"{self.recall.neighbors} nearest others"
            lines.append(("neighbour graph", f"holds {share} of the {of}, of {self.recall.components} components"))
        for number, found in enumerate(self.stability, 1):
            lines.append((f"against fit {number}", f"adjusted Rand {found.rand:.3f}, matched rows {found.matched:.3f}"))
        worst = zip(self.outliers.tolist(), self.outlier_evidence.tolist(), strict=True)
        lines.append(("lowest evidence", _some([f"row {row} ({value:.4g})" for row, value in worst])))
        return lines


def partition_report(
    fit: Fit,
    *rows: Tensor,
    sample: int = 1000,
    others: Sequence[Other] = (),
    outliers: int = 10,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> PartitionReport:
    """Look at a fitted partition of ``rows``; changes nothing of the fit.

    The truncation gap is the exact log evidence of a row less the (truncated) evidence that the guide's q sums over:
    zero for a full guide, for a hard one what the other components would add. Recall of the neighbour graph is the
    share of the truly nearest components that it holds, by the guide's own measure
    (:func:`~pyro_mixtures.diagnostics.reports.neighbor_recall.neighbor_recall`).

    :param rows: those of the fit, in their order.
    :param sample: rows of which all C components are evaluated, for the gap and as many again for the recall.
    :param others: fits of the same rows from other starts, or their labels (N,), negative for none. Fits of plain
        programs whose params have the same names cannot stand side by side in Pyro's store: give labels of these.
    :param outliers: how many rows of lowest evidence to name.
    :param batch_size: rows a call, as in :func:`~pyro_mixtures.infer.fit`.
    :param generator: picks the sample, on the CPU; torch's global one by default.
    :raises OptionError: for numbers out of range, or a guide of several partitions side by side.
    :raises DataError: when all rows are masked, or labels of others do not fit.

    >>> from pyro_mixtures.guides import TruncatedPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=4, features=2)
    >>> found = fit(EM(model, TruncatedPartition(model, components=4, neighbors=4)), x, progress=False)
    >>> report = partition_report(found, x)
    >>> report.rows, report.recall.share
    (100, 1.0)
    """
    check_whole(sample=sample)
    check_whole(least=0, outliers=outliers)
    return report_of(fit, fitted_rows(fit, *rows, batch_size=batch_size), rows, sample, others, outliers, generator)


def report_of(
    fit: Fit,
    state: FittedRows,
    rows: Sequence[Tensor],
    sample: int,
    others: Sequence[Other],
    outliers: int,
    generator: torch.Generator | None,
) -> PartitionReport:
    """The report from the ``state`` of the rows, see :func:`partition_report`."""
    tensors, known = Batches(rows).tensors, (state.labels >= 0).nonzero()[:, 0]
    if not len(known):
        raise DataError("all rows are masked: no row is left to report on")
    labels, entropy = state.labels[known], state.entropy[known]
    sizes = torch.bincount(labels, minlength=fit.guide.components)
    worst = state.evidence[known].topk(min(outliers, len(known)), largest=False)
    history = fit.history.epochs
    return PartitionReport(
        sizes=sizes,
        entropy=float(entropy.mean()),
        part_entropy=torch.bincount(labels, entropy, minlength=len(sizes)) / sizes,
        gap=_gap(fit, state, tensors, _draw(known, sample, generator)),
        recall=_recall(fit, state, tensors, sample, generator),
        reseeded=sum(epoch.reseeded for epoch in history),
        dropped=history[-1].dropped if history else 0,
        stability=tuple(_against(state.labels, other, tensors) for other in others),
        outliers=known[worst.indices],
        outlier_evidence=worst.values,
    )


def _draw(known: Tensor, sample: int, generator: torch.Generator | None) -> Tensor:
    return known[torch.randperm(len(known), generator=generator, device="cpu")[:sample]].sort().values


def _gap(fit: Fit, state: FittedRows, rows: tuple[Tensor, ...], some: Tensor) -> Gap:
    part = tuple(tensor[some.to(tensor.device)] for tensor in rows)
    with params_of(fit), torch.no_grad():
        found = [p for p, _ in posteriors(fit.model, part, None, fit.guide.site, state.given)]
        exact = torch.cat([p.evidence.double().cpu() for p in found])
        best = torch.cat([p.winner.cpu() for p in found])
    gap, missed = exact - state.evidence[some], best != state.labels[some]
    return Gap(len(some), float(gap.mean()), float(gap.max()), float(missed.double().mean()))


def _recall(
    fit: Fit, state: FittedRows, rows: tuple[Tensor, ...], sample: int, generator: torch.Generator | None
) -> NeighborRecall | None:
    guide = fit.guide
    if not isinstance(guide, WithGraph) or guide.graph is None:
        return None
    with params_of(fit), torch.no_grad():
        d = guide.read(*(tensor[:1] for tensor in rows))
        known = guide.graph.neighbors, state.labels, *rows
        return neighbor_recall(fit.model, d, *known, sample=sample, given=state.given, generator=generator)


def _against(labels: Tensor, other: Other, rows: tuple[Tensor, ...]) -> Agreement:
    return agreement(labels, fitted_rows(other, *rows).labels if isinstance(other, Fit) else other)


def _of_gap(gap: Gap) -> str:
    size = f"mean {gap.mean:.3g}, largest {gap.largest:.3g} nats on {gap.rows} rows"
    return f"{size}; most probable component missed in {gap.missed:.1%}"


def _some(names: list, most: int = 8) -> str:
    """A list cut short."""
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
