"""Predictions of a fitted mixture of experts for rows never seen: routed by a gate, mixed by it, or combined."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.distributions import Selected
from pyro_mixtures.errors import DataError, ModelError, OptionError, PartitionError
from pyro_mixtures.infer.gates import Gate, Standard, fit_gate, logistic_regression, standard_of
from pyro_mixtures.poutine import CandidateMessenger, read_declaration

HOW = ("hard", "soft")
# (row, component) pairs of a chunk; numbers in float64 alive at once.
_PAIRS, _NUMBERS = 1 << 21, 1 << 22

Rows = tuple[Tensor, Tensor]  # covariates (N, P) and outcomes (N, ...)
Metric = Callable[[Tensor, Tensor], Any]  # predictions and outcomes -> a number


class Partition(Protocol):
    """What is asked of the guide: ``pyro_mixtures.guides.HardPartition`` is one."""

    components: int
    site: str
    labels: Tensor | None


class MeanMessenger(Messenger):
    """Puts the components' means in the place of outcomes that a program would draw: nothing is sampled.

    :param observed: the site whose means are wanted; after a run they are ``mean``. Observed or not, its value is
        replaced; other lazily selected sites are, where they are not observed.
    :raises ModelError: when that site is no family of :mod:`pyro_mixtures.distributions` selected by ``[z]``.
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

    def __init__(self, model: Callable, x: Tensor, site: str, observed: str, given: Mapping[str, Tensor] | None = None):
        _check_call(model, x)
        self.reader, self.given = MeanMessenger(observed), given
        self.model = self.reader(model)
        self.declaration = read_declaration(self.model, site, (x[:1],), {})
        if observed not in self.declaration.observed:
            raise ModelError(f"the model has no site {observed!r} in its data plate; its sites there are not experts")
        if self.reader.nested != [self.declaration.plate]:
            raise ModelError(f"site {observed!r} lies in plates {self.reader.nested}, not in the data plate alone")

    def means(self, x: Tensor, candidates: Tensor) -> Tensor:
        """Means (S, B, ...) of rows (B, P) under ``candidates`` (S, B), or (S, 1) where rows share them."""
        messenger = CandidateMessenger(self.declaration, lambda *_: candidates, self.given)
        with pyro.poutine.block(), torch.no_grad(), self.declaration.threads():
            messenger(self.model)(x)
        mean, batch = self.reader.mean, self.reader.batch
        if mean is None or messenger.index is None or len(messenger.index) != len(x):
            raise ModelError(f"the model did not take all {len(x)} rows: open its data plate without subsample_size")
        return mean.reshape(len(candidates), len(x), *mean.shape[len(batch) :])

    def all_means(self, x: Tensor) -> Tensor:
        """Means (B, C, ...) of rows under all components."""
        return self.means(x, torch.arange(self.declaration.components, device=x.device).unsqueeze(-1)).movedim(0, 1)

    def chunks(self, x: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
        """The rows, so many at a time."""
        if chunk is not None and chunk < 1:
            raise OptionError(f"chunk={chunk} must be positive")
        return x.split(chunk or max(1, _PAIRS // self.declaration.components))


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

    :param model: a program ``model(x, y=None)`` whose site ``observed`` is a lazily selected family.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    :raises ModelError: when the program is not of that kind. :raises DataError: when there are no rows.

    >>> from pyro_mixtures.models import MixtureOfRegressions
    >>> model = MixtureOfRegressions(components=3, features=2)
    >>> expert_predictions(model, torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """
    x = _covariates(x)
    experts = Experts(model, x, site, observed, given)
    return torch.cat([experts.all_means(part) for part in experts.chunks(x, chunk)])


def route(
    model: Callable,
    gate: Gate,
    x: Tensor,
    how: str = "hard",
    *,
    site: str = "z",
    observed: str = "y",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Predictions (N, ...) of the mixture for rows with covariates ``x`` (N, P).

    :param gate: of :func:`pyro_mixtures.infer.gates.fit_gate`.
    :param how: ``"hard"``, the expert of the gate's most probable part alone; ``"soft"``, the mean of all experts
        weighted by the gate; of scores or logits where these are what the experts give.

    Other arguments and errors as in :func:`expert_predictions`.

    >>> from pyro_mixtures.distributions import MixtureWeights
    >>> from pyro_mixtures.distributions.linear_regressions import LinearRegressions
    >>> def slopes(x, y=None):
    ...     experts = LinearRegressions(x, torch.tensor([[-1.0], [1.0]]), torch.zeros(2), torch.ones(2))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", MixtureWeights(torch.ones(2) / 2))
    ...         return pyro.sample("y", experts[z], obs=y)
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> gate = fit_gate(x, torch.tensor([0, 0, 1, 1]), 2)
    >>> route(slopes, gate, torch.tensor([[-3.0], [4.0]]))
    tensor([3., 4.])
    """
    if how not in HOW:
        raise OptionError(f"unknown how={how!r}; choose one of {HOW}")
    x = _covariates(x)
    experts = Experts(model, x, site, observed, given)
    _check_gate(gate, experts.declaration.components)
    parts = experts.chunks(x, chunk)
    if how == "hard":
        return torch.cat([experts.means(part, gate.assign(part).unsqueeze(0))[0] for part in parts])
    return torch.cat([mixed(experts.all_means(part), gate.log_prob(part)) for part in parts])


def chosen(predictions: Tensor, labels: Tensor) -> Tensor:
    """Of ``predictions`` (N, C, ...) those (N, ...) of the experts ``labels`` (N,)."""
    return predictions[torch.arange(len(labels), device=labels.device), labels]


def mixed(predictions: Tensor, log_prob: Tensor) -> Tensor:
    """Means (N, ...) of ``predictions`` (N, C, ...) under ``log_prob`` (N, C); zero probability is no say at all."""
    weight = log_prob.exp().to(predictions).reshape(*log_prob.shape, *(1,) * (predictions.dim() - 2))
    return torch.where(weight > 0, weight * predictions, 0.0).sum(1)


class Combiner(NamedTuple):
    """A linear layer over the concatenated predictions of all experts; see :func:`fit_combiner`."""

    weight: Tensor  # (M, C * ...) in float64; M outputs, or one for each class
    bias: Tensor  # (M,), -inf for classes that no row had
    shape: torch.Size  # of an outcome; (M,) for the probabilities of classes
    classes: bool

    def __call__(self, predictions: Tensor) -> Tensor:
        """Outcomes (N, ...), or probabilities (N, L) of classes, for ``predictions`` (N, C, ...)."""
        rows = predictions.flatten(1)
        if rows.shape[1] != self.weight.shape[1]:
            raise DataError(f"{rows.shape[1]} predictions a row; the combiner was fitted to {self.weight.shape[1]}")
        out = rows @ self.weight.to(rows).T + self.bias.to(rows)
        return out.softmax(-1) if self.classes else out.reshape(len(rows), *self.shape)


def fit_combiner(predictions: Tensor, y: Tensor, penalty: float = 1.0) -> Combiner:
    """A linear layer from the ``predictions`` (N, C, ...) of all experts to the outcomes ``y`` (N, ...).

    Floating-point outcomes: ridge regression with a free intercept, minimising the sum of squares plus ``penalty``
    times the squared weights. Integer outcomes (N,) are classes: multinomial logistic regression, minimising minus the
    log likelihood plus half ``penalty`` times the squared weights.

    Over *linear* experts such a layer is linear in their covariates, and so never better than one regression: it is
    meant for experts that are not.

    :param penalty: positive, or zero for ridge regression.
    :raises DataError: when predictions and outcomes do not fit together. :raises OptionError: of an impossible penalty.

    >>> combiner = fit_combiner(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]), torch.tensor([2.0, 4.0, 6.0]), 0.0)
    >>> combiner(torch.tensor([[5.0, 0.0]]))
    tensor([10.])
    """
    predictions, y = as_rows(predictions), as_rows(y)
    if predictions.dim() < 2 or not len(y) or len(predictions) != len(y):
        raise DataError(
            f"predictions {tuple(predictions.shape)} for outcomes {tuple(y.shape)}: give (N, C, ...), (N, ...)"
        )
    for name, values in (("predictions", predictions), ("outcomes", y)):
        if not bool(values.isfinite().all()):
            raise DataError(f"{name} are not all finite: remove such rows")
    classes = not y.is_floating_point()
    if not (penalty > 0 or (penalty == 0 and not classes)):
        raise OptionError(f"penalty={penalty} must be positive, or zero for outcomes that are no classes")
    rows = predictions.flatten(1)
    standard = standard_of(rows)
    weight, bias, shape = _classifier(rows, y, penalty, standard) if classes else _ridge(rows, y, penalty, standard.loc)
    return Combiner(weight, bias - weight @ standard.loc, shape, classes)


def _classifier(rows: Tensor, y: Tensor, penalty: float, standard: Standard) -> tuple[Tensor, Tensor, torch.Size]:
    """Weights, and biases over centred rows; found on standardised rows, whose weights pay what those of rows would."""
    if y.dim() != 1 or int(y.min()) < 0:
        raise DataError(f"integer outcomes are classes 0, 1, ... (N,), not {tuple(y.shape)} from {int(y.min())}")
    label = y.long()
    counts = torch.bincount(label)
    weight, bias = logistic_regression(rows, label, len(counts), penalty / standard.scale.square(), standard)
    return weight / standard.scale, bias.masked_fill(counts == 0, -torch.inf), counts.shape


def _ridge(rows: Tensor, y: Tensor, penalty: float, loc: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """As :func:`_classifier`, by the normal equations in float64, some rows at a time."""
    outcomes = y.reshape(len(y), -1)
    mean = outcomes.mean(0, dtype=torch.float64)
    gram = penalty * torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    cross = torch.zeros(outcomes.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    size = max(1, _NUMBERS // rows.shape[1])
    for part, outcome in zip(rows.split(size), outcomes.split(size), strict=True):
        centred = part.double() - loc
        gram += centred.T @ centred
        cross += (outcome.double() - mean).T @ centred
    # Predictions of several experts may be collinear: the shortest weights of the best ones.
    return cross @ torch.linalg.pinv(gram, hermitian=True), mean, y.shape[1:]


def compare_routing(
    model: Callable,
    guide: Partition,
    train: Rows,
    test: Rows,
    *,
    gate: Gate | None = None,
    metric: Metric | None = None,
    penalty: float = 1.0,
    observed: str = "y",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> dict[str, float]:
    """How well the ways to predict new rows do on ``test`` rows: gate and combiner learn from ``train`` alone.

    :param guide: the fitted partition of the ``train`` rows (x, y), with its ``labels`` (N,).
    :param gate: None fits a multinomial logistic gate to the labels.
    :param metric: of predictions and outcomes. None takes the coefficient of determination, averaged over outputs, for
        floating-point outcomes, and the accuracy for integer ones: classes, for which experts must give scores (N, L).
    :param penalty: of the combiner, see :func:`fit_combiner`.
    :return: the test metric of ``hard`` and ``soft`` routing and of the ``combiner``; ``oracle_unattainable`` is that
        of each row's best expert, chosen by looking at the row's own outcome: a bound of routing, not a method.
    :raises PartitionError: when the labels are not those of the ``train`` rows.
    """
    (x, y), (new_x, new_y) = (_pair(*train), _pair(*test))
    if gate is None:
        gate = fit_gate(x, labels_of(guide, len(x)), guide.components)
    _check_gate(gate, guide.components)
    options: Any = {"site": guide.site, "observed": observed, "given": given, "chunk": chunk}
    seen, new = expert_predictions(model, x, **options), expert_predictions(model, new_x, **options)
    classes = not y.is_floating_point() and new.dim() == y.dim() + 2
    _check_outcomes(seen, y, classes)
    _check_outcomes(new, new_y, classes)
    score = metric if metric is not None else _default_metric(y, new, classes)
    predicted = {
        "hard": chosen(new, gate.assign(new_x)),
        "soft": mixed(new, gate.log_prob(new_x)),
        "combiner": fit_combiner(seen, y if classes else y.to(seen.dtype), penalty)(new),
        "oracle_unattainable": chosen(new, _error(new, new_y, classes).argmin(1)),
    }
    return {name: float(score(prediction, new_y)) for name, prediction in predicted.items()}


def r2(prediction: Tensor, y: Tensor) -> float:
    """Coefficient of determination of predictions (N, ...), averaged over outputs.

    :raises DataError: when an output is constant: it has no variance to explain.

    >>> r2(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])) > 0.7
    True
    """
    value, y = prediction.double().reshape(len(y), -1), y.double().reshape(len(y), -1)
    total = (y - y.mean(0)).square().sum(0)
    if not bool((total > 0).all()):
        raise DataError(f"an output is constant in all {len(y)} rows: R2 is not defined; give more rows, or metric=")
    return float((1 - (y - value).square().sum(0) / total).mean())


def accuracy(prediction: Tensor, y: Tensor) -> float:
    """Share of rows whose largest score (N, L) is that of their class (N,).

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    0.5
    """
    return float((prediction.argmax(-1) == y).double().mean())


def _default_metric(y: Tensor, predictions: Tensor, classes: bool) -> Metric:
    if y.is_floating_point():
        return r2
    if classes:
        return accuracy
    raise DataError(
        f"integer outcomes are classes, but the experts' predictions (N, C, ...) are {tuple(predictions.shape)}, "
        "without scores of classes: pass y as floating point for R2, or metric=, for two classes for example "
        "lambda p, y: ((p > 0.5) == y).float().mean()"
    )


def _error(predictions: Tensor, y: Tensor, classes: bool) -> Tensor:
    """What each expert (N, C) gets wrong: squared error; for classes whether it errs, then its score."""
    if not classes:
        return (predictions - y.unsqueeze(1)).square().reshape(*predictions.shape[:2], -1).sum(-1)
    score = predictions.gather(2, y.long().reshape(-1, 1, 1).expand(*predictions.shape[:2], 1))[..., 0]
    # Scores need not be probabilities: any rank of them below one keeps mistakes last.
    return (predictions.argmax(-1) != y.unsqueeze(-1)).to(score) - score.sigmoid()


def _check_outcomes(predictions: Tensor, y: Tensor, classes: bool) -> None:
    """Whether outcomes (N, ...) are of the kind that the experts predict, (N, C, ...)."""
    if classes and (int(y.min()) < 0 or int(y.max()) >= predictions.shape[2]):
        raise DataError(f"classes lie in [{int(y.min())}, {int(y.max())}], not in [0, {predictions.shape[2]})")
    if not classes and predictions.shape[2:] != y.shape[1:]:
        raise DataError(f"outcomes are {tuple(y.shape)}, but the experts' predictions {tuple(predictions.shape)}")


def labels_of(guide: Partition, rows: int) -> Tensor:
    """The labels (N,) of the guide, which have to be those of ``rows`` rows; -1 where one was not seen."""
    if guide.labels is None or len(guide.labels) != rows:
        held = "no labels" if guide.labels is None else f"the labels of {len(guide.labels)} rows"
        raise PartitionError(f"the guide holds {held}, but {rows} rows were given: give those of its fit")
    return guide.labels


def _pair(x: Tensor, y: Tensor) -> Rows:
    x, y = _covariates(x), as_rows(y)
    if len(x) != len(y):
        raise DataError(f"{len(y)} outcomes for {len(x)} rows of covariates")
    return x, y


def _covariates(x: Tensor) -> Tensor:
    x = as_rows(x)
    if not len(x):
        raise DataError("no rows were given: predictions need at least one")
    return x


def _check_gate(gate: Gate, components: int) -> None:
    if gate.components != components:
        raise OptionError(f"the gate has {gate.components} parts, the model {components} components")


def _check_call(model: Callable, x: Tensor) -> None:
    try:
        inspect.signature(getattr(model, "forward", model)).bind(x)
    except TypeError as error:
        raise ModelError(
            f"the program cannot be called with covariates alone ({error}): give its outcome a default, y=None"
        ) from error
