r"""Approximation guarantees of fitted partitions: ``python -m tests.benchmarks.approximation``.

Prints, for planted regressions of several noise levels, the constants that the guarantee depends on
and, for few rows, the true ratio of the objective to that of the best partition.

The objective of clusters S_1..S_K is :math:`F(S) = \sum_k f(S_k)`, where :math:`f(S_k)` is the
minimum over theta of the regularized losses :math:`\ell(\theta; i) > 0` of its rows. The following
was derived for this package.

Suppose that all losses lie in :math:`[\ell_{\min}, \ell_{\max}]`, regardless of the rows that theta
is fitted to. A row that joins a cluster then adds at least :math:`\ell_{\min}`, since the other
rows cost no less than their own minimum, and at most :math:`\ell_{\max}`, its loss under their
minimizer. Gains that differ by no more than this ratio make F alpha-submodular with
:math:`\alpha \ge \ell_{\min} / \ell_{\max}`, and of curvature
:math:`\kappa \le 1 - \ell_{\min} / \ell_{\max}`.

For n rows :math:`F(S) \le \frac{1}{\alpha} \sum_i f(\{i\})`, the modular bound that the first step
from the empty partition minimizes. The best partition costs
:math:`F^* \ge f(\{j\}) + (1 - \kappa) \alpha \sum_{i \ne j} f(\{i\})` for every row j; the mean
over j gives

.. math:: F \le \frac{n}{\alpha [1 + (n - 1) (1 - \kappa) \alpha]} F^*.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution, TorchDistribution, Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.distributions import Selected
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, PartitionError
from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM, fit_restarts
from pyro_mixtures.infer.experts.labels import labels_of
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.models import MixtureOfRegressions
from pyro_mixtures.options import check_finite, check_whole
from pyro_mixtures.poutine import ProgramStructure, log_joint, read_structure
from tests.benchmarks import harness

# (row, component) pairs per chunk.
_PAIRS = 1 << 21


def main() -> None:
    """Print the constants of planted regressions, and the true ratio for few rows."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10, 1000], metavar="N")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 1.0], metavar="SIGMA")
    options = parser.parse_args()
    report = harness.Report(__doc__)
    for rows, noise in itertools.product(options.rows, options.noise):
        report.row("planted regressions", **planted(rows, noise))
    report.finish(options.json)


