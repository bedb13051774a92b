"""Gates: classifiers that learn from a partition's labels which cluster a new row belongs to."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.options import check_number, check_whole

# Numbers in float64 per block of rows, and rows per call of a module.
_NUMBERS, _ROWS = 1 << 22, 1 << 16
# L-BFGS: maximum number of steps, the gradient of the mean loss at which it stops, and the
# gradient above which it has not converged.
_STEPS, _TOLERANCE, _ACCEPTED = 2000, 1e-7, 1e-6


class Standard(NamedTuple):
    """Location and scale of every feature, in float64."""

    loc: Tensor  # (P, ...)
    scale: Tensor  # (P, ...), one for constant features

    def __call__(self, rows: Tensor) -> Tensor:
        """Return standardized rows (B, P, ...) in float64."""
        return (rows.double() - self.loc) / self.scale


class Gate(nn.Module):
    """A classifier p(cluster | x): a ``module`` over standardized rows; see :func:`fit_gate`.

    Clusters that had no rows have probability zero.

    :param module: maps rows (B, P, ...) to logits (B, C).
    :param standard: location and scale that standardize the rows, in float64; the result is cast
        to the module's dtype.
    :param present: (C,) which clusters had rows.

    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> gate = fit_gate(x, torch.tensor([0, 0, 1, 1]), 2)
    >>> gate.log_prob(x).shape, gate(torch.tensor([[5.0]]))
    (torch.Size([4, 2]), tensor([1]))
    """

    loc: Tensor
    scale: Tensor
    present: Tensor

    def __init__(self, module: nn.Module, standard: Standard, present: Tensor):
        super().__init__()
        self.module = module
        self.register_buffer("loc", standard.loc)
        self.register_buffer("scale", standard.scale)
        self.register_buffer("present", present)

    @property
    def components(self) -> int:
        """C."""
        return len(self.present)

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log probabilities (N, C) of the clusters for rows ``x`` (N, P, ...).

        They have the module's dtype.

        :raises DataError: if the rows have other features than those of the fit, or are not
            finite.
        """
        x = _checked_rows(x, self.loc.shape)
        return torch.cat([self.logits(row_block).log_softmax(-1) for row_block in x.split(_ROWS)])

    def assign(self, x: Tensor) -> Tensor:
        """Return the most probable cluster (N,) of each row."""
        return self.log_prob(x).argmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same as :meth:`assign`."""
        return self.assign(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return the module's logits (B, C) of rows (B, P, ...), differentiable in its parameters.

        Clusters without rows get -inf.
        """
        standardized = Standard(self.loc.double(), self.scale.double())(x)
        logits = self.module(standardized.to(next(self.module.parameters()).dtype))
        if logits.shape != (len(x), self.components):
            raise OptionError(
                f"the gate's module maps {tuple(x.shape)} to {tuple(logits.shape)}: it must return "
                f"one logit per cluster, {(len(x), self.components)}"
            )
        return logits.masked_fill(~self.present, -torch.inf)


