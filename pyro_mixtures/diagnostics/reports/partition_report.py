"""What became of a partition of rows: sizes, certainty, what truncation costs, stability, outliers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.reports.agreement import Agreement, agreement
from pyro_mixtures.diagnostics.reports.fitted_rows import FittedRows, fitted_rows, params_of
from pyro_mixtures.diagnostics.reports.neighbor_recall import (
    NeighborRecall,
    WithGraph,
    neighbor_recall,
)
from pyro_mixtures.diagnostics.reports.point import looking
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import Posterior

Other = (
    Fit | Tensor | np.ndarray | Sequence[int]
)  # another fit of the same rows, or its labels (N,)
# Roundings, of the numbers that a log joint is the sum of, within which two components are equally
# probable.
_ROUNDINGS = 64


class Gap(NamedTuple):
    """Exact log evidence less what the guide sums over, of random rows."""

    rows: int
    mean: float  # nats
    largest: float  # nats
    missed: float  # share of rows whose most probable component is not that of the guide, nor as probable as that


@dataclass(frozen=True)
class PartitionReport:
    """Answer of :func:`partition_report`; prints as a few lines. Tensors lie on the CPU."""

    sizes: Tensor  # (C,) int64, rows of which each component is the most probable
    entropy: float  # of the responsibilities, in nats a row
    part_entropy: (
        Tensor  # (C,) float64, the same for the rows of each component; NaN where it has none
    )
    gap: Gap
    recall: NeighborRecall | None  # None for guides without a neighbour graph
    reseeded: int  # components split off others during the fit, or parts given new rows
    dropped: int  # components whose weight is zero for good
    stability: tuple[Agreement, ...]  # with each of the other fits
    outliers: Tensor  # (K,) int64, rows of lowest evidence, the lowest first
    outlier_evidence: Tensor  # (K,) float64, theirs, in nats
    latents: str  # which values the model's other latent sites have in all this; empty where there are none

    @property
    def rows(self) -> int:
        """Rows that have a component: masked ones have none."""
        return int(self.sizes.sum())

    @property
    def empty(self) -> Tensor:
        """Components without rows."""
        return (self.sizes == 0).nonzero()[:, 0]

    def __str__(self) -> str:
        return "\n".join(f"{name:<18} {value}" for name, value in self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """What it says, as names and values."""
        live = self.sizes[self.sizes > 0].numpy()
        changed = f"{self.reseeded} re-seeded during the fit, {self.dropped} dropped for good"
        lines = [
            ("partition", f"{self.rows} rows in {len(live)} of {len(self.sizes)} components"),
            (
                "sizes",
                f"largest {live.max()}, median {np.median(live):.10g}, smallest {live.min()}",
            ),
            (
                "dead components",
                f"{'number ' * bool(len(self.empty))}{_some(self.empty.tolist())}; {changed}",
            ),
            ("entropy of q", f"{self.entropy:.4g} nats a row"),
            ("truncation gap", _of_gap(self.gap)),
        ]
        if self.latents:
            lines.insert(1, ("latent sites", self.latents))
        if self.recall is not None:
            share, of = f"{self.recall.share:.3f}", f"{self.recall.neighbors} nearest others"
            lines.append(
                (
                    "neighbour graph",
                    f"holds {share} of the {of}, of {self.recall.components} components",
                )
            )
        for number, found in enumerate(self.stability, 1):
            lines.append(
                (
                    f"against fit {number}",
                    f"adjusted Rand {found.rand:.3f}, matched rows {found.matched:.3f}",
                )
            )
        worst = zip(self.outliers.tolist(), self.outlier_evidence.tolist(), strict=True)
        lines.append(
            ("lowest evidence", _some([f"row {row} ({value:.4g})" for row, value in worst]))
        )
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
    """Look at a fitted partition of ``rows``; changes nothing of the fit, and no random state but ``generator``.

    The truncation gap is the exact log evidence of a row less the (truncated) evidence that the
    guide's q sums over: zero for a full guide, for a hard one what the other components would add.
    Recall of the neighbour graph is the share of the truly nearest components that it holds, by the
    guide's own measure
    (:func:`~pyro_mixtures.diagnostics.reports.neighbor_recall.neighbor_recall`).

    All of it holds at one value of each of the model's other latent sites: the median of the guide
    beside where Pyro's autoguide has one, otherwise one draw of it. The report's ``latents`` says
    which.

    :param rows: those of the fit, in their order.
    :param sample: rows of which all C components are evaluated, for the gap and as many again for
        the recall.
    :param others: fits of the same rows from other starts, or their labels (N,), negative for none.
        Fits of plain programs whose params have the same names cannot stand side by side in Pyro's
        store: give labels of these.
    :param outliers: how many rows of lowest evidence to name.
    :param batch_size: rows a call, as in :func:`~pyro_mixtures.infer.em.fit`.
    :param generator: the only source of randomness, on the CPU: picks the sample, and the draw of
        other latent sites. By default a copy of torch's global one, which stays as it is.
    :raises OptionError: for numbers out of range, what is no fit, or a guide of several partitions
        side by side.
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
    with looking(generator) as source:
        return report_of(
            fit,
            rows,
            source,
            sample=sample,
            others=others,
            outliers=outliers,
            batch_size=batch_size,
        )[1]