def planted(rows: int, noise: float, seed: int = 0) -> dict[str, Any]:
    """Fit two clusters of regressions with slopes 2 and -2; return the constants of the fit."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    x = torch.randn(rows, 1, dtype=torch.float64)
    slope = torch.where(torch.arange(rows) % 2 == 0, 2.0, -2.0)
    y = slope * x[:, 0] + noise * torch.randn(rows, dtype=torch.float64)

    def build() -> EM:
        model = MixtureOfRegressions(
            components=2, features=1, ridge=0.2, scale=1.0, equal_weights=True
        ).double()
        return EM(model, HardPartition(model, components=2), empty="keep")

    best = fit_restarts(build, x, y, starts=10, progress=False).best
    found = approximation_report(best.model, best.guide, x, y)
    ratio = found.objective / best_objective(x, y, 0.2) if rows <= 12 else math.nan
    return {
        "rows": rows,
        "noise": noise,
        "alpha": found.alpha,
        "curvature": found.curvature,
        "guarantee": found.guarantee,
        "true ratio": ratio,
    }


def best_objective(x: Tensor, y: Tensor, ridge: float) -> float:
    """Return the smallest objective of all partitions into two clusters of ridge regressions."""
    return min(
        two_cluster_objective(x, y, torch.tensor(labels), ridge)
        for labels in itertools.product((0, 1), repeat=len(x))
    )


def two_cluster_objective(x: Tensor, y: Tensor, labels: Tensor, ridge: float) -> float:
    """Return the sum of the minimal losses of clusters 0 and 1."""
    return sum(ridge_loss(x[labels == k], y[labels == k], ridge) for k in (0, 1))


def ridge_loss(x: Tensor, y: Tensor, ridge: float) -> float:
    """Return the minimum of sum (y - w x - b)^2 / 2 + n ridge w^2 / 2 over n rows."""
    if not len(x):
        return 0.0
    centered, target = x - x.mean(0), y - y.mean(0)
    penalty = len(x) * ridge
    gram = centered.T @ centered + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    w = torch.linalg.solve(gram, centered.T @ target)
    return float(((target - centered @ w).square().sum() + penalty * w.square().sum()) / 2)


class ApproximationReport(NamedTuple):
    """Losses of a fitted partition and the guarantee that they suggest."""

    rows: int  # n
    clusters: int  # that have rows
    loss_min: float  # over rows and clusters
    loss_max: float
    objective: float  # F of the partition, without the constants of its densities
    alpha: float  # estimate of a lower bound
    curvature: float  # estimate of an upper bound
    guarantee: float  # of F over the best F; infinite if a loss is zero

    def __str__(self) -> str:
        guarantee = f"F <= {self.guarantee:.4g} F*"
        if math.isinf(self.guarantee):
            guarantee += " (no information)"
        return "\n".join(
            [
                f"partition of {self.rows} rows into {self.clusters} clusters, "
                f"F = {self.objective:.6g}",
                f"losses at the fitted parameters in [{self.loss_min:.4g}, {self.loss_max:.4g}]",
                f"estimates: alpha >= {self.alpha:.4g}, curvature <= {self.curvature:.4g}",
                f"{guarantee}, if the losses of all other fits lie in this interval too",
            ]
        )


def approximation_report(
    model: Callable[..., Any],
    guide: LabeledGuide,
    x: Tensor,
    y: Tensor,
    *,
    offset: float | None = None,
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> ApproximationReport:
    r"""Estimate the approximation guarantee of a fitted partition from its rows' losses.

    The guarantee :math:`F \le n / (\alpha [1 + (n - 1)(1 - \kappa) \alpha]) F^*` and its constants
    are derived at the top of this module. They are *estimates*: the losses are those under the
    fitted parameters, while a certificate needs bounds under the parameters of every subset of the
    rows. In particular, it is no certificate where a cluster of one row can be fitted without loss,
    as by regressions with a free bias.

    Losses must be positive. The loss of a density is minus its logarithm without the constant of
    normalization, which is the least loss of a single row at the fitted scales: for regressions
    :math:`\log \sigma + \log(2 \pi) / 2`, which leaves
    :math:`((y - w x - b)^2 + \lambda |w|^2) / 2 \sigma^2`; for normals the loss of a row at the
    mean. Probabilities of discrete outcomes and ``pyro.factor`` have no such constant. The losses
    of several observed sites add up. Clusters without rows and masked rows are ignored; row weights
    have no effect.

    :param model: the fitted program, :math:`\ell = -\log p(y | x, z)`, including the
        regularization.
    :param guide: with the ``labels`` (N,) of the rows.
    :param x, y: (N, P) and (N, ...), the rows of the fit: the program's arguments.
    :param offset: a constant to subtract from each row's loss, instead of the family's constant:
        0.0 for pseudo-likelihoods exp(-loss), whose loss is positive.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    :returns: the losses, the constants and the guarantee.
    :raises PartitionError: if the labels are not those of the rows.
    :raises ClosedFormError: if a family does not define its constant.
    :raises ModelError: if a loss is negative.
    """
    if chunk is not None:
        check_whole(chunk=chunk)
    if offset is not None:
        check_finite(offset=offset)
    rows = Batches((x, y)).tensors
    labels = _checked_labels(guide, len(rows[0])).to(rows[0].device)
    clusters, position = torch.unique(labels, return_inverse=True)
    structure = read_structure(model, guide.site, tuple(tensor[:1] for tensor in rows), {})
    handled = model if offset is not None else BareLossMessenger(structure)(model)
    smallest, largest, objective, count = math.inf, 0.0, 0.0, 0
    row_numbers = torch.arange(len(labels), device=labels.device)
    for index in row_numbers.split(chunk or max(1, _PAIRS // len(clusters))):
        row_block = tuple(tensor[index] for tensor in rows)
        loss, valid = _losses(handled, structure, row_block, clusters, offset or 0.0, given)
        if not loss.numel():
            continue
        smallest, largest = min(smallest, float(loss.min())), max(largest, float(loss.max()))
        assigned_loss = loss.gather(0, position[index][valid].unsqueeze(0))[0]
        objective += float(assigned_loss.double().sum())
        count += len(assigned_loss)
    return _report(count, len(clusters), smallest, largest, objective)


def guarantee(rows: int, alpha: float, curvature: float) -> float:
    """Return the largest ratio of F to the best F for n rows; infinite if alpha is zero."""
    if alpha <= 0:
        return math.inf
    return rows / (alpha * (1 + (rows - 1) * (1 - curvature) * alpha))


def _report(
    rows: int, clusters: int, smallest: float, largest: float, objective: float
) -> ApproximationReport:
    if not rows:
        raise DataError("all rows are masked: no losses are left")
    # If all losses are zero, so is F, and no partition is better.
    ratio = smallest / largest if largest > 0 else 1.0
    return ApproximationReport(
        rows=rows,
        clusters=clusters,
        loss_min=smallest,
        loss_max=largest,
        objective=objective,
        alpha=ratio,
        curvature=1 - ratio,
        guarantee=guarantee(rows, ratio, 1 - ratio),
    )


def _losses(
    model: Callable[..., Any],
    structure: ProgramStructure,
    rows: tuple[Tensor, ...],
    clusters: Tensor,
    offset: float,
    given: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Return losses (K, V) under ``clusters`` (K,), and which rows (B,) are the V unmasked ones."""
    joint = log_joint(model, structure, lambda *_: clusters.unsqueeze(-1), rows, {}, given)
    if len(joint.index) != len(rows[0]):
        raise ModelError(
            f"the model took {len(joint.index)} of {len(rows[0])} rows: open its plate without "
            "subsample_size"
        )
    valid = torch.ones_like(joint.index, dtype=torch.bool) if joint.mask is None else joint.mask
    loss = -joint.log_density.expand(joint.log_joint.shape)[:, valid] - offset
    smallest, largest = (float(loss.min()), float(loss.max())) if loss.numel() else (0.0, 0.0)
    # Rounding may make a loss of zero negative.
    if smallest < -64 * torch.finfo(loss.dtype).eps * max(1.0, largest):
        raise ModelError(
            f"a loss is {smallest:.4g}, but losses must not be negative: pass a lower offset="
        )
    return loss.clamp_min(0), valid


