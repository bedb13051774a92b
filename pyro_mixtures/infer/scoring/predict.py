"""What a fitted mixture says of rows: draws, noise-free signals, missing features."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.data.rows import as_arguments, as_rows
from pyro_mixtures.distributions import Selected
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import CandidateMessenger, Posterior, read_structure

_GAIN_ELEMENTS = 1 << 25


def sample(model: Callable, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Draw from the program with its observations released: values of all sample sites by name.

    ``sample(mixture, size=100)`` draws 100 rows of a mixture of :mod:`pyro_mixtures.models`; other
    programs get arguments that fix the plate's size, mixtures of experts their covariates:
    ``sample(experts, x)``.

    :raises ModelError: when the program cannot be called with these arguments.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> draw = sample(GaussianMixture(components=3, features=2), size=5)
    >>> draw["x"].shape, draw["z"].shape
    (torch.Size([5, 2]), torch.Size([5]))
    """
    args, kwargs = as_arguments(args, kwargs)
    _check_call(model, args, kwargs)
    with torch.no_grad(), pyro.poutine.block():
        trace = pyro.poutine.trace(pyro.poutine.uncondition(model)).get_trace(*args, **kwargs)
    nodes: Any = trace.nodes
    return {
        name: nodes[name]["value"]
        for name in trace.stochastic_nodes
        if not site_is_subsample(nodes[name])
    }


@torch.no_grad()
def reconstruct(
    model: Callable,
    *rows: Tensor,
    noise: float | Tensor | None = None,
    observed: str = "x",
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
    top: int = 8,
) -> Tensor:
    """Posterior mean (N, D) of each row's noise-free signal, under the mixture.

    :param noise: standard deviation of the measurement noise, one number or (D,). None takes the
        family's own noise part: the ``noise`` of factor analyzers. Families without one need the
        number.
    :param observed: the site whose rows are wanted.
    :param guide: None evaluates all components; a truncated guide searches each row's candidates.
    :param top: how many of a row's most probable components are averaged, their responsibilities
        renormalised.
    """
    check_whole(top=top)
    parts = []
    for posterior, part in posteriors(model, rows, guide, site, given, chunk, _gain_rows(rows)):
        selected, value = _selected(model, part, posterior, guide, observed, site, given)
        variance = None if noise is None else _variance(noise, value)
        posterior = posterior.top(top)
        parts.append(_mix(posterior, lambda z: selected.family.signal_at(z, value, variance)))  # noqa: B023
    return torch.cat(parts)


