r"""How far a fitted partition may be from the best one: estimates of the constants of its approximation guarantee.

The objective of parts S_1..S_K is :math:`F(S) = \sum_k f(S_k)`, with :math:`f(S_k)` the minimum
over theta of the regularised losses :math:`\ell(\theta; i) > 0` of its rows. What is stated here
was derived for this package.

Suppose that all losses lie in :math:`[\ell_{\min}, \ell_{\max}]`, whichever rows theta is fitted
to. A row that joins a part then adds at least :math:`\ell_{\min}`, since those before it cost no
less than their own minimum, and at most
:math:`\ell_{\max}`, its loss under their minimiser. Gains that differ by no more than this ratio
make F alpha-submodular with :math:`\alpha \ge \ell_{\min} / \ell_{\max}`, and of curvature
:math:`\kappa \le 1 - \ell_{\min} / \ell_{\max}`.

For n rows :math:`F(S) \le \frac{1}{\alpha} \sum_i f(\{i\})`, the modular bound that the first step
from the empty partition minimises. The best partition costs :math:`F^* \ge f(\{j\}) + (n - 1)`-fold
:math:`(1 - \kappa) \alpha f(\{i\})`, whichever row j comes first; the mean over j gives

.. math:: F \le \frac{n}{\alpha [1 + (n - 1) (1 - \kappa) \alpha]} F^*.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution, TorchDistribution, Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.distributions import Selected
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, PartitionError
from pyro_mixtures.infer.experts.labels import labels_of
from pyro_mixtures.infer.labelled_guide import LabelledGuide
from pyro_mixtures.options import check_finite, check_whole
from pyro_mixtures.poutine import ProgramStructure, log_joint, read_structure

# (row, component) pairs of a chunk.
_PAIRS = 1 << 21


class ApproximationReport(NamedTuple):
    """Losses of a fitted partition and the guarantee that they suggest; see :func:`approximation_report`."""

    rows: int  # n
    parts: int  # that have rows
    loss_min: float  # over rows and parts
    loss_max: float
    objective: float  # F of the partition, the constants of its densities taken away
    alpha: float  # estimate of a lower bound
    curvature: float  # estimate of an upper bound
    guarantee: float  # of F over the best F; infinite where a loss is zero

    def __str__(self) -> str:
        return "\n".join(
            [
                f"partition of {self.rows} rows into {self.parts} parts, F = {self.objective:.6g}",
                f"losses at the fitted parameters in [{self.loss_min:.4g}, {self.loss_max:.4g}]",
                f"estimates: alpha >= {self.alpha:.4g}, curvature <= {self.curvature:.4g}",
                f"F <= {self.guarantee:.4g} F*"
                + (" (says nothing)" if math.isinf(self.guarantee) else "")
                + ", if the losses of all other fits lie there too",
            ]
        )


def approximation_report(
    model: Callable,
    guide: LabelledGuide,
    x: Tensor,
    y: Tensor,
    *,
    offset: float | None = None,
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> ApproximationReport:
    r"""Estimate the approximation guarantee of a fitted partition from the losses of all rows under all its parts.

    The guarantee :math:`F \le n / (\alpha [1 + (n - 1)(1 - \kappa) \alpha]) F^*` and its constants
    are derived in this module. They are *estimates*: losses are looked at under the fitted
    parameters alone, while a certificate needs the bounds under the parameters of every subset of
    the rows. It is no certificate in particular where a part of one row can be fitted without loss,
    as regressions with a free bias can.

    Losses must be positive. Those of a density are minus its logarithm, constants of normalisation
    included: these are taken away, as the family states them, the least loss of a row by itself at
    the fitted scales: for regressions :math:`\log \sigma + \log(2 \pi) / 2`, which leaves
    :math:`((y - w x - b)^2 + \lambda |w|^2) / 2 \sigma^2`, for normals that of a row at its mean.
    Probabilities of discrete outcomes and ``pyro.factor`` have none. The losses of several observed
    sites, such as the ``input_density`` of an expert's place, add up. Parts without rows fit
    nothing and are left out, as are masked rows; weights are no part of it.

    :param model: the fitted program, :math:`\ell = -\log p(y | x, z)`, the regularisation included
        by its family.
    :param guide: with the ``labels`` (N,) of the rows.
    :param x, y: (N, P) and (N, ...), the rows of the fit: the program's arguments.
    :param offset: a constant that each row's loss is relieved of, instead of what its family
        states: 0.0 for pseudo-likelihoods exp(-loss), whose loss is positive as it is.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    :raises PartitionError: when the labels are not those of the rows. :raises ClosedFormError: when
        a family does not state its constants. :raises ModelError: when a loss is negative
        nevertheless.

    >>> from pyro_mixtures.guides import HardPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import MixtureOfRegressions
    >>> x = torch.arange(6.0).unsqueeze(-1)
    >>> model = MixtureOfRegressions(components=1, features=1, ridge=0.1, scale=1.0)
    >>> guide = HardPartition(model, components=1)
    >>> loss = EM(model, guide, empty="keep").step(x, x[:, 0].square())
    >>> print(approximation_report(model, guide, x, x[:, 0].square()))
    partition of 6 rows into 1 parts, F = ...
    losses at the fitted parameters in [..., ...]
    estimates: alpha >= ..., curvature <= ...
    F <= ... F*, if the losses of all other fits lie there too
    """
    if chunk is not None:
        check_whole(chunk=chunk)
    if offset is not None:
        check_finite(offset=offset)
    rows = Batches((x, y)).tensors
    labels = _labels(guide, len(rows[0])).to(rows[0].device)
    parts, place = torch.unique(labels, return_inverse=True)
    structure = read_structure(model, guide.site, tuple(tensor[:1] for tensor in rows), {})
    handled = model if offset is not None else BareLossMessenger(structure)(model)
    low, high, total, seen = math.inf, 0.0, 0.0, 0
    for part in torch.arange(len(labels), device=labels.device).split(
        chunk or max(1, _PAIRS // len(parts))
    ):
        some = tuple(tensor[part] for tensor in rows)
        loss, valid = _losses(handled, structure, some, parts, offset or 0.0, given)
        if not loss.numel():
            continue
        low, high = min(low, float(loss.min())), max(high, float(loss.max()))
        own = loss.gather(0, place[part][valid].unsqueeze(0))[0]
        total, seen = total + float(own.double().sum()), seen + len(own)
    return _report(seen, len(parts), low, high, total)


def guarantee(rows: int, alpha: float, curvature: float) -> float:
    """Most that F may be over the best F, for n rows; infinite where alpha is zero.

    >>> guarantee(10, 1.0, 0.0)
    1.0
    """
    return rows / (alpha * (1 + (rows - 1) * (1 - curvature) * alpha)) if alpha > 0 else math.inf


def _report(rows: int, parts: int, low: float, high: float, total: float) -> ApproximationReport:
    if not rows:
        raise DataError("all rows are masked: no loss is left to look at")
    # Without any loss F is zero for this partition and no other can be better.
    ratio = low / high if high > 0 else 1.0
    return ApproximationReport(
        rows, parts, low, high, total, ratio, 1 - ratio, guarantee(rows, ratio, 1 - ratio)
    )


def _losses(
    model: Callable,
    d: ProgramStructure,
    rows: tuple[Tensor, ...],
    parts: Tensor,
    offset: float,
    given: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Which rows (B,) are not masked, V of them, after their losses (K, V) under ``parts`` (K,)."""
    joint = log_joint(model, d, lambda *_: parts.unsqueeze(-1), rows, {}, given)
    if len(joint.index) != len(rows[0]):
        raise ModelError(
            f"the model took {len(joint.index)} of {len(rows[0])} rows: open its plate without subsample_size"
        )
    valid = torch.ones_like(joint.index, dtype=torch.bool) if joint.mask is None else joint.mask
    loss = -joint.log_density.expand(joint.log_joint.shape)[:, valid] - offset
    least, most = (float(loss.min()), float(loss.max())) if loss.numel() else (0.0, 0.0)
    # What rounding leaves of a loss of zero may be negative.
    if least < -64 * torch.finfo(loss.dtype).eps * max(1.0, most):
        raise ModelError(
            f"a loss is {least:.4g}: losses must not be negative; pass a lower offset="
        )
    return loss.clamp_min(0), valid


