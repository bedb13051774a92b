"""Gates: which part of a fitted partition a new row belongs to, learned from the rows' labels."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.options import check_number, check_whole

# Numbers in float64 alive at once, and rows that a module sees at once.
_NUMBERS, _ROWS = 1 << 22, 1 << 16
# Steps of L-BFGS, where it stops, and where it should have stopped: largest gradient of the mean
# loss.
_STEPS, _TOLERANCE, _ACCEPTED = 2000, 1e-7, 1e-6


class Standard(NamedTuple):
    """Location and scale of every feature, in float64."""

    loc: Tensor  # (P, ...)
    scale: Tensor  # (P, ...), one for constant features

    def __call__(self, rows: Tensor) -> Tensor:
        """Standardised rows (B, P, ...) in float64."""
        return (rows.double() - self.loc) / self.scale


class Gate(nn.Module):
    """p(part | x): a ``module`` over standardised rows, with probability zero for parts without rows; :func:`fit_gate`.

    :param module: maps rows (B, P, ...) to logits (B, C).
    :param standard: what rows are standardised by, in float64; the result is cast to the module's
        dtype.
    :param present: (C,) which parts had rows.
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
        """Log probabilities (N, C) of the parts of rows ``x`` (N, P, ...), in the module's dtype.

        :raises DataError: when the rows have other features than those of the fit, or are not
            finite.
        """
        x = _checked_rows(x, self.loc.shape)
        return torch.cat([self.logits(part).log_softmax(-1) for part in x.split(_ROWS)])

    def assign(self, x: Tensor) -> Tensor:
        """The most probable part (N,) of each row."""
        return self.log_prob(x).argmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`assign`."""
        return self.assign(x)

    def logits(self, x: Tensor) -> Tensor:
        """What the module says of rows (B, P, ...), -inf at parts without rows; differentiable in its parameters."""
        rows = Standard(self.loc.double(), self.scale.double())(x)
        logits = self.module(rows.to(next(self.module.parameters()).dtype))
        if logits.shape != (len(x), self.components):
            raise OptionError(
                f"the gate's module maps {tuple(x.shape)} to {tuple(logits.shape)}: it must give one logit for each "
                f"of the {self.components} parts, {(len(x), self.components)}"
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
    r"""Learn which part a row belongs to from the ``labels`` (N,) of rows ``x`` (N, P, ...).

    Minimises :math:`-\sum_n \log p(c_n | x_n) + \lambda |W|^2 / 2` on standardised rows.

    :param components: C; parts without rows get log probability -inf.
    :param penalty: lambda, positive, of all weights but the biases: 1 / C in scikit-learn's
        ``LogisticRegression`` (for two parts 2 / C: there the two have one weight vector). It is
        held while rows are added.
    :param module: None for multinomial logistic regression, found by L-BFGS in float64: the problem is convex. A
        module (B, P, ...) -> logits (B, C) is trained in place by Adam in minibatches, lambda as its weight decay, on
        biases too, and left in evaluation mode.
    :param epochs, batch_size, learning_rate: of a module.
    :raises DataError, PartitionError, OptionError: when rows, labels or options cannot be used.

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
            f"penalty={penalty} must be positive: without it separable parts have no finite weights"
        )
    present, standard = torch.bincount(labels, minlength=components) > 0, standard_of(x)
    if module is not None:
        gate = Gate(module, standard, present)
        _train(gate, x, labels, penalty, epochs, batch_size, learning_rate)
        return gate
    flat = Standard(standard.loc.flatten(), standard.scale.flatten())
    weight, bias = logistic_regression(
        x.flatten(1), labels, components, torch.full_like(flat.loc, penalty), flat
    )
    return Gate(_linear(weight, bias, x), standard, present)


def logistic_regression(
    x: Tensor, labels: Tensor, classes: int, penalty: Tensor, standard: Standard
) -> tuple[Tensor, Tensor]:
    """Weights (L, P) and biases (L,), in float64, of multinomial logistic regression on standardised rows (N, P).

    Classes without rows have weights and biases of zero: the caller leaves them out.

    :param penalty: (P,), lambda of each feature's weights.
    """
    known, label = torch.unique(labels, return_inverse=True)
    theta = torch.zeros(len(known), x.shape[1] + 1, dtype=torch.float64, device=x.device)
    log_share = torch.bincount(label).double().log()
    # Biases have no penalty, and one constant too many: they stay centred.
    theta[:, -1] = log_share - log_share.mean()
    if len(known) > 1:
        _minimize(theta, x, label, torch.cat([penalty, penalty.new_zeros(1)]), standard)
    full = theta.new_zeros(classes, theta.shape[1])
    full[known] = theta
    return full[:, :-1], full[:, -1]