def fit_gate(
    x: Tensor,
    labels: Tensor,
    components: int,
    *,
    penalty: float = 1.0,
    module: nn.Module | None = None,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
) -> Gate:
    r"""Fit a classifier from rows ``x`` (N, P, ...) to their ``labels`` (N,).

    It minimizes :math:`-\sum_n \log p(c_n | x_n) + \lambda |W|^2 / 2` on standardized rows.

    :param x: the rows, standardized inside the gate.
    :param labels: integers in [0, C).
    :param components: C. Clusters without rows get log probability -inf.
    :param penalty: lambda, positive, on all weights but the biases. It equals 1 / C in
        scikit-learn's ``LogisticRegression`` (2 / C for two clusters, where scikit-learn has a
        single weight vector). It does not grow with the number of rows.
    :param module: None fits multinomial logistic regression by L-BFGS in float64, a convex problem.
        A module (B, P, ...) -> logits (B, C) is trained in place by Adam on minibatches, with
        lambda as weight decay of all its parameters, and left in evaluation mode.
    :param epochs, batch_size, learning_rate: for a ``module``.
    :returns: the gate, in the dtype of the rows or of the module.
    :raises DataError: if rows are not finite or have no features.
    :raises PartitionError: if labels are not integers in [0, C), one per row.
    :raises OptionError: if an option has an invalid value.

    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> gate = fit_gate(x, torch.tensor([0, 0, 2, 2]), 3)
    >>> gate(torch.tensor([[-3.0], [3.0]]))
    tensor([0, 2])
    """
    x = _checked_rows(x, None)
    labels = _checked_labels(labels, len(x), components).to(x.device)
    check_number(penalty=penalty)
    if not penalty:
        raise OptionError(
            f"penalty={penalty} must be positive: without a penalty the weights of separable "
            "clusters diverge"
        )
    present = torch.bincount(labels, minlength=components) > 0
    standard = standard_of(x)
    if module is not None:
        gate = Gate(module, standard, present)
        _train(gate, x, labels, penalty, epochs, batch_size, learning_rate)
        return gate
    flat = Standard(standard.loc.flatten(), standard.scale.flatten())
    penalties = torch.full_like(flat.loc, penalty)
    weight, bias = logistic_regression(x.flatten(1), labels, components, penalties, flat)
    return Gate(_linear(weight, bias, x), standard, present)


