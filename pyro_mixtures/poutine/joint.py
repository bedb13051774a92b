"""The E-step as an effect: run the model with z := candidates and read every candidate's log joint."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.distributions import RestrictedSupport
from pyro_mixtures.errors import DataError, ModelError, NumericalError
from pyro_mixtures.ops.search import add_with_best
from pyro_mixtures.poutine.structure import ProgramStructure

# Row numbers (B,), the data set's size and the model's device -> candidates (S, B) there, or (S, 1)
# where all rows share them; -1 pads.
Propose = Callable[[Tensor, int, torch.device], Tensor]


class Joint(NamedTuple):
    """Log joints of B rows with their S candidates, and what the data plate said of the rows."""

    candidates: Tensor  # (S, B) or (S, 1)
    log_joint: Tensor  # (S, B)  log p(c, x), -inf at padding
    log_density: Tensor  # (S, B) or (S, 1)  log p(x | c), without the weights
    index: Tensor  # type: ignore[assignment]  # (B,) row numbers; shadows tuple.index
    size: int  # N
    scale: Tensor | float  # of z beyond the plate's own: row weights
    mask: Tensor | None  # of z, (B,)

    @property
    def rows(self) -> int:
        """B."""
        return self.log_joint.shape[-1]


class CandidateMessenger(Messenger):
    """Sets the site ``structure.site`` to ``propose(index, size)`` and takes all other latent sites from ``given``.

    The candidates lie in a tensor dimension to the left of every plate, as an enumerated site's
    would; what comes after them broadcasts. Used with ``poutine.trace`` around the model::

        with poutine.block(), torch.no_grad():
            trace = poutine.trace(CandidateMessenger(declaration, propose)(model)).get_trace(x)

    Padding slots of the candidates have log probability -inf. A plate that subsamples draws other
    rows in every run: ``index`` (B,) repeats those of an earlier one.
    """

    def __init__(
        self,
        structure: ProgramStructure,
        propose: Propose,
        given: Mapping[str, Tensor] | None = None,
        index: Tensor | None = None,
    ):
        super().__init__()
        self.structure, self.propose, self.given = structure, propose, dict(given or {})
        self.rows = index

    def __enter__(self):
        self.candidates: Tensor | None = None
        self.index: Tensor | None = None
        self.size = 0
        return super().__enter__()

    def _pyro_sample(self, msg) -> None:
        name, d = msg["name"], self.structure
        if name == d.site:
            self._set_candidates(msg)
        elif name == d.plate and self.rows is not None and site_is_subsample(msg):
            msg["value"] = self.rows
        elif name in self.given:
            msg["value"], msg["is_observed"] = self._given_value(name), True
        elif not msg["is_observed"] and not site_is_subsample(msg):
            raise ModelError(
                f"latent site {name!r} is not {d.site!r} and has no value: give the guide global_guide=, a guide over the "
                f"other latent sites, for example AutoNormal(poutine.block(model, hide=[{d.site!r}]))"
            )

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] == self.structure.plate and site_is_subsample(msg):
            self.index = msg["value"]

    def _given_value(self, name: str) -> Tensor:
        value = self.given[name]
        if value.dim() > self.structure.dims[name]:
            raise ModelError(
                f"site {name!r} has shape {tuple(value.shape)}, a dimension more than the model gives it: "
                "vectorize_particles=True is not supported beside a guide of z; use num_particles= alone"
            )
        return value

    def _set_candidates(self, msg) -> None:
        d = self.structure
        frames = [frame for frame in msg["cond_indep_stack"] if frame.vectorized]
        if len(frames) != 1 or frames[0].name != d.plate or frames[0].dim != d.dim:
            raise ModelError(
                f"site {d.site!r} lies in plates {[f.name for f in frames]}, not in {d.plate!r} as before"
            )
        self.size = frames[0].full_size or frames[0].size
        if self.index is None:
            raise ModelError(
                f"plate {d.plate!r} does not show its row numbers: use pyro.plate with a size"
            )
        support = msg["fn"].enumerate_support(expand=False)
        if len(support) != d.components:
            raise ModelError(
                f"site {d.site!r} now has {len(support)} components; the guide was made for {d.components}"
            )
        self.candidates = self.propose(self.index, self.size, support.device)
        lead = (len(self.candidates),) + (1,) * (d.nesting + d.dim)
        trail = (self.candidates.shape[1],) + (1,) * (-1 - d.dim)
        msg["value"], msg["is_observed"] = self.candidates.reshape(lead + trail), True
        # Padding (-1) is outside the declared distribution's support; the wrapper gives it
        # probability zero.
        msg["fn"] = RestrictedSupport(msg["fn"], msg["value"].movedim(0, -1), validate_args=False)


def log_joint(
    model: Callable,
    structure: ProgramStructure,
    propose: Propose,
    args: tuple,
    kwargs: Mapping[str, Any],
    given: Mapping[str, Tensor] | None = None,
    index: Tensor | None = None,
    *,
    gradients: bool = False,
) -> Joint:
    """Evaluate the log joint of every row with its proposed candidates; no trace left outside.

    :param gradients: whether to record them; by default none are.
    :raises NumericalError, DataError: when a row has no finite log joint at all.
    """
    messenger = CandidateMessenger(structure, propose, given, index)
    with pyro.poutine.block(), torch.set_grad_enabled(gradients):
        with pyro.poutine.trace() as tracer:
            try:
                messenger(model)(*args, **kwargs)
            except ValueError:
                # Pyro's validation meets broken params first, and can only say that a distribution
                # refuses them.
                _check_params(tracer.trace)
                raise
        return _read_joint(tracer.trace, structure, messenger, args)


def _read_joint(trace, d: ProgramStructure, messenger: CandidateMessenger, args: tuple) -> Joint:
    if messenger.candidates is None or messenger.index is None:
        raise ModelError(
            f"the model no longer has the site {d.site!r} that it had when the guide first read it"
        )
    z = trace.nodes[d.site]
    rows, own = len(messenger.index), own_scale(z, d)
    prior = _per_row(_site_log_prob(z), d)
    density: Tensor | None = None
    for name, node in trace.nodes.items():
        inside = node["type"] == "sample" and any(
            f.name == d.plate for f in node["cond_indep_stack"]
        )
        if not inside or name == d.site:
            continue
        term = site_term(node, z, d)
        density = term if density is None else density + term
    density = torch.zeros_like(prior) if density is None else density
    total, best = _sum_with_best(prior, density)
    mask = (
        None
        if z["mask"] is None
        else _flat(torch.as_tensor(z["mask"], device=total.device)).expand(rows)
    )
    scale = _flat(own).expand(rows) if isinstance(own, Tensor) else own
    total = total.expand(-1, rows)
    _check_finite(best.expand(rows), mask, trace, d, args)
    return Joint(messenger.candidates, total, density, messenger.index, messenger.size, scale, mask)


def _sum_with_best(prior: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Log joints (S, B), and each row's largest (B,), or its NaN."""
    if torch.is_grad_enabled():  # which the kernel does not record
        total = prior + density
        return total, total.detach().amax(0)
    return add_with_best(prior, density)


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1) if rows.dim() else rows


