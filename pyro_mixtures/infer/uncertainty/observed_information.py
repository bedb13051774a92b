"""Observed information: standard errors of a fitted mixture's params, from the Hessian of its exact log likelihood."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import NumericalError
from pyro_mixtures.infer.uncertainty.exact_likelihood import ExactLikelihood

# Differences are taken where no row's log likelihood changes by more than this, in nats.
_CHANGE = 1e-4
# Information below this part of what its coordinates have by themselves is rounding.
_SINGULAR = 1e-7
# Nats that a Newton step may still promise where a fit is called converged.
_CONVERGED = 1e-2


class ObservedInformation(NamedTuple):
    """Estimates of a mixture's params with their uncertainty; everything in float64."""

    params: dict[str, Tensor]  # estimates
    standard_errors: dict[str, Tensor]  # each shaped like its param
    names: tuple[str, ...]  # of all K numbers of the params: "loc[0, 1]"
    covariance: Tensor  # (K, K) of these
    information: (
        Tensor  # (R, R) minus the Hessian, in R free directions of the unconstrained params
    )
    log_likelihood: float  # in nats

    def derived(self, function: Callable[[dict[str, Tensor]], Tensor]) -> "Derived":
        """A function of the params, with its uncertainty by the delta method: a ratio of coefficients, say.

        :param function: of the params by name, in float64; differentiable by torch. It returns a
            tensor of any shape.
        :raises NumericalError: when its value or slope at the estimates is not finite.

        >>> one = torch.ones(1, dtype=torch.float64)
        >>> known = ObservedInformation({"a": 2 * one}, {"a": 3 * one}, ("a[0]",), 9 * one.diag(), one.diag(), -1.0)
        >>> known.derived(lambda params: params["a"] ** 2).standard_error  # 2 a times 3
        tensor([12.], dtype=torch.float64)
        """
        sizes = [value.numel() for value in self.params.values()]

        def flat(numbers: Tensor) -> Tensor:
            parts = zip(self.params.items(), numbers.split(sizes), strict=True)
            return function({name: part.reshape(value.shape) for (name, value), part in parts})

        at = torch.cat([value.reshape(-1) for value in self.params.values()])
        value = flat(at)
        slope: Any = torch.autograd.functional.jacobian(flat, at)
        slope = slope.reshape(-1, len(at))
        if not bool(value.isfinite().all()) or not bool(slope.isfinite().all()):
            raise NumericalError(
                f"the function is {value.tolist()} at the estimates, or has no finite slope there"
            )
        covariance = slope @ self.covariance @ slope.T
        return Derived(
            value, covariance.diagonal().clamp_min(0).sqrt().reshape(value.shape), covariance
        )


class Derived(NamedTuple):
    """A function of the params at their estimates, of M numbers in all."""

    value: Tensor
    standard_error: Tensor  # of the same shape
    covariance: Tensor  # (M, M)


def observed_information(
    model: Callable,
    *rows: Tensor,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    freeze: Iterable[str] = (),
    robust: bool = False,
    chunk: int | None = None,
) -> ObservedInformation:
    r"""Standard errors of the params of ``model``, fitted to ``rows`` by maximum likelihood.

    The log likelihood is exact, :math:`\sum_n \log \sum_c p(c, x_n)`, by row weights. (Where a
    family's or gate's log density includes a ridge penalty, so does this: errors are then those of
    the penalised fit.) Minus its Hessian A in the unconstrained params gives their covariance
    :math:`A^{-1}`, or with ``robust`` the sandwich :math:`A^{-1} B A^{-1}` with B the sum of the
    rows' outer products of scores, which is right under a wrong model, too (White, "Maximum
    likelihood estimation of misspecified models", Econometrica 50, 1982). A row of weight two
    counts as two rows of its kind: weights are counts here, not those of a survey. The delta method
    carries it over to the constrained values. Directions that constraints leave no freedom (a
    simplex has C - 1) are taken out first.

    The Hessian is a central difference of exact gradients, and scores are central differences of
    the rows' evidence, in float64 whatever the params' dtype: so any family will do, kernels
    without second derivatives included. That takes three passes over the data for every
    unconstrained number: for small models.

    :param rows: the model's tensor arguments, N rows each.
    :param site: the discrete site.
    :param given: values of the model's other latent sites, if it has any.
    :param freeze: names of params taken as known; those with ``requires_grad=False`` are, too.
    :param robust: sandwich instead of inverse information.
    :param chunk: rows evaluated at once.
    :raises NumericalError: when the information is singular, which names the params that the data do not identify (a
        component without rows, logits or factors known up to a transformation), or has negative directions: the params
        are then at no maximum.
    :raises ModelError, OptionError: when the program or an option does not fit; parameters of plain torch modules
        (``MixtureOfExperts``) are the modules' own and cannot be moved.

    A RuntimeWarning says that the fit has not converged.

    >>> import pyro
    >>> from pyro_mixtures.distributions import IsotropicNormals, MixtureWeights
    >>> def model(x):
    ...     loc = pyro.param("loc", x.mean(0, keepdim=True))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", MixtureWeights(torch.ones(1)))
    ...         pyro.sample("x", IsotropicNormals(loc, torch.ones(1))[z], obs=x)
    >>> observed_information(model, torch.randn(25, 1)).standard_errors["loc"]
    tensor([[0.2000]], dtype=torch.float64)
    """
    likelihood = ExactLikelihood(model, rows, site, given, frozenset(freeze), chunk)
    found = likelihood.params
    (slope, log_evidence), weight = likelihood.slope(found.start), likelihood.weight()
    hessian, scores = _differences(likelihood, found.start, log_evidence)
    tangent = found.tangent()
    information = -tangent.free.T @ hessian @ tangent.free
    inverse = _inverse(information, tangent.owners)
    _warn_unless_converged(tangent.free.T @ slope, inverse)
    if robust:
        moved = weight.sqrt().unsqueeze(-1) * scores @ tangent.free @ inverse
        inverse = moved.T @ moved
    covariance = tangent.out @ inverse @ tangent.out.T
    values = found.values(found.start)
    spread = (
        covariance.diagonal()
        .clamp_min(0)
        .sqrt()
        .split([value.numel() for value in values.values()])
    )
    errors = {
        name: part.reshape(values[name].shape) for name, part in zip(values, spread, strict=True)
    }
    return ObservedInformation(
        values,
        errors,
        found.labels(),
        covariance,
        information,
        float((weight * log_evidence).sum()),
    )


