"""Predictions of a fitted mixture: draws, noise-free signals, missing features."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_mixtures.data.rows import as_arguments, as_rows, numbered
from pyro_mixtures.distributions import Selected
from pyro_mixtures.distributions.components import match_dtype
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import CandidateMessenger, Posterior, read_structure

# Numbers in the gain matrices (D, D) of the rows that are evaluated at once.
_GAIN_ELEMENTS = 1 << 25
_MIN_ROWS = 64


def sample(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Draw from the program without its observations.

    ``sample(mixture, size=100)`` draws 100 rows of a mixture of :mod:`pyro_mixtures.models`. Other
    programs need arguments that fix the size of the plate; mixtures of experts need covariates,
    ``sample(experts, x)``.

    :param args, kwargs: arguments of the program.
    :returns: the values of all sample sites, by name.
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
    model: Callable[..., Any],
    *rows: Tensor,
    noise: float | Tensor | None = None,
    observed: str = "x",
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
    top: int = 8,
) -> Tensor:
    """Estimate the noise-free signal of each row: its posterior mean under the mixture.

    :param rows: the model's tensor arguments, N rows each.
    :param noise: standard deviation of the measurement noise, one number or (D,). None takes the
        noise of the family itself, as factor analyzers have it; other families need a number.
    :param observed: the site of the rows that are reconstructed.
    :param guide: None evaluates all components; a truncated guide searches each row's candidates.
    :param site: name of the discrete site, if there is no guide.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once; None chooses by the memory that they need.
    :param top: the number of most probable components that are averaged for each row, with
        renormalized responsibilities.
    :returns: (N, D).
    :raises ClosedFormError: when the components are not of a normal family.
    :raises OptionError: when ``noise`` or ``top`` has an impossible value.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.randn(5, 2)
    >>> reconstruct(GaussianMixture(components=3, features=2), x, noise=0.1).shape
    torch.Size([5, 2])
    """
    check_whole(top=top)
    query = _Query(model, observed, guide, site, given, chunk)
    chunks = []
    for posterior, value, family in query.posteriors(model, rows):
        variance = None if noise is None else _variance(noise, value)
        best = posterior.top(top)
        chunks.append(_mean(best, lambda z: family.signal_at(z, value, variance)))  # noqa: B023
    return torch.cat(chunks)


@torch.no_grad()
def conditional(
    model: Callable[..., Any],
    *rows: Tensor,
    observed: str = "x",
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Replace missing (NaN) entries of rows by their conditional means under the mixture.

    Responsibilities are conditioned on the features that are present, too. A row without any
    features gets the mean of the mixture. Rows that miss the same features are evaluated together.

    :param rows: the model's tensor arguments, N rows each.
    :param observed: the site of the rows whose entries are missing.
    :param guide, site, given, chunk: as in :func:`reconstruct`.
    :returns: (N, D), the rows of site ``observed`` without missing entries.
    :raises ClosedFormError: when the components are not of a normal family.
    :raises DataError: when the site does not observe one of the arguments.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.tensor([[0.5, torch.nan], [0.1, 0.2]])
    >>> bool(conditional(GaussianMixture(components=3, features=2), x).isfinite().all())
    True
    """
    tensors = tuple(as_rows(tensor) for tensor in rows)
    query = _Query(model, observed, guide, site, given, chunk)
    filled = tensors[_argument_of(model, tensors, observed)].clone()
    patterns, pattern_of_row = torch.unique(filled.isnan(), dim=0, return_inverse=True)
    for number, missing in enumerate(patterns):
        if bool(missing.any()):
            index = (pattern_of_row == number).nonzero()[:, 0]
            same_pattern = tuple(tensor[index] for tensor in tensors)
            with numbered(index):
                filled[index] = _fill(query, same_pattern, missing).to(filled.dtype)
    return filled


