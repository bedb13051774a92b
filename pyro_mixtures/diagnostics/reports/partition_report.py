"""Report on a fitted partition: sizes, certainty, truncation, stability and outliers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.reports.agreement import Agreement, agreement
from pyro_mixtures.diagnostics.reports.fitted_rows import FittedRows, fitted_rows, params_of
from pyro_mixtures.diagnostics.reports.latent_point import isolated_randomness
from pyro_mixtures.diagnostics.reports.neighbor_recall import (
    NeighborRecall,
    neighbor_recall,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.infer.searching_guide import SearchingGuide
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import Posterior

# Another fit of the same rows, or its labels (N,).
Other = Fit | Tensor | np.ndarray | Sequence[int]
# Multiples of the rounding error of a log joint within which two components are equally probable.
_ROUNDING_ERRORS = 64
_MAX_LISTED = 8  # entries of a list in the printed report


class TruncationGap(NamedTuple):
    """Exact log evidence minus the log evidence of the components in q, over random rows."""

    rows: int
    mean: float  # nats
    largest: float  # nats
    missed: float  # share of rows for which another component is more probable than the guide's


@dataclass(frozen=True)
class PartitionReport:
    """Result of :func:`partition_report`; it prints as a few lines. Tensors are on the CPU."""

    sizes: Tensor  # (C,) int64, number of rows of which each component is the most probable
    entropy: float  # of the responsibilities, in nats per row
    component_entropy: Tensor  # (C,) float64, the same for the rows of each component; NaN if empty
    gap: TruncationGap
    recall: NeighborRecall | None  # None for guides without a neighbor graph
    reseeded: int  # number of re-seeded components during the fit
    dropped: int  # number of components whose weight became zero permanently
    stability: tuple[Agreement, ...]  # with each of the other fits
    outliers: Tensor  # (K,) int64, rows of the lowest log evidence, in ascending order
    outlier_log_evidence: Tensor  # (K,) float64, of the outliers, in nats
    latents: str  # the values of the other latent sites that were used; "" if there are none

    @property
    def rows(self) -> int:
        """Number of rows that have a component, that is, are not masked."""
        return int(self.sizes.sum())

    @property
    def empty(self) -> Tensor:
        """Numbers of the components without rows."""
        return (self.sizes == 0).nonzero()[:, 0]

    def __str__(self) -> str:
        lines = self.lines()
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    def lines(self) -> list[tuple[str, str]]:
        """Return the report as pairs of a name and a text."""
        lines = [("partition", self._partition_text())]
        if self.latents:
            lines.append(("latent sites", self.latents))
        lines += [
            ("sizes", self._sizes_text()),
            ("empty components", self._empty_text()),
            ("entropy of q", f"{self.entropy:.4g} nats per row"),
            ("truncation gap", self._gap_text()),
        ]
        if self.recall is not None:
            lines.append(("neighbor graph", _recall_text(self.recall)))
        for number, other in enumerate(self.stability, 1):
            text = f"adjusted Rand index {other.rand:.3f}, matched rows {other.matched:.1%}"
            lines.append((f"agreement with fit {number}", text))
        lines.append(("outliers", self._outliers_text()))
        return lines

    def _partition_text(self) -> str:
        non_empty = int((self.sizes > 0).sum())
        return f"{self.rows} rows in {non_empty} of {len(self.sizes)} components"

    def _sizes_text(self) -> str:
        sizes = self.sizes[self.sizes > 0].numpy()
        return f"largest {sizes.max()}, median {np.median(sizes):.10g}, smallest {sizes.min()}"

    def _empty_text(self) -> str:
        changes = f"{self.reseeded} re-seeded and {self.dropped} dropped during the fit"
        prefix = "number " if len(self.empty) else ""
        return f"{prefix}{_listing(self.empty.tolist())}; {changes}"

    def _gap_text(self) -> str:
        gap = self.gap
        return (
            f"mean {gap.mean:.3g}, largest {gap.largest:.3g} nats on {gap.rows} rows; "
            f"most probable component missed for {gap.missed:.1%} of them"
        )

    def _outliers_text(self) -> str:
        outliers = zip(self.outliers.tolist(), self.outlier_log_evidence.tolist(), strict=True)
        return _listing([f"row {row} ({value:.4g} nats)" for row, value in outliers])


def partition_report(
    fit: Fit,
    *rows: Tensor,
    sample: int = 1000,
    others: Sequence[Other] = (),
    outliers: int = 10,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> PartitionReport:
    """Report on a fitted partition of ``rows``, without changing the fit or global random states.

    The truncation gap is the exact log evidence of a row minus the log evidence of the components
    in the guide's q. It is zero for a full guide; for a hard guide it is the contribution of the
    other components. The recall of the neighbor graph is the share of the truly nearest components
    that it contains, by the guide's own measure
    (:func:`~pyro_mixtures.diagnostics.reports.neighbor_recall.neighbor_recall`).

    All numbers are computed at one value of each of the model's other latent sites: the median of
    the global guide if it is an autoguide that has one, otherwise one draw from it. The report's
    ``latents`` says which.

    :param fit: the fit to report on.
    :param rows: the rows of the fit, in their order.
    :param sample: number of rows for which all C components are evaluated, for the gap, and the
        same number again for the recall.
    :param others: fits of the same rows from other starts, or their labels (N,), negative for none.
        Fits of plain functions whose params have the same names overwrite each other in Pyro's
        store: pass the labels of these.
    :param outliers: number of rows of the lowest log evidence to list.
    :param batch_size: number of rows per call, as in :func:`~pyro_mixtures.infer.em.fit`.
    :param generator: the only source of randomness, on the CPU: it draws the sample and the values
        of other latent sites. By default a copy of torch's global generator, which stays unchanged.
    :returns: the report, which prints as a few lines.
    :raises OptionError: for numbers that are out of range, an argument that is not a fit, or a
        guide that holds several partitions.
    :raises DataError: if all rows are masked, or the labels of others do not match the rows.

    >>> from pyro_mixtures.guides import TruncatedPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=4, features=2)
    >>> guide = TruncatedPartition(model, components=4, neighbors=4)
    >>> report = partition_report(fit(EM(model, guide), x, progress=False), x)
    >>> report.rows, report.recall.share
    (100, 1.0)
    """
    with isolated_randomness(generator) as source:
        _, report = evaluate_fit(
            fit,
            rows,
            source,
            sample=sample,
            others=others,
            outliers=outliers,
            batch_size=batch_size,
        )
        return report


def evaluate_fit(
    fit: Fit,
    rows: Sequence[Tensor],
    generator: torch.Generator,
    *,
    sample: int,
    others: Sequence[Other],
    outliers: int,
    batch_size: int | None,
) -> tuple[FittedRows, PartitionReport]:
    """Return the rows under q(z) and the report on them; see :func:`partition_report`."""
    check_whole(sample=sample)
    check_whole(minimum=0, outliers=outliers)
    _check_fits(fit, others)
    # All fits use one seed, so that a fit agrees with itself.
    seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
    tensors = Batches(rows).tensors
    fitted = fitted_rows(fit, *tensors, batch_size=batch_size, seed=seed)
    stability = tuple(
        _agreement_with(fitted.labels, other, tensors, batch_size, seed) for other in others
    )
    return fitted, _report(fit, fitted, tensors, stability, sample, outliers, generator)


def _report(
    fit: Fit,
    fitted: FittedRows,
    tensors: tuple[Tensor, ...],
    stability: tuple[Agreement, ...],
    sample: int,
    outliers: int,
    generator: torch.Generator,
) -> PartitionReport:
    unmasked = fitted.unmasked
    if not len(unmasked):
        raise DataError("all rows are masked: there is no row to report on")
    labels, entropy = fitted.labels[unmasked], fitted.entropy[unmasked]
    sizes = torch.bincount(labels, minlength=fit.guide.components)
    lowest = fitted.log_evidence[unmasked].topk(min(outliers, len(unmasked)), largest=False)
    history = fit.history.epochs
    return PartitionReport(
        sizes=sizes,
        entropy=float(entropy.mean()),
        component_entropy=torch.bincount(labels, entropy, minlength=len(sizes)) / sizes,
        gap=_truncation_gap(fit, fitted, tensors, draw_rows(unmasked, sample, generator)),
        recall=_recall(fit, fitted, tensors, sample, generator),
        reseeded=sum(epoch.reseeded for epoch in history),
        dropped=history[-1].dropped if history else 0,
        stability=stability,
        outliers=unmasked[lowest.indices],
        outlier_log_evidence=lowest.values,
        latents=str(fitted.point),
    )


def _check_fits(fit: Any, others: Any) -> None:
    if not isinstance(fit, Fit):
        raise OptionError(
            f"fit is of type {type(fit).__name__}: pass a Fit, as returned by fit(), or the .best "
            "of a result"
        )
    if not isinstance(others, Sequence):
        raise OptionError(
            f"others is of type {type(others).__name__}: pass a list of fits or labels"
        )
    for number, other in enumerate(others):
        if not isinstance(other, (Fit, Tensor, np.ndarray, Sequence)):
            raise OptionError(
                f"others[{number}] is of type {type(other).__name__}: pass a Fit, the .best of a "
                "result, or labels (N,)"
            )


def draw_rows(row_numbers: Tensor, sample: int, generator: torch.Generator) -> Tensor:
    """Draw at most ``sample`` of the row numbers, in ascending order."""
    order = torch.randperm(len(row_numbers), generator=generator, device="cpu")
    return row_numbers[order[:sample]].sort().values


def _truncation_gap(
    fit: Fit, fitted: FittedRows, rows: tuple[Tensor, ...], sample: Tensor
) -> TruncationGap:
    sample_rows = tuple(tensor[sample.to(tensor.device)] for tensor in rows)
    remaining_labels = fitted.labels[sample]
    exact, missed = [], []
    with params_of(fit), torch.no_grad():
        site, values = fit.guide.site, fitted.point.values
        for posterior, _ in posteriors(fit.model, sample_rows, None, site, values):
            labels, remaining_labels = remaining_labels.tensor_split([len(posterior.index)])
            exact.append(posterior.log_evidence.double().cpu())
            missed.append(_is_missed(posterior, labels))
    gap = torch.cat(exact) - fitted.log_evidence[sample]
    share = float(torch.cat(missed).double().mean())
    return TruncationGap(len(sample), float(gap.mean()), float(gap.max()), share)


def _is_missed(exact: Posterior, labels: Tensor) -> Tensor:
    """Whether (B,) a component other than ``labels`` is more probable, by more than rounding."""
    log_prob = exact.log_prob
    label_log_prob = log_prob.gather(0, labels.to(log_prob.device).unsqueeze(0))[0]
    difference = log_prob.max(0).values - label_log_prob
    rounding = torch.finfo(log_prob.dtype).eps * (1 + exact.log_evidence.abs())
    return (difference > _ROUNDING_ERRORS * rounding).cpu()


def _recall(
    fit: Fit, fitted: FittedRows, rows: tuple[Tensor, ...], sample: int, generator: torch.Generator
) -> NeighborRecall | None:
    guide = fit.guide
    if not isinstance(guide, SearchingGuide) or guide.graph is None:
        return None
    with params_of(fit), torch.no_grad():
        return neighbor_recall(
            fit.model,
            guide.read(*(tensor[:1] for tensor in rows)),
            guide.graph.neighbors,
            fitted.labels,
            *rows,
            sample=sample,
            given=fitted.point.values,
            generator=generator,
        )


def _agreement_with(
    labels: Tensor, other: Other, rows: tuple[Tensor, ...], batch_size: int | None, seed: int
) -> Agreement:
    if isinstance(other, Fit):
        return agreement(labels, fitted_rows(other, *rows, batch_size=batch_size, seed=seed).labels)
    return agreement(labels, other)


def _recall_text(recall: NeighborRecall) -> str:
    return (
        f"contains {recall.share:.1%} of the {recall.neighbors} nearest neighbors of "
        f"{recall.components} components"
    )


def _listing(entries: Sequence[Any]) -> str:
    """The entries, abbreviated if there are many."""
    text = ", ".join(map(str, entries[:_MAX_LISTED])) or "none"
    return text if len(entries) <= _MAX_LISTED else f"{text}, ... ({len(entries)} in total)"
