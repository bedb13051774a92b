"""Report of a fit as one HTML page: model, history, partition, components, and more on request."""

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.partition_information.plots import plot_information
from pyro_mixtures.diagnostics.partition_information.report import (
    ClusterDependence,
    PartitionInformation,
)
from pyro_mixtures.diagnostics.plots.ellipses import plot_ellipses
from pyro_mixtures.diagnostics.plots.gate import plot_gate
from pyro_mixtures.diagnostics.plots.history import plot_history
from pyro_mixtures.diagnostics.plots.images import plot_image_sheet
from pyro_mixtures.diagnostics.plots.neighbors import plot_neighbors
from pyro_mixtures.diagnostics.plots.responsibilities import plot_responsibilities
from pyro_mixtures.diagnostics.plots.sizes import plot_sizes
from pyro_mixtures.diagnostics.reports.fit_summary import params_of_fit, phases, what_was_fitted
from pyro_mixtures.diagnostics.reports.fitted_components import (
    FittedComponents,
    covariances,
    fitted_components,
)
from pyro_mixtures.diagnostics.reports.fitted_rows import FittedRows, params_of
from pyro_mixtures.diagnostics.reports.latent_point import isolated_randomness
from pyro_mixtures.diagnostics.reports.page import Page, as_file_path, write_atomically
from pyro_mixtures.diagnostics.reports.partition_report import (
    Other,
    PartitionReport,
    draw_rows,
    evaluate_fit,
)
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.experts.gates import Gate
from pyro_mixtures.infer.scoring.posteriors import responsibilities
from pyro_mixtures.infer.searching_guide import SearchingGuide

_MAX_ROWS = 3000  # rows in pictures
_MAX_ELLIPSES = 60
_MAX_NODES = 2000  # components in the picture of the neighbor graph
_MAX_IMAGES = 400
_MAX_LINES = 20  # lines of a table
_TOP_COMPONENTS = 8  # components per row in the picture of responsibilities

_VARIABLES_HEADER = ("Variable", "Kind", "I(z; variable) (nats)", "p-value", "Adjusted p-value")
_DEPENDENCES_HEADER = (
    "Feature",
    "Cluster",
    "Rows",
    "Within the cluster",
    "Overall",
    "p-value",
    "Adjusted p-value",
)
_HISTORY_HEADER = (
    "Phase",
    "Epochs",
    "Last ELBO (nats per row)",
    "Evaluations (cumulative)",
    "Seconds (cumulative)",
    "Non-empty components",
)


