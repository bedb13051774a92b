"""The predictions of all experts of a program, read off it as the means of its components."""

import inspect
from collections.abc import Callable, Mapping

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.distributions import Selected
from pyro_mixtures.errors import DataError, ModelError
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import CandidateMessenger, read_structure

# (row, component) pairs of a chunk.
_PAIRS = 1 << 21


class MeanMessenger(Messenger):
    """Puts the components' means in the place of outcomes that a program would draw: nothing is sampled.

    :param observed: the site whose means are wanted; after a run they are ``mean``. Observed or
        not, its value is replaced; other lazily selected sites are, where they are not observed.
    :raises ModelError: when that site is no family of :mod:`pyro_mixtures.distributions` selected
        by ``[z]``.
    """

    def __init__(self, observed: str):
        super().__init__()
        self.observed = observed

    def __enter__(self):
        self.mean: Tensor | None = None
        self.batch = torch.Size()
        self.nested: list[str] = []
        return super().__enter__()

    def _pyro_sample(self, msg) -> None:
        fn = msg["fn"].base_dist if isinstance(msg["fn"], MaskedDistribution) else msg["fn"]
        wanted = msg["name"] == self.observed
        if wanted and not isinstance(fn, Selected):
            raise ModelError(
                f"site {self.observed!r} is {type(fn).__name__}: experts must be a family of "
                "pyro_mixtures.distributions, selected by [z]"
            )
        if wanted or (isinstance(fn, Selected) and not msg["is_observed"]):
            msg["value"], msg["is_observed"] = fn.mean, True
        if wanted:
            self.mean = msg["value"]
            self.batch = fn.batch_shape
            self.nested = [frame.name for frame in msg["cond_indep_stack"] if frame.vectorized]


class Experts:
    """A program, read as the means of its components given rows of covariates.

    :raises ModelError: when it cannot be called with covariates alone, or has no such sites.
    """

    def __init__(
        self,
        model: Callable,
        x: Tensor,
        site: str,
        observed: str,
        given: Mapping[str, Tensor] | None = None,
    ):
        _check_call(model, x)
        self.reader, self.given = MeanMessenger(observed), given
        self.model = self.reader(model)
        self.structure = read_structure(self.model, site, (x[:1],), {})
        if observed not in self.structure.observed:
            raise ModelError(
                f"the model has no site {observed!r} in its data plate; its sites there are not experts"
            )
        if self.reader.nested != [self.structure.plate]:
            raise ModelError(
                f"site {observed!r} lies in plates {self.reader.nested}, not in the data plate alone"
            )

    def means(self, x: Tensor, candidates: Tensor) -> Tensor:
        """Means (S, B, ...) of rows (B, P) under ``candidates`` (S, B), or (S, 1) where rows share them."""
        messenger = CandidateMessenger(self.structure, lambda *_: candidates, self.given)
        with pyro.poutine.block(), torch.no_grad(), self.structure.threads():
            messenger(self.model)(x)
        mean, batch = self.reader.mean, self.reader.batch
        if mean is None or messenger.index is None or len(messenger.index) != len(x):
            raise ModelError(
                f"the model did not take all {len(x)} rows: open its data plate without subsample_size"
            )
        return mean.reshape(len(candidates), len(x), *mean.shape[len(batch) :])

    def all_means(self, x: Tensor) -> Tensor:
        """Means (B, C, ...) of rows under all components."""
        return self.means(
            x, torch.arange(self.structure.components, device=x.device).unsqueeze(-1)
        ).movedim(0, 1)

    def chunks(self, x: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
        """The rows, so many at a time."""
        if chunk is not None:
            check_whole(chunk=chunk)
        return x.split(chunk or max(1, _PAIRS // self.structure.components))


def expert_predictions(
    model: Callable,
    x: Tensor,
    *,
    site: str = "z",
    observed: str = "y",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The predictions (N, C, ...) of all experts for rows with covariates ``x`` (N, P): their means.

    :param model: a program ``model(x, y=None)`` whose site ``observed`` is a lazily selected
        family.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    :raises ModelError: when the program is not of that kind. :raises DataError: when there are no
        rows.

    >>> from pyro_mixtures.models import MixtureOfRegressions
    >>> model = MixtureOfRegressions(components=3, features=2)
    >>> expert_predictions(model, torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """
    x = covariates(x)
    experts = Experts(model, x, site, observed, given)
    return torch.cat([experts.all_means(part) for part in experts.chunks(x, chunk)])


def chosen(predictions: Tensor, labels: Tensor) -> Tensor:
    """Of ``predictions`` (N, C, ...) those (N, ...) of the experts ``labels`` (N,)."""
    return predictions[torch.arange(len(labels), device=labels.device), labels]


def mixed(predictions: Tensor, log_prob: Tensor) -> Tensor:
    """Means (N, ...) of ``predictions`` (N, C, ...) under ``log_prob`` (N, C); zero probability is no say at all."""
    weight = (
        log_prob.exp().to(predictions).reshape(*log_prob.shape, *(1,) * (predictions.dim() - 2))
    )
    return torch.where(weight > 0, weight * predictions, 0.0).sum(1)


def covariates(x: Tensor) -> Tensor:
    x = as_rows(x)
    if not len(x):
        raise DataError("no rows were given: predictions need at least one")
    return x


def _check_call(model: Callable, x: Tensor) -> None:
    try:
        inspect.signature(getattr(model, "forward", model)).bind(x)
    except TypeError as error:
        raise ModelError(
            f"the program cannot be called with covariates alone ({error}): give its outcome a default, y=None"
        ) from error
