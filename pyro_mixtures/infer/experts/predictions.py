"""Predictions of all experts of a program: the means of its components given covariates."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

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

# (row, component) pairs per chunk.
_PAIRS = 1 << 21


class MeanMessenger(Messenger):
    """Replace outcomes by the means of their components, so that a program samples no outcome.

    :param observed: the site whose means are recorded in ``mean``. Its value is replaced whether
        it is observed or not; other sites of selected components are replaced unless observed.
    :raises ModelError: if that site is no family of :mod:`pyro_mixtures.distributions` selected
        by ``[z]``.
    """

    def __init__(self, observed: str):
        super().__init__()
        self.observed = observed

    def __enter__(self) -> Self:
        self.mean: Tensor | None = None
        self.batch_shape = torch.Size()
        self.plates: list[str] = []
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"].base_dist if isinstance(msg["fn"], MaskedDistribution) else msg["fn"]
        recorded = msg["name"] == self.observed
        if recorded and not isinstance(fn, Selected):
            raise ModelError(
                f"site {self.observed!r} is {type(fn).__name__}: experts must be a family of "
                "pyro_mixtures.distributions, selected by [z]"
            )
        if recorded or (isinstance(fn, Selected) and not msg["is_observed"]):
            msg["value"], msg["is_observed"] = fn.mean, True
        if recorded:
            self.mean = msg["value"]
            self.batch_shape = fn.batch_shape
            self.plates = [frame.name for frame in msg["cond_indep_stack"] if frame.vectorized]


class Experts:
    """The component means of a program as a function of covariates.

    :param x: (N, P) covariates; their first row is used to read the program.
    :param site: name of the discrete site.
    :param observed: name of the site of the outcomes.
    :param given: values of the model's other latent sites, if it has any.
    :raises ModelError: if the program cannot be called with covariates alone, or has no such sites.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        x: Tensor,
        site: str,
        observed: str,
        given: Mapping[str, Tensor] | None = None,
    ):
        _check_call(model, x)
        self.reader = MeanMessenger(observed)
        self.given = given
        self.model = self.reader(model)
        self.structure = read_structure(self.model, site, (x[:1],), {})
        if observed not in self.structure.observed:
            raise ModelError(
                f"the model has no site {observed!r} in its data plate: pass observed= the name of "
                "the experts' site"
            )
        if self.reader.plates != [self.structure.plate]:
            raise ModelError(
                f"site {observed!r} lies in plates {self.reader.plates}, but must lie in the data "
                "plate alone"
            )

    def means(self, x: Tensor, candidates: Tensor) -> Tensor:
        """Return means (S, B, ...) of rows (B, P).

        :param candidates: (S, B) components of each row, or (S, 1) shared by all rows.
        """
        messenger = CandidateMessenger(self.structure, lambda *_: candidates, self.given)
        with pyro.poutine.block(), torch.no_grad(), self.structure.threads():
            messenger(self.model)(x)
        mean = self.reader.mean
        if mean is None or messenger.index is None or len(messenger.index) != len(x):
            raise ModelError(
                f"the model did not use all {len(x)} rows: open its data plate without "
                "subsample_size"
            )
        event_shape = mean.shape[len(self.reader.batch_shape) :]
        return mean.reshape(len(candidates), len(x), *event_shape)

    def all_means(self, x: Tensor) -> Tensor:
        """Return means (B, C, ...) of rows under all components."""
        components = torch.arange(self.structure.components, device=x.device)
        return self.means(x, components.unsqueeze(-1)).movedim(0, 1)

    def chunks(self, x: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
        """Split the rows into chunks of ``chunk`` rows, or of a size that bounds the memory."""
        if chunk is not None:
            check_whole(chunk=chunk)
        return x.split(chunk or max(1, _PAIRS // self.structure.components))


def expert_predictions(
    model: Callable[..., Any],
    x: Tensor,
    *,
    site: str = "z",
    observed: str = "y",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Predict the outcomes of rows by every expert: the means of all components.

    :param model: a program ``model(x, y=None)`` whose site ``observed`` is a family of
        :mod:`pyro_mixtures.distributions` selected by ``[z]``.
    :param x: covariates (N, P).
    :param site: name of the discrete site.
    :param observed: name of the site of the outcomes.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    :returns: predictions (N, C, ...).
    :raises ModelError: if the program is not of this form.
    :raises DataError: if there are no rows.

    >>> from pyro_mixtures.models import MixtureOfRegressions
    >>> model = MixtureOfRegressions(components=3, features=2)
    >>> expert_predictions(model, torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """
    x = checked_covariates(x)
    experts = Experts(model, x, site, observed, given)
    return torch.cat([experts.all_means(row_block) for row_block in experts.chunks(x, chunk)])


def select_experts(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return the predictions (N, ...) of one expert per row.

    :param predictions: (N, C, ...) of all experts.
    :param labels: (N,) the expert of each row.
    """
    return predictions[torch.arange(len(labels), device=labels.device), labels]


def mix_experts(predictions: Tensor, log_prob: Tensor) -> Tensor:
    """Return the means (N, ...) of predictions (N, C, ...), weighted by the experts' probabilities.

    :param log_prob: (N, C). Experts of probability zero are ignored, even if their predictions are
        not finite.
    """
    event_dims = predictions.dim() - 2
    weight = log_prob.exp().to(predictions).reshape(*log_prob.shape, *(1,) * event_dims)
    return torch.where(weight > 0, weight * predictions, 0.0).sum(1)


def checked_covariates(x: Tensor) -> Tensor:
    """Return covariates (N, P) as a tensor.

    :raises DataError: if there are no rows.
    """
    x = as_rows(x)
    if not len(x):
        raise DataError("no rows were given: predictions need at least one")
    return x


def _check_call(model: Callable[..., Any], x: Tensor) -> None:
    call = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        inspect.signature(call).bind(x)
    except TypeError as error:
        raise ModelError(
            f"the program cannot be called with covariates alone ({error}): give its outcome a "
            "default, y=None"
        ) from error