def logistic_regression(
    x: Tensor, labels: Tensor, classes: int, penalty: Tensor, standard: Standard
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression on standardized rows (N, P).

    Classes without rows have weights and biases of zero; the caller excludes them.

    :param penalty: (P,) penalty of each feature's weights.
    :returns: weights (L, P) and biases (L,) in float64.
    """
    present_classes, label = torch.unique(labels, return_inverse=True)
    shape = len(present_classes), x.shape[1] + 1
    theta = torch.zeros(shape, dtype=torch.float64, device=x.device)
    log_count = torch.bincount(label).double().log()
    # Biases have no penalty and are identified up to a constant. Their mean starts at zero and
    # gradients leave it there.
    theta[:, -1] = log_count - log_count.mean()
    if len(present_classes) > 1:
        penalty_and_bias = torch.cat([penalty, penalty.new_zeros(1)])
        _minimize(theta, x, label, penalty_and_bias, standard)
    all_theta = theta.new_zeros(classes, theta.shape[1])
    all_theta[present_classes] = theta
    return all_theta[:, :-1], all_theta[:, -1]


def _minimize(
    theta: Tensor, x: Tensor, labels: Tensor, penalty: Tensor, standard: Standard
) -> None:
    """Replace ``theta`` (L, P + 1) by the minimizer, in place."""
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=_STEPS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        value, theta.grad = _mean_loss(theta, x, labels, penalty, standard)
        return value

    optimizer.step(closure)
    _, gradient = _mean_loss(theta, x, labels, penalty, standard)
    largest = float(gradient.abs().max())
    if not largest < _ACCEPTED:
        warnings.warn(
            f"logistic regression stopped before convergence, at a gradient of {largest:.1e}: "
            "increase the penalty",
            RuntimeWarning,
            stacklevel=4,
        )


def _mean_loss(
    theta: Tensor, x: Tensor, labels: Tensor, penalty: Tensor, standard: Standard
) -> tuple[Tensor, Tensor]:
    """Return the objective divided by N and its gradient in ``theta`` (L, P + 1).

    Rows are standardized one block at a time: no float64 copy of all rows is made.
    """
    gradient = penalty * theta
    value = 0.5 * (gradient * theta).sum()
    block_size = max(1, _NUMBERS // sum(theta.shape))
    for row_block, label in zip(x.split(block_size), labels.split(block_size), strict=True):
        rows = standard(row_block)
        design = torch.cat([rows, rows.new_ones(len(rows), 1)], -1)
        log_prob = (design @ theta.T).log_softmax(-1)
        label = label.unsqueeze(-1)
        value = value - log_prob.gather(1, label).sum()
        residual = log_prob.exp()
        residual.scatter_add_(1, label, torch.full_like(residual[:, :1], -1.0))
        gradient += residual.T @ design
    return value / len(x), gradient / len(x)


def _train(
    gate: Gate,
    x: Tensor,
    labels: Tensor,
    penalty: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Train the gate's module in place by Adam on minibatches."""
    parameters = [parameter for parameter in gate.parameters() if parameter.requires_grad]
    if not parameters:
        raise OptionError(
            f"{type(gate.module).__name__} has no trainable parameters: pass a module that has some"
        )
    check_whole(epochs=epochs, batch_size=batch_size)
    check_number(positive=True, learning_rate=learning_rate)
    # The objective is a sum over rows, the minibatch loss a mean: hence the division by N.
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=penalty / len(x))
    gate.train()
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in torch.randperm(len(x), device="cpu").split(batch_size):
                batch = batch.to(x.device)
                loss = nn.functional.cross_entropy(gate.logits(x[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    gate.eval()


def check_gate(gate: Gate, components: int) -> None:
    """Refuse anything but a :class:`Gate` for this number of components.

    :raises OptionError: for another object, or another number.
    """
    if not isinstance(gate, Gate):
        raise OptionError(
            f"gate is a {type(gate).__name__}: pass the result of fit_gate, or a Gate"
        )
    if gate.components != components:
        raise OptionError(
            f"the gate has {gate.components} clusters, but the model has {components} components"
        )


def _linear(weight: Tensor, bias: Tensor, x: Tensor) -> nn.Module:
    """Return the regression as a module with the dtype and device of the rows."""
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    # skip_init: random initial weights would change the state of the global generator.
    layer: Any = nn.utils.skip_init(
        nn.Linear, weight.shape[1], len(weight), dtype=dtype, device=x.device
    )
    layer.requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer).eval()


def standard_of(x: Tensor) -> Standard:
    """Return the means and standard deviations of rows (N, P, ...)."""
    loc = x.mean(0, dtype=torch.float64)
    block_size = max(1, _NUMBERS // loc.numel())
    squares = [(block.double() - loc).square().sum(0) for block in x.split(block_size)]
    scale = (torch.stack(squares).sum(0) / len(x)).sqrt()
    # The deviation of a constant feature is the rounding error of its mean.
    constant = scale <= len(x) * torch.finfo(torch.float64).eps * loc.abs()
    return Standard(loc, torch.where(constant, 1.0, scale))


def _checked_rows(x: Tensor, features: torch.Size | None) -> Tensor:
    """Return finite rows (N, P, ...), with the ``features`` of the fit if these are known."""
    x = as_rows(x)
    if x.dim() < 2 or not len(x) or (features is not None and x.shape[1:] != features):
        expected = "N, P, ..." if features is None else f"N, {', '.join(map(str, features))}"
        raise DataError(
            f"the rows of a gate have shape {tuple(x.shape)}, but must have ({expected}) with "
            "N >= 1"
        )
    if x.is_complex():
        raise DataError(f"the rows of a gate must be real, not {x.dtype}")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        row = int((~x.flatten(1).isfinite()).any(-1).nonzero()[0])
        raise DataError(
            f"row {row} of the gate's covariates is not finite: remove such rows, or impute their "
            "values"
        )
    return x


def _checked_labels(labels: Tensor, rows: int, components: int) -> Tensor:
    check_whole(components=components)
    labels = as_rows(labels)
    if labels.shape != (rows,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise PartitionError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, but must be integers of "
            f"shape ({rows},)"
        )
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or largest >= components:
        raise PartitionError(
            f"labels lie in [{smallest}, {largest}], not in [0, {components}): -1 marks rows that "
            "the partition has not seen; remove these rows"
        )
    return labels.long()
