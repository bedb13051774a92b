"""A report of a fit as one HTML page: what was fitted, history, partition, components, with all that applies."""

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.partition_information.plots import plot_information
from pyro_mixtures.diagnostics.partition_information.report import (
    Dependence,
    Knowledge,
    PartitionInformation,
)
from pyro_mixtures.diagnostics.plots.history import plot_history
from pyro_mixtures.diagnostics.plots.images import plot_image_sheet
from pyro_mixtures.diagnostics.plots.neighbors import plot_neighbors
from pyro_mixtures.diagnostics.plots.pictures import plot_responsibilities, plot_sizes
from pyro_mixtures.diagnostics.plots.places import plot_ellipses
from pyro_mixtures.diagnostics.plots.regions import plot_gate
from pyro_mixtures.diagnostics.reports.fit_summary import params_of_fit, phases, what_was_fitted
from pyro_mixtures.diagnostics.reports.fitted_components import (
    FittedComponents,
    covariances,
    fitted_components,
)
from pyro_mixtures.diagnostics.reports.fitted_rows import FittedRows, params_of
from pyro_mixtures.diagnostics.reports.neighbor_recall import WithGraph
from pyro_mixtures.diagnostics.reports.page import Page, write_whole
from pyro_mixtures.diagnostics.reports.partition_report import Other, PartitionReport, report_of
from pyro_mixtures.diagnostics.reports.point import looking
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.experts.gates import Gate
from pyro_mixtures.infer.scoring.posteriors import responsibilities

# What a picture or table shows at most: rows, ellipses, components of the graph, images, lines,
# components of a row.
_ROWS, _ELLIPSES, _NODES, _IMAGES, _LINES, _TOP = 3000, 60, 2000, 400, 20, 8