class BareLossMessenger(Messenger):
    """Remove the constants of normalization from the densities of the observed sites.

    :raises ClosedFormError: if a continuous family does not define its constant.
    """

    def __init__(self, structure: ProgramStructure):
        super().__init__()
        self.observed = structure.observed

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.observed:
            msg["fn"] = _without_constants(msg["name"], msg["fn"])


class BareLoss(TorchDistribution):
    """Selected rows of a site whose log density lacks its constant: minus a non-negative loss."""

    arg_constraints = {}

    def __init__(self, name: str, selected: Selected):
        self.name, self.selected = name, selected
        super().__init__(selected.batch_shape, selected.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.selected.support

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.selected.log_prob(value)
        index = self.selected.flat_index().clamp_min(0).expand(log_prob.shape)
        return log_prob + self._constants(index, value)

    def _constants(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the least loss (*index.shape) of each row by itself."""
        family = self.selected.family
        if isinstance(family, QuadraticComponents):  # that of a row at the mean
            return 0.5 * family.kernel().offset[index]
        try:
            return family.alone_at(index, value)
        except ClosedFormError as error:
            raise _constants_unknown(self.name, family) from error


def _constants_unknown(name: str, family: Any) -> ClosedFormError:
    return ClosedFormError(
        f"site {name!r} ({type(family).__name__}) does not define the constants of its densities, "
        "without which losses are not positive: pass them as offset=, which is 0.0 for "
        "pseudo-likelihoods exp(-loss)"
    )


def _without_constants(name: str, fn: Any) -> Any:
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(_without_constants(name, fn.base_dist), fn._mask)
    # Probabilities of discrete outcomes are at most one, and factors are the loss itself.
    if isinstance(fn, Unit) or fn.support.is_discrete:
        return fn
    if not isinstance(fn, Selected):
        raise _constants_unknown(name, fn)
    return BareLoss(name, fn)


def _checked_labels(guide: LabeledGuide, rows: int) -> Tensor:
    labels = labels_of(guide, rows)
    if int(labels.min()) < 0:
        raise PartitionError(
            "some rows have no label yet (-1): run a step over all rows before the report"
        )
    return labels.long()


if __name__ == "__main__":
    main()