def report(
    fit: Fit,
    path: str | os.PathLike[str],
    *rows: Tensor,
    title: str = "Mixture report",
    sample: int = 1000,
    others: Sequence[Other] = (),
    outliers: int = 10,
    batch_size: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    gate: Gate | None = None,
    information: PartitionInformation | None = None,
    generator: torch.Generator | None = None,
) -> PartitionReport:
    """Write a report of a fit to ``path``, as one self-contained HTML page.

    The page always shows what was fitted, its history, the partition report, the sizes of the
    components, and responsibilities. If the components have locations in two or more dimensions, it
    shows their covariances as ellipses. If the guide has a neighbor graph, it shows the graph. The
    remaining sections are added on request by their options.

    :param fit, rows, sample, others, outliers, batch_size, generator: see
        :func:`~pyro_mixtures.diagnostics.reports.partition_report.partition_report`.
    :param path: of the file to write. It is written completely or not at all; an existing file
        keeps its permissions.
    :param title: of the page.
    :param image_shape: (height, width) or (height, width, 3) of the rows, if these are images: adds
        a sheet of the component means.
    :param gate: a gate over two features, the first of ``rows``: adds its regions.
    :param information: of
        :func:`~pyro_mixtures.diagnostics.partition_information.partition_information`: adds the
        information of the partition about each variable, and dependences within clusters. Local
        dependences come first, then those that exceed the dependence over all rows most.
    :returns: the partition report.
    :raises OptionError: as for ``partition_report``, and for ``image_shape`` if the components have
        no location parameter; for a ``path`` of a directory, a named pipe, a device or a socket.
    :raises OSError: if the file cannot be written; an existing file then stays unchanged.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=2)
    >>> guide, x = FullPartition(model, components=2), torch.randn(50, 2)
    >>> result = fit(EM(model, guide), x, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = report(result, Path(folder, "report.html"), x)
    ...     Path(folder, "report.html").read_text().count("<img")
    4
    """
    as_file_path(path)  # before the work that it would waste
    tensors, page = Batches(rows).tensors, Page(title)
    with isolated_randomness(generator) as source:
        fitted, summary = evaluate_fit(
            fit,
            tensors,
            source,
            sample=sample,
            others=others,
            outliers=outliers,
            batch_size=batch_size,
        )
        unmasked = fitted.unmasked
        drawn_rows = unmasked[:: max(1, -(-len(unmasked) // _MAX_ROWS))]
        components = _drawable_components(fit, fitted, drawn_rows, tensors, image_shape)
        _add_fit(page, fit, fitted, tensors)
        _add_partition(page, summary)
        sampled_rows = draw_rows(unmasked, sample, source)
        _add_responsibilities(page, fit, fitted, tensors, sampled_rows)
        if components is not None:
            labels = fitted.labels[drawn_rows]
            _add_components(page, fit, components, labels, summary, image_shape)
        if gate is not None:
            _add_gate(page, gate, fitted, tensors[0])
    if information is not None:
        _add_information(page, information)
    write_atomically(path, page.render())
    return summary


def _add_fit(page: Page, fit: Fit, fitted: FittedRows, rows: tuple[Tensor, ...]) -> None:
    page.heading("Model and fit")
    page.table(what_was_fitted(fit, rows))
    page.table(
        params_of_fit(fit, rows, fitted.point.values),
        header=("Parameter", "Shape", "Type", "Elements"),
    )
    page.heading("History")
    if not len(fit.history):
        page.text("The history has no epochs.")
        return
    page.table(phases(fit.history.epochs), header=_HISTORY_HEADER)
    full = len(rows[0]) * fit.guide.components if isinstance(fit.guide, SearchingGuide) else None
    page.picture(
        plot_history(fit.history, full=full)[0],
        "Objective, and cumulative number of evaluations of the log joint, by epoch.",
    )


def _add_partition(page: Page, summary: PartitionReport) -> None:
    page.heading("Partition")
    page.table(summary.lines())
    page.picture(
        plot_sizes(summary.sizes), "Number of rows of which each component is the most probable."
    )
    largest = summary.sizes.argsort(descending=True, stable=True)[:_MAX_LINES]
    sizes = summary.sizes[largest].tolist()
    shares = [size / summary.rows for size in sizes]
    entropies = summary.component_entropy[largest].tolist()
    page.table(
        zip(largest.tolist(), sizes, shares, entropies, strict=True),
        header=("Component", "Rows", "Share of rows", "Entropy of q (nats per row)"),
        caption=f"The {len(largest)} largest of {len(summary.sizes)} components",
    )
    page.table(
        zip(summary.outliers.tolist(), summary.outlier_log_evidence.tolist(), strict=True),
        header=("Row", "Log evidence (nats)"),
        caption="Outliers: the rows of the lowest log evidence",
    )


def _add_responsibilities(
    page: Page, fit: Fit, fitted: FittedRows, rows: tuple[Tensor, ...], sampled_rows: Tensor
) -> None:
    sample = tuple(tensor[sampled_rows.to(tensor.device)] for tensor in rows)
    with params_of(fit), torch.no_grad():
        exact = responsibilities(
            fit.model,
            *sample,
            top=min(_TOP_COMPONENTS, fit.guide.components),
            site=fit.guide.site,
            given=fitted.point.values,
        )
    caption = (
        f"Exact responsibilities of the least certain of {len(sampled_rows)} random rows, ordered "
        "by their most probable component."
    )
    page.picture(plot_responsibilities(exact, numbers=sampled_rows), caption)


def _drawable_components(
    fit: Fit,
    fitted: FittedRows,
    drawn_rows: Tensor,
    rows: tuple[Tensor, ...],
    image_shape: tuple[int, ...] | None,
) -> FittedComponents | None:
    """The components and the rows to draw, or None if there is nothing to draw."""
    selected = (tensor[drawn_rows.to(tensor.device)] for tensor in rows)
    components = fitted_components(fit, *selected, given=fitted.point.values)
    if image_shape is not None:
        if components is None:
            raise OptionError(
                f"image_shape={image_shape}, but no observed site has components with a location "
                "parameter: leave it out"
            )
        return components
    return components if components is not None and components.loc.shape[1] > 1 else None


def _add_components(
    page: Page,
    fit: Fit,
    components: FittedComponents,
    labels: Tensor,
    summary: PartitionReport,
    image_shape: tuple[int, ...] | None,
) -> None:
    page.heading("Components")
    loc = components.loc
    if image_shape is not None:
        sheet = plot_image_sheet(loc, shape=image_shape, order=summary.sizes, count=_MAX_IMAGES)
        page.picture(sheet, "Component means as images, the largest components first.")
    if loc.shape[1] > 1:
        _add_ellipses(page, components, labels, summary)
        _add_graph(page, fit, components, summary)


def _add_ellipses(
    page: Page, components: FittedComponents, labels: Tensor, summary: PartitionReport
) -> None:
    loc = components.loc
    by_size = summary.sizes.argsort(descending=True, stable=True)
    largest = by_size[:_MAX_ELLIPSES].sort().values.to(loc.device)
    covariance = covariances(components.family, largest)
    if covariance is None:
        return
    ax = plot_ellipses(
        loc[largest], covariance, rows=components.rows, labels=labels, numbers=largest
    )
    page.picture(
        ax,
        f"The largest components of site {components.site!r}, with {len(components.rows)} of its "
        "rows.",
    )


def _add_graph(
    page: Page, fit: Fit, components: FittedComponents, summary: PartitionReport
) -> None:
    guide = fit.guide
    if not isinstance(guide, SearchingGuide) or guide.graph is None:
        return
    neighbors = guide.graph.neighbors
    if neighbors.shape[1] < 2:
        return
    if guide.components > _MAX_NODES:
        page.text(f"The neighbor graph of {guide.components} components is too dense to draw.")
        return
    ax = plot_neighbors(components.loc, neighbors, sizes=summary.sizes, rows=components.rows)
    page.picture(ax, "Nearest neighbors of each component in the guide's neighbor graph.")


def _add_gate(page: Page, gate: Gate, fitted: FittedRows, x: Tensor) -> None:
    page.heading("Gate")
    unmasked = fitted.unmasked
    ax = plot_gate(gate, x[unmasked.to(x.device)], labels=fitted.labels[unmasked])
    page.picture(
        ax,
        "Regions by the component to which the gate assigns a row; each dot has the color of the "
        "component of the row.",
    )


def _add_information(page: Page, information: PartitionInformation) -> None:
    page.heading("Information of the partition")
    shown = information.variables[:_MAX_LINES]
    count = f"{len(shown)} of {len(information.variables)} variables"
    page.picture(
        plot_information(information, count=_MAX_LINES),
        f"Mutual information of the cluster labels and {count}.",
    )
    page.table(shown, header=_VARIABLES_HEADER, caption=f"{count}, the most informative first")
    if information.dependences:
        _add_dependences(page, information)


def _add_dependences(page: Page, information: PartitionInformation) -> None:
    dependences = information.dependences
    tested = all(line.adjusted_p_value is not None for line in dependences)
    local = information.local_dependences() if tested else []
    order = sorted(dependences, key=lambda line: (line not in local, -_excess(line)))
    text = (
        "Dependence of the outcome on each feature: hypercontractivity coefficients within a "
        "cluster and over all rows, in descending order of their difference. "
    )
    if not tested:
        text += "Not tested."
    elif local:
        text += (
            f"The first {len(local)} are significant in some clusters only (adjusted p-value at "
            "most 0.05)."
        )
    else:
        text += "None is significant in some clusters only (adjusted p-value at most 0.05)."
    page.text(text)
    shown = order[:_MAX_LINES]
    page.table(
        shown,
        header=_DEPENDENCES_HEADER,
        caption=f"{len(shown)} of {len(dependences)} dependences",
    )


def _excess(line: ClusterDependence) -> float:
    """How much larger the coefficient is within the cluster; minus infinity if it is undefined."""
    return -math.inf if math.isnan(line.within) else line.within - line.overall