class BareLossMessenger(Messenger):
    """Takes the constants of normalisation away from the densities of the observed sites.

    :raises ClosedFormError: when a continuous family does not state them.
    """

    def __init__(self, structure: ProgramStructure):
        super().__init__()
        self.observed = structure.observed

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.observed:
            msg["fn"] = _bare(msg["name"], msg["fn"])


class BareLoss(TorchDistribution):
    """Selected rows of site ``name`` whose log density lacks its constants: minus a loss that is not negative."""

    arg_constraints = {}

    def __init__(self, name: str, selected: Selected):
        self.name, self.selected = name, selected
        super().__init__(selected.batch_shape, selected.event_shape, validate_args=False)

    @property
    def support(self):
        return self.selected.support

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.selected.log_prob(value)
        index = self.selected.flat_index().clamp_min(0).expand(log_prob.shape)
        return log_prob + self._constants(index, value)

    def _constants(self, index: Tensor, value: Tensor) -> Tensor:
        """Least loss (*index.shape) of the row by itself."""
        family = self.selected.family
        if isinstance(family, QuadraticComponents):  # that of a row at the mean
            return 0.5 * family.kernel().offset[index]
        try:
            return family.alone_at(index, value)
        except ClosedFormError as error:
            raise _unknown(self.name, family) from error


def _unknown(name: str, family: Any) -> ClosedFormError:
    return ClosedFormError(
        f"site {name!r} ({type(family).__name__}) does not state the constants of its densities, without which "
        "losses are not positive: pass them as offset=, which is 0.0 for pseudo-likelihoods exp(-loss)"
    )


def _bare(name: str, fn: Any) -> Any:
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(_bare(name, fn.base_dist), fn._mask)
    # The probability of a discrete outcome is at most one, and a factor says itself what a row
    # costs.
    if isinstance(fn, Unit) or fn.support.is_discrete:
        return fn
    if not isinstance(fn, Selected):
        raise _unknown(name, fn)
    return BareLoss(name, fn)


def _labels(guide: LabelledGuide, rows: int) -> Tensor:
    labels = labels_of(guide, rows)
    if int(labels.min()) < 0:
        raise PartitionError(
            "the partition has not seen all rows (labels of -1): run a step over all of them first"
        )
    return labels.long()
