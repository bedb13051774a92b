"""The E-step as an effect handler: run the model with z set to candidates, read the log joints."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.data.exact import check_exact
from pyro_mixtures.data.rows import numbered
from pyro_mixtures.distributions import RestrictedSupport, Selected
from pyro_mixtures.errors import DataError, ModelError, NumericalError
from pyro_mixtures.ops.search import add_with_best
from pyro_mixtures.poutine.structure import ProgramStructure

# Maps row numbers (B,), the size of the data set and the model's device to candidates (S, B) on
# that device, or (S, 1) where all rows share them; -1 pads.
Propose = Callable[[Tensor, int, torch.device], Tensor]


class Joint(NamedTuple):
    """Log joints of B rows with their S candidates, and the row numbers and weights of the rows."""

    candidates: Tensor  # (S, B) or (S, 1)
    log_joint: Tensor  # (S, B)  log p(c, x), -inf at padding
    log_density: Tensor  # (S, B) or (S, 1)  log p(x | c), without the weights
    index: Tensor  # type: ignore[assignment]  # (B,) row numbers; shadows tuple.index
    size: int  # N
    scale: Tensor | float  # of z, without the subsampling of the data plate: row weights
    mask: Tensor | None  # of z, (B,)

    @property
    def rows(self) -> int:
        """B."""
        return self.log_joint.shape[-1]


class CandidateMessenger(Messenger):
    """Sets the discrete site to candidates, and all other latent sites to given values.

    The candidates lie in a tensor dimension to the left of all plates, as the values of an
    enumerated site do; all later sites broadcast. Padding slots have log probability -inf. Use it
    with ``poutine.trace`` around the model::

        with poutine.block(), torch.no_grad():
            trace = poutine.trace(CandidateMessenger(structure, propose)(model)).get_trace(x)

    After a run ``candidates`` (S, B), ``index`` (B,) and ``size`` hold the candidates, the row
    numbers and the number of rows of the data set.

    :param structure: structure of the program.
    :param propose: returns the candidates of the rows, see :data:`Propose`.
    :param given: values of the other latent sites, by name.
    :param index: (B,) row numbers of an earlier run; a plate that subsamples would otherwise draw
        other rows in every run.
    :raises ModelError: when the program no longer has this structure, or another latent site has no
        value.
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
        self.fixed_index = index

    def __enter__(self) -> "CandidateMessenger":
        self.candidates: Tensor | None = None
        self.index: Tensor | None = None
        self.size = 0
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        name, structure = msg["name"], self.structure
        if name == structure.site:
            self._set_candidates(msg)
        elif name == structure.plate and self.fixed_index is not None and site_is_subsample(msg):
            msg["value"] = self.fixed_index
        elif name in self.given:
            msg["value"], msg["is_observed"] = self._given_value(name), True
        elif not msg["is_observed"] and not site_is_subsample(msg):
            raise ModelError(
                f"latent site {name!r} is not {structure.site!r} and has no value: pass "
                "global_guide= to the guide, a guide over the other latent sites, for example "
                f"AutoNormal(poutine.block(model, hide=[{structure.site!r}]))"
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.structure.plate and site_is_subsample(msg):
            self.index = msg["value"]

    def _given_value(self, name: str) -> Tensor:
        value = self.given[name]
        if value.dim() > self.structure.dims[name]:
            raise ModelError(
                f"site {name!r} has shape {tuple(value.shape)}, with more dimensions than the "
                "model gives it: vectorize_particles=True is not supported together with a guide "
                "of z; use num_particles= alone"
            )
        return value

    def _set_candidates(self, msg: Any) -> None:
        structure = self.structure
        frames = [frame for frame in msg["cond_indep_stack"] if frame.vectorized]
        if len(frames) != 1 or frames[0].name != structure.plate or frames[0].dim != structure.dim:
            raise ModelError(
                f"site {structure.site!r} lies in plates {[frame.name for frame in frames]}, "
                f"not in {structure.plate!r} as before"
            )
        self.size = frames[0].full_size or frames[0].size
        if self.index is None:
            raise ModelError(
                f"plate {structure.plate!r} does not show its row numbers: "
                "use pyro.plate with a size"
            )
        support = msg["fn"].enumerate_support(expand=False)
        if len(support) != structure.components:
            raise ModelError(
                f"site {structure.site!r} now has {len(support)} components; "
                f"the guide was made for {structure.components}"
            )
        self.candidates = self.propose(self.index, self.size, support.device)
        lead = (len(self.candidates),) + (1,) * (structure.nesting + structure.dim)
        trail = (self.candidates.shape[1],) + (1,) * (-1 - structure.dim)
        msg["value"], msg["is_observed"] = self.candidates.reshape(lead + trail), True
        # Padding (-1) is outside the support of the declared distribution; the wrapper gives it
        # probability zero.
        msg["fn"] = RestrictedSupport(msg["fn"], msg["value"].movedim(0, -1), validate_args=False)


def log_joint(
    model: Callable[..., Any],
    structure: ProgramStructure,
    propose: Propose,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    given: Mapping[str, Tensor] | None = None,
    index: Tensor | None = None,
    *,
    gradients: bool = False,
) -> Joint:
    """Evaluate the log joints of all rows with their proposed candidates.

    :param model: the Pyro program; its run is hidden from the caller's handlers.
    :param structure: its structure.
    :param propose: returns the candidates of the rows, see :data:`Propose`.
    :param args: the model's positional arguments.
    :param kwargs: its keyword arguments.
    :param given: values of its other latent sites, by name.
    :param index: (B,) row numbers to use in a plate that subsamples.
    :param gradients: whether to record gradients.
    :returns: the candidates and their log joints (S, B), with the rows' numbers, weights and mask.
    :raises NumericalError, DataError: when a row has no finite log joint.
    """
    messenger = CandidateMessenger(structure, propose, given, index)
    with pyro.poutine.block(), torch.set_grad_enabled(gradients):
        with pyro.poutine.trace() as tracer:
            try:
                messenger(model)(*args, **kwargs)
            except ValueError:
                # Pyro's validation reports parameters of distributions; name the param instead.
                _check_params(tracer.trace)
                raise
        with numbered(messenger.index):
            return _read_joint(tracer.trace, structure, messenger, args)


def _read_joint(
    trace: Any, structure: ProgramStructure, messenger: CandidateMessenger, args: tuple[Any, ...]
) -> Joint:
    if messenger.candidates is None or messenger.index is None:
        raise ModelError(
            f"the model no longer has the site {structure.site!r}, "
            "which it had when the guide first read it"
        )
    z = trace.nodes[structure.site]
    rows = len(messenger.index)
    prior = _per_row(_site_log_prob(z), structure)
    density: Tensor | None = None
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or name == structure.site:
            continue
        if any(frame.name == structure.plate for frame in node["cond_indep_stack"]):
            term = site_term(node, z, structure)
            density = term if density is None else density + term
    density = torch.zeros_like(prior) if density is None else density
    total, best = _sum_with_best(prior, density)
    mask = None
    if z["mask"] is not None:
        mask = _flat(torch.as_tensor(z["mask"], device=total.device)).expand(rows)
    scale = own_scale(z, structure)
    scale = _flat(scale).expand(rows) if isinstance(scale, Tensor) else scale
    total = total.expand(-1, rows)
    _check_finite(best.expand(rows), mask, trace, structure, args)
    return Joint(messenger.candidates, total, density, messenger.index, messenger.size, scale, mask)


def _sum_with_best(prior: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Return log joints (S, B), and each row's largest (B,), or NaN if it has one."""
    if torch.is_grad_enabled():  # the kernel does not record gradients
        total = prior + density
        return total, total.detach().amax(0)
    return add_with_best(prior, density)


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1) if rows.dim() else rows


def site_term(node: Any, z: Any, structure: ProgramStructure) -> Tensor:
    """Return the term (S, B) that an observed site adds to the log joint.

    It is masked, scaled relative to the site ``z``, and summed over nested plates.
    """
    scale, reference = own_scale(node, structure), own_scale(z, structure)
    log_prob = _site_log_prob(node)
    # Stock distributions would round integers. The families of this package check their rows.
    if not isinstance(node["fn"], Selected) and isinstance(node["value"], Tensor):
        check_exact(node["value"], log_prob.dtype, f"rows of site {node['name']!r}")
    return _per_row(scaled_like(log_prob, scale, reference), structure)


def _site_log_prob(node: Any) -> Tensor:
    log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    masked: Tensor = scale_and_mask(log_prob, mask=node["mask"])
    return masked


def own_scale(node: Any, structure: ProgramStructure) -> Tensor | float:
    """Return a site's scale without the subsampling of the data plate.

    What is left are row weights, and the subsampling of plates nested inside.
    """
    frame = next(f for f in node["cond_indep_stack"] if f.name == structure.plate)
    scale: Tensor | float = node["scale"] * frame.size / (frame.full_size or frame.size)
    return scale


def scaled_like(log_prob: Tensor, scale: Tensor | float, reference: Tensor | float) -> Tensor:
    """Scale ``log_prob`` relative to z.

    The log joint of a row is multiplied by the row's weight, the ``reference``, as a whole, since
    the entropy of its q(z) is.
    """
    if isinstance(scale, Tensor) and isinstance(reference, Tensor):
        if torch.equal(scale, reference):
            return log_prob
    elif not isinstance(scale, Tensor) and not isinstance(reference, Tensor):
        return log_prob if scale == reference else log_prob * (scale / reference)
    scale, reference = (
        torch.as_tensor(s, dtype=log_prob.dtype, device=log_prob.device) for s in (scale, reference)
    )
    return log_prob * torch.where(reference > 0, scale / reference, 1.0)


def _per_row(log_prob: Tensor, structure: ProgramStructure) -> Tensor:
    """Sum over nested plates: (S, [plates], B, [plates]) -> (S, B)."""
    lead = (1,) * (structure.nesting + 1 - log_prob.dim())
    full = log_prob.reshape(lead + log_prob.shape)
    nested = [dim for dim in range(-structure.nesting, 0) if dim != structure.dim]
    return full.sum(nested) if nested else full


def _check_finite(
    best: Tensor,
    mask: Tensor | None,
    trace: Any,
    structure: ProgramStructure,
    args: tuple[Any, ...],
) -> None:
    """Check each row's ``best`` log joint (B,), and name the cause if one is not finite."""
    # NaN in any candidate makes the best NaN; +inf is a density of zero width.
    invalid = ~best.isfinite()
    if mask is not None:
        invalid = invalid & mask
    if not bool(invalid.any()):
        return
    row = int(invalid.nonzero()[0])
    _check_observed(trace, structure)
    _check_covariates(row, len(best), args)
    _check_params(trace)
    raise NumericalError.at_row(
        row,
        f"row {{row}} has log joint {float(best[row])} under each of its candidates: its density "
        f"vanishes in {best.dtype}; scale the data, raise the variance floor, or use float64",
    )


def _check_observed(trace: Any, structure: ProgramStructure) -> None:
    for name in structure.observed:
        value = trace.nodes[name]["value"]
        if value.is_floating_point() and not bool(value.isfinite().all()):
            entry = (~value.isfinite()).nonzero()[0].tolist()
            row_dim = value.dim() - len(trace.nodes[name]["fn"].event_shape) + structure.dim
            place = ["{row}" if dim == row_dim else str(i) for dim, i in enumerate(entry)]
            raise DataError.at_row(
                entry[row_dim],
                f"observed site {name!r} holds {float(value[tuple(entry)])} at "
                f"[{', '.join(place)}]: remove such rows, or fill them in "
                "(pyro_mixtures.infer.conditional imputes missing features)",
            )


def _check_covariates(row: int, rows: int, args: tuple[Any, ...]) -> None:
    """Check arguments of the model that are not the value of any site."""
    for number, argument in enumerate(args):
        if not isinstance(argument, Tensor) or not argument.dim() or len(argument) != rows:
            continue
        if argument.is_floating_point() and not bool(argument[row].isfinite().all()):
            raise DataError.at_row(
                row,
                f"row {{row}} of the model's argument {number} contains NaN or infinity: "
                "remove such rows first",
            )


def _check_params(trace: Any) -> None:
    for name, node in trace.nodes.items():
        if node["type"] == "param" and not bool(node["value"].isfinite().all()):
            raise NumericalError(
                f"param {name!r} is not finite: the last update diverged; "
                "lower the learning rate, or raise the variances"
            )