def _minimize(
    theta: Tensor, x: Tensor, labels: Tensor, penalty: Tensor, standard: Standard
) -> None:
    """Put the minimiser in place of ``theta`` (L, P + 1)."""
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
    slope = float(_mean_loss(theta, x, labels, penalty, standard)[1].abs().max())
    if not slope < _ACCEPTED:
        warnings.warn(
            f"logistic regression stopped at a gradient of {slope:.1e}, before convergence: raise its penalty",
            RuntimeWarning,
            stacklevel=4,
        )


def _mean_loss(
    theta: Tensor, x: Tensor, labels: Tensor, penalty: Tensor, standard: Standard
) -> tuple[Tensor, Tensor]:
    """The objective over N and its gradient in ``theta`` (L, P + 1); some rows at a time, since both are in float64."""
    gradient = penalty * theta
    value = 0.5 * (gradient * theta).sum()
    size = max(1, _NUMBERS // sum(theta.shape))
    for part, label in zip(x.split(size), labels.split(size), strict=True):
        rows = standard(part)
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], -1)
        log_prob = (rows @ theta.T).log_softmax(-1)
        own = label.unsqueeze(-1)
        value = value - log_prob.gather(1, own).sum()
        excess = log_prob.exp()
        gradient += excess.scatter_add_(1, own, torch.full_like(excess[:, :1], -1.0)).T @ rows
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
    parameters = [parameter for parameter in gate.parameters() if parameter.requires_grad]
    if not parameters:
        raise OptionError(
            f"{type(gate.module).__name__} has no parameters to train: give a module with some"
        )
    check_whole(epochs=epochs, batch_size=batch_size)
    check_number(positive=True, learning_rate=learning_rate)
    # The penalty of the sum over rows, as it acts on a mean over them.
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=penalty / len(x))
    gate.train()
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x), device="cpu").split(batch_size):
                rows = rows.to(x.device)
                loss = nn.functional.cross_entropy(gate.logits(x[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    gate.eval()


def check_gate(gate: Gate, components: int) -> None:
    if not isinstance(gate, Gate):
        raise OptionError(
            f"gate is a {type(gate).__name__}: give one of fit_gate, or a Gate of your own"
        )
    if gate.components != components:
        raise OptionError(
            f"the gate has {gate.components} parts, the model {components} components"
        )


def _linear(weight: Tensor, bias: Tensor, x: Tensor) -> nn.Module:
    """The regression as a module, in the dtype of the rows."""
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    # Random initial weights would only use up the generator.
    layer: Any = nn.utils.skip_init(
        nn.Linear, weight.shape[1], len(weight), dtype=dtype, device=x.device
    )
    layer.requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer).eval()


def standard_of(x: Tensor) -> Standard:
    """Means and deviations of rows (N, P, ...)."""
    n, loc = len(x), x.mean(0, dtype=torch.float64)
    size = max(1, _NUMBERS // loc.numel())
    square = torch.stack([(part.double() - loc).square().sum(0) for part in x.split(size)]).sum(0)
    scale = (square / n).sqrt()
    # Of a constant feature only the rounding of its mean is left.
    constant = scale <= n * torch.finfo(torch.float64).eps * loc.abs()
    return Standard(loc, torch.where(constant, 1.0, scale))


def _checked_rows(x: Tensor, features: torch.Size | None) -> Tensor:
    """Finite rows (N, P, ...), of the ``features`` of the fit if these are known."""
    x = as_rows(x)
    if x.dim() < 2 or not len(x) or (features is not None and x.shape[1:] != features):
        wanted = "N, P, ..." if features is None else f"N, {', '.join(map(str, features))}"
        raise DataError(
            f"a gate's rows are {tuple(x.shape)}, but must be ({wanted}) with N at least one"
        )
    if x.is_complex():
        raise DataError(f"a gate's rows must be real, not {x.dtype}")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        row = int((~x.flatten(1).isfinite()).any(-1).nonzero()[0])
        raise DataError(f"row {row} of a gate is not finite: remove such rows, or fill them in")
    return x


def _checked_labels(labels: Tensor, rows: int, components: int) -> Tensor:
    check_whole(components=components)
    labels = as_rows(labels)
    if labels.shape != (rows,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise PartitionError(
            f"labels are {labels.dtype} {tuple(labels.shape)}, but must be integers ({rows},)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= components:
        raise PartitionError(
            f"labels lie in [{low}, {high}], not in [0, {components}): -1 marks rows that the partition has not seen; "
            "leave them out"
        )
    return labels.long()