def report_of(
    fit: Fit,
    rows: Sequence[Tensor],
    generator: torch.Generator,
    *,
    sample: int,
    others: Sequence[Other],
    outliers: int,
    batch_size: int | None,
) -> tuple[FittedRows, PartitionReport]:
    """The rows under q(z), and the report on them; see :func:`partition_report`."""
    check_whole(sample=sample)
    check_whole(minimum=0, outliers=outliers)
    _check_fits(fit, others)
    seed = int(
        torch.randint(2**31, (), generator=generator, device="cpu")
    )  # one for all fits: a fit equals itself
    tensors = Batches(rows).tensors
    state = fitted_rows(fit, *tensors, batch_size=batch_size, seed=seed)
    stability = tuple(_against(state.labels, other, tensors, batch_size, seed) for other in others)
    return state, _found(fit, state, tensors, stability, sample, outliers, generator)


def _found(
    fit: Fit,
    state: FittedRows,
    tensors: tuple[Tensor, ...],
    stability: tuple[Agreement, ...],
    sample: int,
    outliers: int,
    generator: torch.Generator,
) -> PartitionReport:
    known = state.known
    if not len(known):
        raise DataError("all rows are masked: no row is left to report on")
    labels, entropy = state.labels[known], state.entropy[known]
    sizes = torch.bincount(labels, minlength=fit.guide.components)
    worst = state.log_evidence[known].topk(min(outliers, len(known)), largest=False)
    history = fit.history.epochs
    return PartitionReport(
        sizes=sizes,
        entropy=float(entropy.mean()),
        part_entropy=torch.bincount(labels, entropy, minlength=len(sizes)) / sizes,
        gap=_gap(fit, state, tensors, _draw(known, sample, generator)),
        recall=_recall(fit, state, tensors, sample, generator),
        reseeded=sum(epoch.reseeded for epoch in history),
        dropped=history[-1].dropped if history else 0,
        stability=stability,
        outliers=known[worst.indices],
        outlier_evidence=worst.values,
        latents=str(state.point),
    )


def _check_fits(fit: Any, others: Any) -> None:
    if not isinstance(fit, Fit):
        raise OptionError(
            f"fit is of type {type(fit).__name__}: give a Fit, as fit() returns it, or a result's .best"
        )
    if not isinstance(others, Sequence):
        raise OptionError(
            f"others is of type {type(others).__name__}: give a list of fits or labels"
        )
    for number, other in enumerate(others):
        if not isinstance(other, (Fit, Tensor, np.ndarray, Sequence)):
            kind = type(other).__name__
            raise OptionError(
                f"others[{number}] is of type {kind}: give a Fit, a result's .best, or labels (N,)"
            )


def _draw(known: Tensor, sample: int, generator: torch.Generator) -> Tensor:
    return (
        known[torch.randperm(len(known), generator=generator, device="cpu")[:sample]].sort().values
    )


def _gap(fit: Fit, state: FittedRows, rows: tuple[Tensor, ...], some: Tensor) -> Gap:
    part, labels = tuple(tensor[some.to(tensor.device)] for tensor in rows), state.labels[some]
    exact, missed = [], []
    with params_of(fit), torch.no_grad():
        for found, _ in posteriors(fit.model, part, None, fit.guide.site, state.point.values):
            held, labels = labels.tensor_split([len(found.index)])
            exact.append(found.log_evidence.double().cpu())
            missed.append(_missed(found, held))
    gap = torch.cat(exact) - state.log_evidence[some]
    return Gap(
        len(some), float(gap.mean()), float(gap.max()), float(torch.cat(missed).double().mean())
    )


def _missed(exact: Posterior, labels: Tensor) -> Tensor:
    """Rows (B,) of which another component than ``labels`` is more probable, by more than rounding."""
    log_prob = exact.log_prob
    lost = log_prob.max(0).values - log_prob.gather(0, labels.to(log_prob.device).unsqueeze(0))[0]
    rounding = _ROUNDINGS * torch.finfo(log_prob.dtype).eps * (1 + exact.log_evidence.abs())
    return (lost > rounding).cpu()


def _recall(
    fit: Fit, state: FittedRows, rows: tuple[Tensor, ...], sample: int, generator: torch.Generator
) -> NeighborRecall | None:
    guide = fit.guide
    if not isinstance(guide, WithGraph) or guide.graph is None:
        return None
    with params_of(fit), torch.no_grad():
        d = guide.read(*(tensor[:1] for tensor in rows))
        known = guide.graph.neighbors, state.labels, *rows
        return neighbor_recall(
            fit.model, d, *known, sample=sample, given=state.point.values, generator=generator
        )


def _against(
    labels: Tensor, other: Other, rows: tuple[Tensor, ...], batch_size: int | None, seed: int
) -> Agreement:
    if isinstance(other, Fit):
        return agreement(labels, fitted_rows(other, *rows, batch_size=batch_size, seed=seed).labels)
    return agreement(labels, other)


def _of_gap(gap: Gap) -> str:
    size = f"mean {gap.mean:.3g}, largest {gap.largest:.3g} nats on {gap.rows} rows"
    return f"{size}; most probable component missed in {gap.missed:.1%}"


def _some(names: list, most: int = 8) -> str:
    """A list cut short."""
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