def standard_errors(model: Callable, *rows: Tensor, **options: Any) -> dict[str, Tensor]:
    """Standard errors of the model's params, by name, each shaped like its param: see :func:`observed_information`."""
    return observed_information(model, *rows, **options).standard_errors


def _differences(
    likelihood: ExactLikelihood, u: Tensor, log_evidence: Tensor
) -> tuple[Tensor, Tensor]:
    """The Hessian (U, U) of the log likelihood, and the rows' scores (N, U), unweighted, by central differences."""
    hessian, scores = [], []
    for i in range(len(u)):
        step = torch.zeros_like(u)
        step[i] = h = _step(likelihood, u, i, log_evidence)
        (up, above), (down, below) = likelihood.slope(u + step), likelihood.slope(u - step)
        hessian.append((up - down) / (2 * h))
        scores.append((above - below) / (2 * h))
    found = torch.stack(hessian)
    return (found + found.T) / 2, torch.stack(scores, -1)


def _step(likelihood: ExactLikelihood, u: Tensor, i: int, log_evidence: Tensor) -> float:
    """How far number ``i`` may move before some row's log likelihood changes by ``_CHANGE``."""
    trial, size = u.clone(), 1 + abs(float(u[i]))
    trial[i] += 1e-6 * size
    rate = float((likelihood.log_evidence(trial) - log_evidence).abs().max()) / (1e-6 * size)
    wanted = _CHANGE / rate if rate > 0 and math.isfinite(rate) else math.inf
    return min(wanted, 0.1 * size)


def _inverse(information: Tensor, owners: list[str]) -> Tensor:
    """Its inverse.

    :raises NumericalError: where there is none, or it is no covariance.
    """
    size = information.diagonal().abs().sqrt()
    unit = torch.where(size > 0, 1 / size, 1.0)
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * information * unit)
    if float(values[0]) < -_SINGULAR:
        raise NumericalError(
            f"the log likelihood curves upwards in params {_in(vectors[:, :1], owners)}: they are at no maximum; fit "
            "until convergence first"
        )
    flat = vectors[:, values < _SINGULAR]
    if flat.shape[1]:
        raise NumericalError(
            f"params {_in(flat, owners)} are not identified: in {flat.shape[1]} directions the log likelihood does not "
            "change; freeze= them, or remove what is redundant (components without rows, a gate without reference, "
            "repeated covariates)"
        )
    root = vectors / values.sqrt() * unit.unsqueeze(-1)
    return root @ root.T


def _in(directions: Tensor, owners: list[str]) -> list[str]:
    """The params that have a part in some of the ``directions`` (R, L)."""
    share = directions.square().amax(-1) > 1e-3
    return sorted({name for name, has in zip(owners, share.tolist(), strict=True) if has})


def _warn_unless_converged(slope: Tensor, inverse: Tensor) -> None:
    promise = float(slope @ inverse @ slope) / 2
    if promise > _CONVERGED:
        warnings.warn(
            f"the log likelihood can still rise by about {promise:.2g} nats: standard errors are those of a maximum; "
            "fit until convergence first",
            RuntimeWarning,
            stacklevel=3,
        )