def site_term(node, z, d: ProgramStructure) -> Tensor:
    """An observed site's part (S, B) of the log joint: masked, scaled relative to ``z``, nested plates summed."""
    return _per_row(scaled_like(_site_log_prob(node), own_scale(node, d), own_scale(z, d)), d)


def _site_log_prob(node) -> Tensor:
    return scale_and_mask(
        node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"]), mask=node["mask"]
    )


def own_scale(node, d: ProgramStructure):
    """The site's scale without the data plate's subsampling: row weights, and plates nested inside."""
    frame = next(f for f in node["cond_indep_stack"] if f.name == d.plate)
    return node["scale"] * frame.size / (frame.full_size or frame.size)


def scaled_like(log_prob: Tensor, scale, reference) -> Tensor:
    """``log_prob`` by the site's scale relative to that of z, whose entropy is scaled by ``reference``."""
    if (
        isinstance(scale, Tensor)
        and isinstance(reference, Tensor)
        and torch.equal(scale, reference)
    ):
        return log_prob
    if not isinstance(scale, Tensor) and not isinstance(reference, Tensor):
        return log_prob if scale == reference else log_prob * (scale / reference)
    scale, reference = (
        torch.as_tensor(s, dtype=log_prob.dtype, device=log_prob.device) for s in (scale, reference)
    )
    return log_prob * torch.where(reference > 0, scale / reference, 1.0)


def _per_row(log_prob: Tensor, d: ProgramStructure) -> Tensor:
    """Sum nested plates out: (S, [plates], B, [plates]) -> (S, B)."""
    full = log_prob.reshape((1,) * (d.nesting + 1 - log_prob.dim()) + log_prob.shape)
    nested = [dim for dim in range(-d.nesting, 0) if dim != d.dim]
    return full.sum(nested) if nested else full


def _check_finite(
    best: Tensor, mask: Tensor | None, trace, d: ProgramStructure, args: tuple
) -> None:
    """Look at each row's ``best`` log joint (B,)."""
    # NaN in any candidate poisons the row; +inf would be a density of zero width.
    bad = ~best.isfinite()
    if mask is not None:
        bad = bad & mask
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    for name in d.observed:
        value = trace.nodes[name]["value"]
        if value.is_floating_point() and not bool(value.isfinite().all()):
            where = (~value.isfinite()).nonzero()[0].tolist()
            raise DataError(
                f"observed site {name!r} holds {float(value[tuple(where)])} at {where}: remove such rows, or fill them "
                "in (pyro_mixtures.infer.conditional imputes missing features)"
            )
    for number, given in enumerate(args):  # covariates are no site's value
        rows = (
            given[row]
            if isinstance(given, Tensor) and given.dim() and len(given) == len(best)
            else None
        )
        if rows is not None and rows.is_floating_point() and not bool(rows.isfinite().all()):
            raise DataError(
                f"row {row} of the model's argument {number} holds NaN or infinity: remove such rows first"
            )
    _check_params(trace)
    raise NumericalError(
        f"row {row} has log joint {float(best[row])} under each of its candidates: its density vanishes in "
        f"{best.dtype}; scale the data, raise the variance floor, or use float64"
    )


def _check_params(trace) -> None:
    for name, node in trace.nodes.items():
        if node["type"] == "param" and not bool(node["value"].isfinite().all()):
            raise NumericalError(
                f"param {name!r} is not finite: the last update diverged; lower the learning rate or raise variances"
            )