class _Query(NamedTuple):
    """Which site of which program is predicted, and how rows are scored."""

    model: Callable[..., Any]
    observed: str
    guide: PartitionGuide | None
    site: str
    given: Mapping[str, Tensor] | None
    chunk: int | None

    def posteriors(
        self, model: Callable[..., Any], rows: tuple[Tensor, ...]
    ) -> Iterator[tuple[Posterior, Tensor, Any]]:
        """Yield q(z), the observed values (B, D) and the family of each chunk of ``rows``.

        :param model: the program, or the program under effect handlers, that gives q(z).
        """
        features = max(as_rows(tensor)[0].numel() for tensor in rows)
        max_rows = max(_MIN_ROWS, _GAIN_ELEMENTS // features**2)
        chunks = posteriors(
            model, rows, self.guide, self.site, self.given, self.chunk, max_rows=max_rows
        )
        for posterior, row_chunk in chunks:
            yield (posterior, *self._observed_site(posterior, row_chunk))

    def _observed_site(self, posterior: Posterior, rows: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        """Return the values (B, D) and the family of the observed site."""
        if self.guide is None:
            structure = read_structure(self.model, self.site, rows, {})
        else:
            structure = self.guide.read(*rows)

        def propose(*_: Any) -> Tensor:
            return posterior.candidates

        messenger = CandidateMessenger(structure, propose, self.given, posterior.index)
        with pyro.poutine.block(), torch.no_grad():
            nodes: Any = pyro.poutine.trace(messenger(self.model)).get_trace(*rows).nodes
        if self.observed not in structure.observed:
            raise ModelError(
                f"the model has no observed site {self.observed!r}; it has "
                f"{list(structure.observed)}"
            )
        fn, value = nodes[self.observed]["fn"], nodes[self.observed]["value"]
        if structure.dim != -1 or value.dim() != 2:
            raise ModelError(
                f"site {self.observed!r} must observe rows (N, D) in a data plate of dim=-1"
            )
        if not isinstance(fn, Selected):
            raise ClosedFormError(
                f"site {self.observed!r} is {type(fn).__name__}: use a normal family of "
                "pyro_mixtures.distributions, selected by [z]"
            )
        # Bytes, for example, would wrap around in differences from the means.
        params = next(iter(fn.family.arguments.values()))
        return match_dtype(value, params), fn.family


def _fill(query: _Query, rows: tuple[Tensor, ...], missing: Tensor) -> Tensor:
    """Return the observed rows with the features marked True (D,) filled in."""
    features = (~missing).nonzero()[:, 0]
    marginal = MarginalMessenger(query.observed, features)(query.model)
    chunks = []
    for posterior, value, family in query.posteriors(marginal, rows):
        present = value[:, features]
        mean = _mean(
            posterior,
            lambda z: family.conditional_mean_at(z, present, features),  # noqa: B023
        )
        chunks.append(torch.where(missing, mean, value))
    return torch.cat(chunks)


class MarginalMessenger(Messenger):
    """Restricts the components and the rows at ``site`` to some ``features``."""

    def __init__(self, site: str, features: Tensor):
        super().__init__()
        self.site, self.features = site, features

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] != self.site:
            return
        fn = msg["fn"]
        if not isinstance(fn, Selected):
            raise ClosedFormError(
                f"site {self.site!r} is {type(fn).__name__}, whose marginal distributions are not "
                "known: use a normal family of pyro_mixtures.distributions, selected by [z]"
            )
        msg["fn"] = Selected(fn.family.marginal(self.features), fn.z, batch_shape=fn.batch_shape)
        msg["value"] = msg["value"][..., self.features]


def _mean(posterior: Posterior, value_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean (B, D) of ``value_at`` over the candidates, by responsibilities.

    Candidates are evaluated one by one, since (S, B, D) would be large.
    """
    probs = posterior.probs / posterior.probs.sum(0)
    total: Tensor | None = None
    for z, q in zip(posterior.candidates, probs, strict=True):
        term = q.unsqueeze(-1) * value_at(z.expand(q.shape))
        total = term if total is None else total + term
    assert total is not None
    return total


def _variance(noise: float | Tensor, value: Tensor) -> Tensor:
    """Return the squares (D,) of the noise's standard deviations, for rows ``value`` (N, D)."""
    try:
        deviation = torch.as_tensor(noise, dtype=value.dtype, device=value.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"noise={noise!r} must be one number, or one per feature") from error
    if deviation.shape not in ((), value.shape[-1:]):
        raise OptionError(
            f"noise has shape {tuple(deviation.shape)}: pass one number, or one for each of "
            f"{value.shape[-1]} features"
        )
    if not bool((deviation.isfinite() & (deviation >= 0)).all()):
        raise OptionError(
            f"noise={noise} must be finite and not negative: it is a standard deviation"
        )
    return deviation.square().expand(value.shape[-1])


def _check_call(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    program = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(program)
    except ValueError:  # a program under handlers does not tell its arguments
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            f"the program cannot be called with these arguments ({error}): pass the rows that it "
            "needs, for example covariates, sample(model, x)"
        ) from error


def _argument_of(model: Callable[..., Any], tensors: tuple[Tensor, ...], observed: str) -> int:
    """Return the number of the argument that is observed at the site."""
    with pyro.poutine.block(), torch.no_grad():
        trace = pyro.poutine.trace(model).get_trace(*tensors)
    sites = trace.observation_nodes
    if observed not in sites:
        raise ModelError(f"the model has no observed site {observed!r}; it has {sites}")
    value = trace.nodes[observed]["value"]
    for number, tensor in enumerate(tensors):
        if value is tensor:
            return number
    raise DataError(
        f"site {observed!r} does not observe one of the arguments unchanged: pass the rows as the "
        "site observes them"
    )