def report(
    fit: Fit,
    path: str | os.PathLike,
    *rows: Tensor,
    title: str = "Report of a mixture",
    sample: int = 1000,
    others: Sequence[Other] = (),
    outliers: int = 10,
    batch_size: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    gate: Gate | None = None,
    information: PartitionInformation | None = None,
    generator: torch.Generator | None = None,
) -> PartitionReport:
    """Write all that applies to a fit to one self-contained HTML page at ``path``, whole or not at all.

    Always: what was fitted, its history, the partition report, part sizes and responsibilities.
    Where components have places among rows of two features or more: their covariances as ellipses.
    Where the guide has a neighbour graph: that too. The rest by its option.

    :param rows, sample, others, outliers, batch_size, generator: see
        :func:`~pyro_mixtures.diagnostics.reports.partition_report.partition_report`.
    :param image_shape: (height, width) or (height, width, 3) of the rows, if these are images: adds
        the sheet of means.
    :param gate: a gate of the fit's parts over two features, the first of ``rows``: adds its
        regions.
    :param information: of
        :func:`~pyro_mixtures.diagnostics.partition_information.partition_information`: adds what
        the partition knows, and dependences: first those found in some parts only, if tests were
        made, then those that are highest inside a part compared with all rows.
    :returns: the partition report.
    :raises OptionError: as ``partition_report``, and for ``image_shape`` where components have no
        places.
    :raises OSError: when the file cannot be written; one that was there stays as it is.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=2)
    >>> found = fit(EM(model, FullPartition(model, components=2)), x := torch.randn(50, 2), progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = report(found, Path(folder, "report.html"), x)
    ...     Path(folder, "report.html").read_text().count("<img")
    4
    """
    tensors, page = Batches(rows).tensors, Page(title)
    with looking(generator) as source:
        state, summary = report_of(
            fit,
            tensors,
            source,
            sample=sample,
            others=others,
            outliers=outliers,
            batch_size=batch_size,
        )
        some = state.known[:: max(1, -(-len(state.known) // _ROWS))]
        found = _places(fit, state, some, tensors, image_shape)
        _add_fit(page, fit, state, tensors)
        _add_partition(page, summary)
        _add_responsibilities(page, fit, state, tensors, sample, source)
        if found is not None:
            _add_components(page, fit, found, state.labels[some], summary, image_shape)
        if gate is not None:
            _add_gate(page, gate, state, tensors[0])
    if information is not None:
        _add_information(page, information)
    write_whole(path, page.render())
    return summary


def _add_fit(page: Page, fit: Fit, state: FittedRows, rows: tuple[Tensor, ...]) -> None:
    page.heading("What was fitted")
    page.table(what_was_fitted(fit, rows))
    page.table(
        params_of_fit(fit, rows, state.point.values), header=("Param", "Shape", "Type", "Numbers")
    )
    page.heading("History")
    if not len(fit.history):
        page.text("No epochs: nothing was fitted.")
        return
    names = (
        "Phase",
        "Epochs",
        "Last ELBO (nats a row)",
        "Evaluations so far",
        "Seconds so far",
        "Components with rows",
    )
    page.table(phases(fit.history.epochs), header=names)
    full = len(rows[0]) * fit.guide.components if fit.guide.searches else None
    page.picture(
        plot_history(fit.history, full=full)[0], "Objective and joint evaluations, epoch by epoch."
    )


def _add_partition(page: Page, summary: PartitionReport) -> None:
    page.heading("Partition")
    page.table(summary.lines())
    page.picture(plot_sizes(summary.sizes), "Rows of which each component is the most probable.")
    largest = summary.sizes.argsort(descending=True, stable=True)[:_LINES].tolist()
    lines = [(c, int(summary.sizes[c]), int(summary.sizes[c]) / summary.rows) for c in largest]
    entropy = [float(summary.part_entropy[c]) for c in largest]
    names = ("Component", "Rows", "Share", "Entropy of q (nats a row)")
    caption = f"The {len(lines)} largest of {len(summary.sizes)} parts"
    page.table(
        [(*line, value) for line, value in zip(lines, entropy, strict=True)],
        header=names,
        caption=caption,
    )
    worst = zip(summary.outliers.tolist(), summary.outlier_evidence.tolist(), strict=True)
    page.table(
        worst, header=("Row", "Log evidence (nats)"), caption="Outliers: rows of lowest evidence"
    )


def _add_responsibilities(
    page: Page,
    fit: Fit,
    state: FittedRows,
    rows: tuple[Tensor, ...],
    sample: int,
    generator: torch.Generator,
) -> None:
    known = state.known
    some = (
        known[torch.randperm(len(known), generator=generator, device="cpu")[:sample]].sort().values
    )
    part = tuple(tensor[some.to(tensor.device)] for tensor in rows)
    with params_of(fit), torch.no_grad():
        top = min(_TOP, fit.guide.components)
        found = responsibilities(
            fit.model, *part, top=top, site=fit.guide.site, given=state.point.values
        )
    caption = (
        f"Exact responsibilities of the least certain of {len(some)} random rows, by their winner."
    )
    page.picture(plot_responsibilities(found, numbers=some), caption)


def _places(
    fit: Fit,
    state: FittedRows,
    some: Tensor,
    rows: tuple[Tensor, ...],
    image_shape: tuple[int, ...] | None,
) -> FittedComponents | None:
    """Components among ``some`` rows, where there is something to draw of them."""
    part = (tensor[some.to(tensor.device)] for tensor in rows)
    found = fitted_components(fit, *part, given=state.point.values)
    if found is None and image_shape is not None:
        raise OptionError(
            f"image_shape={image_shape}, but no observed site has components with a place: leave it out"
        )
    return found if found is None or image_shape is not None or found.loc.shape[1] > 1 else None


def _add_components(
    page: Page,
    fit: Fit,
    found: FittedComponents,
    labels: Tensor,
    summary: PartitionReport,
    image_shape: tuple[int, ...] | None,
) -> None:
    page.heading("Components")
    if image_shape is not None:
        sheet = plot_image_sheet(found.loc, shape=image_shape, order=summary.sizes, count=_IMAGES)
        page.picture(sheet, "Means of the components as images, those with most rows first.")
    if found.loc.shape[1] > 1:
        _add_ellipses(page, found, labels, summary)
        _add_graph(page, fit, found, summary)


def _add_ellipses(
    page: Page, found: FittedComponents, labels: Tensor, summary: PartitionReport
) -> None:
    some = (
        summary.sizes.argsort(descending=True, stable=True)[:_ELLIPSES]
        .sort()
        .values.to(found.loc.device)
    )
    spread = covariances(found.family, some)
    if spread is not None:
        ax = plot_ellipses(found.loc[some], spread, rows=found.rows, labels=labels, numbers=some)
        page.picture(
            ax,
            f"Components of site {found.site!r} with most rows, among {len(found.rows)} of its rows.",
        )


def _add_graph(page: Page, fit: Fit, found: FittedComponents, summary: PartitionReport) -> None:
    guide = fit.guide
    if (
        not isinstance(guide, WithGraph)
        or guide.graph is None
        or guide.graph.neighbors.shape[1] < 2
    ):
        return
    if guide.components > _NODES:
        page.text(f"The neighbour graph of {guide.components} components is too dense to be drawn.")
        return
    ax = plot_neighbors(found.loc, guide.graph.neighbors, sizes=summary.sizes, rows=found.rows)
    page.picture(ax, "Nearest neighbours of the components in the guide's graph.")


def _add_gate(page: Page, gate: Gate, state: FittedRows, x: Tensor) -> None:
    page.heading("Gate")
    ax = plot_gate(gate, x[state.known.to(x.device)], labels=state.labels[state.known])
    page.picture(ax, "Where the gate sends rows; dots have their parts' colours.")


def _add_information(page: Page, information: PartitionInformation) -> None:
    page.heading("What the partition knows")
    shown = information.knowledge[:_LINES]
    count = f"{len(shown)} of {len(information.knowledge)} variables"
    page.picture(
        plot_information(information, count=_LINES),
        f"Mutual information of the partition with {count}.",
    )
    page.table(shown, header=Knowledge._fields, caption=f"{count}, those it knows most of")
    if information.dependences:
        _add_dependences(page, information)


def _add_dependences(page: Page, information: PartitionInformation) -> None:
    every = information.dependences
    tested = all(line.adjusted is not None for line in every)
    partial = information.partial() if tested else []
    order = sorted(every, key=lambda line: (line not in partial, -_excess(line)))
    first = (
        f"{len(partial) or 'none'} found in some parts only (adjusted p at most 0.05)"
        if tested
        else "not tested"
    )
    page.text(
        "How the outcome depends on a feature: hypercontractivity coefficients inside a part and over all rows, "
        f"{first}{', these first' if partial else ''}; the largest inside - overall at the top."
    )
    shown = order[:_LINES]
    page.table(
        shown, header=Dependence._fields, caption=f"{len(shown)} of {len(every)} dependences"
    )


def _excess(line: Dependence) -> float:
    """How much higher the coefficient is inside the part; that of nothing is the lowest."""
    return -math.inf if math.isnan(line.inside) else line.inside - line.overall