@torch.no_grad()
def conditional(
    model: Callable,
    *rows: Tensor,
    observed: str = "x",
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The rows of site ``observed`` with their missing (NaN) entries replaced by their conditional means.

    Responsibilities, too, are those given the features that are present. Rows are treated together
    that miss the same features; a row that misses all of them gets the mixture's mean.
    """
    tensors = tuple(as_rows(tensor) for tensor in rows)
    place = _argument_of(model, tensors, observed)
    filled = tensors[place].clone()
    patterns, member = torch.unique(filled.isnan(), dim=0, return_inverse=True)
    for number, missing in enumerate(patterns):
        if not bool(missing.any()):
            continue
        who = (member == number).nonzero()[:, 0]
        part = tuple(tensor[who] for tensor in tensors)
        filled[who] = _fill(model, part, missing, observed, guide, site, given, chunk).to(
            filled.dtype
        )
    return filled


def _check_call(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(getattr(model, "forward", model))
    except ValueError:  # a handled program does not tell its arguments
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            f"the program cannot be called with these arguments ({error}): programs that need rows, as covariates of "
            "experts, are given them, sample(model, x)"
        ) from error


def _variance(noise: float | Tensor, value: Tensor) -> Tensor:
    """Squares (D,) of the noise's standard deviations, for rows ``value`` (N, D)."""
    try:
        deviation = torch.as_tensor(noise, dtype=value.dtype, device=value.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"noise={noise!r} must be one number, or one for each feature") from error
    if deviation.shape not in ((), value.shape[-1:]):
        raise OptionError(
            f"noise is {tuple(deviation.shape)}: give one number, or one for each of {value.shape[-1]}"
        )
    if not bool((deviation.isfinite() & (deviation >= 0)).all()):
        raise OptionError(
            f"noise={noise} must be finite and not negative: it is a standard deviation"
        )
    return deviation.square().expand(value.shape[-1])


def _fill(model, part, missing: Tensor, observed: str, guide, site, given, chunk) -> Tensor:
    features = (~missing).nonzero()[:, 0]
    handled = MarginalMessenger(observed, features)(model)
    parts = []
    for posterior, rows in posteriors(handled, part, guide, site, given, chunk, _gain_rows(part)):
        selected, value = _selected(model, rows, posterior, guide, observed, site, given)
        seen = value[:, features]
        mean = _mix(posterior, lambda z: selected.family.conditional_mean_at(z, seen, features))  # noqa: B023
        parts.append(torch.where(missing, mean, value))
    return torch.cat(parts)


class MarginalMessenger(Messenger):
    """Observes only some ``features`` of the rows at ``site``: the components' marginal distributions."""

    def __init__(self, site: str, features: Tensor):
        super().__init__()
        self.site, self.features = site, features

    def _pyro_sample(self, msg) -> None:
        if msg["name"] != self.site:
            return
        fn = msg["fn"]
        if not isinstance(fn, Selected):
            raise ClosedFormError(
                f"site {self.site!r} is {type(fn).__name__}, whose marginal distributions are not known: use a normal "
                "family of pyro_mixtures.distributions, selected by [z]"
            )
        msg["fn"] = Selected(fn.family.marginal(self.features), fn.z, batch_shape=fn.batch_shape)
        msg["value"] = msg["value"][..., self.features]


def _mix(posterior: Posterior, value_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Responsibility-weighted mean over the candidates, one candidate at a time: no (S, B, D) array."""
    total: Tensor | None = None
    probs = posterior.probs / posterior.probs.sum(0)
    for z, q in zip(posterior.candidates, probs, strict=True):
        term = q.unsqueeze(-1) * value_at(z.expand(q.shape))
        total = term if total is None else total + term
    assert total is not None
    return total


def _gain_rows(rows: tuple[Tensor, ...]) -> int:
    """Rows whose gain matrices (D, D) may be alive at once."""
    features = max(as_rows(tensor)[0].numel() for tensor in rows)
    return max(64, _GAIN_ELEMENTS // features**2)


def _selected(
    model, part, posterior: Posterior, guide, observed: str, site: str, given
) -> tuple[Selected, Tensor]:
    structure = guide.read(*part) if guide is not None else read_structure(model, site, part, {})
    messenger = CandidateMessenger(
        structure, lambda *_: posterior.candidates, given, posterior.index
    )
    with pyro.poutine.block(), torch.no_grad():
        nodes: Any = pyro.poutine.trace(messenger(model)).get_trace(*part).nodes
    if observed not in structure.observed:
        raise ModelError(
            f"the model has no observed site {observed!r}; it has {list(structure.observed)}"
        )
    fn, value = nodes[observed]["fn"], nodes[observed]["value"]
    if structure.dim != -1 or value.dim() != 2:
        raise ModelError(f"site {observed!r} must observe rows (N, D) in a data plate of dim=-1")
    if not isinstance(fn, Selected):
        raise ClosedFormError(
            f"site {observed!r} is {type(fn).__name__}: use a normal family of pyro_mixtures.distributions, selected by [z]"
        )
    return fn, value


def _argument_of(model: Callable, tensors: tuple[Tensor, ...], observed: str) -> int:
    """Which of the model's arguments is observed at the site."""
    with pyro.poutine.block(), torch.no_grad():
        trace = pyro.poutine.trace(model).get_trace(*tensors)
    if observed not in trace.nodes:
        raise ModelError(f"the model has no site {observed!r}")
    value = trace.nodes[observed]["value"]
    for place, tensor in enumerate(tensors):
        if value is tensor:
            return place
    raise DataError(f"site {observed!r} does not observe one of the arguments as it was given")
