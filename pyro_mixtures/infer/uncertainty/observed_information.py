"""Observed information: standard errors of params from the Hessian of the exact log likelihood."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import NumericalError
from pyro_mixtures.infer.uncertainty.estimated_params import Tangent
from pyro_mixtures.infer.uncertainty.exact_likelihood import ExactLikelihood
from pyro_mixtures.options import check_flag

# Largest change of a row's log likelihood, in nats, in a step of a finite difference.
_CHANGE = 1e-4
# Eigenvalues of the information, scaled to a unit diagonal, below which a direction is not
# identified.
_SINGULAR = 1e-7
# Largest gain of the log likelihood, in nats, that a Newton step may predict at convergence.
_CONVERGED = 1e-2


class ObservedInformation(NamedTuple):
    """Estimates of a mixture's params and their uncertainty, all in float64.

    :param params: estimates, by name.
    :param standard_errors: by name, each with the shape of its param.
    :param names: of all K numbers of the params, such as ``"loc[0, 1]"``.
    :param covariance: (K, K) of these numbers.
    :param information: (R, R) minus the Hessian, in R directions in which the unconstrained params
        can move.
    :param log_likelihood: at the estimates, in nats.
    """

    params: dict[str, Tensor]
    standard_errors: dict[str, Tensor]
    names: tuple[str, ...]
    covariance: Tensor
    information: Tensor
    log_likelihood: float

    def derived(self, function: Callable[[dict[str, Tensor]], Tensor]) -> "Derived":
        """Evaluate a function of the params with its uncertainty, by the delta method.

        :param function: of the params by name, in float64, such as a ratio of coefficients. It
            returns a tensor of any shape and is differentiable by torch.
        :returns: the value, its standard error and its covariance.
        :raises NumericalError: if the value or the derivative at the estimates is not finite.

        >>> one = torch.ones(1, dtype=torch.float64)
        >>> result = ObservedInformation(
        ...     params={"a": 2 * one}, standard_errors={"a": 3 * one}, names=("a[0]",),
        ...     covariance=9 * one.diag(), information=one.diag(), log_likelihood=-1.0)
        >>> result.derived(lambda params: params["a"] ** 2).standard_error  # 2 a times 3
        tensor([12.], dtype=torch.float64)
        """
        estimate = torch.cat([value.reshape(-1) for value in self.params.values()])
        sizes = [value.numel() for value in self.params.values()]

        def function_of_vector(numbers: Tensor) -> Tensor:
            values = zip(self.params.items(), numbers.split(sizes), strict=True)
            return function({name: part.reshape(value.shape) for (name, value), part in values})

        value = function_of_vector(estimate)
        derivative: Any = torch.autograd.functional.jacobian(function_of_vector, estimate)
        jacobian = derivative.reshape(-1, len(estimate))
        if not bool(value.isfinite().all()) or not bool(jacobian.isfinite().all()):
            raise NumericalError(
                f"the function is {value.tolist()} at the estimates, or its derivative there is "
                "not finite"
            )
        covariance = jacobian @ self.covariance @ jacobian.T
        return Derived(value, _standard_errors(covariance).reshape(value.shape), covariance)


class Derived(NamedTuple):
    """The value of a function of the params at the estimates, M numbers in all."""

    value: Tensor
    standard_error: Tensor  # of the same shape
    covariance: Tensor  # (M, M)


def observed_information(
    model: Callable[..., Any],
    *rows: Tensor,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    freeze: Iterable[str] = (),
    robust: bool = False,
    chunk: int | None = None,
) -> ObservedInformation:
    r"""Compute standard errors of the params of a model that was fitted by maximum likelihood.

    The log likelihood :math:`\sum_n \log \sum_c p(c, x_n)` is exact, with row weights. (If the log
    density of a family or gate includes a ridge penalty, the standard errors are those of the
    penalized fit.) With A minus its Hessian in the unconstrained params, their covariance is
    :math:`A^{-1}`. With ``robust`` it is the sandwich :math:`A^{-1} B A^{-1}`, where B is the sum
    of the outer products of the rows' scores. The sandwich is also valid if the model is
    misspecified (White, "Maximum likelihood estimation of misspecified models", Econometrica 50,
    1982). Row weights are counts, not survey weights: a row of weight two counts as two rows. The
    delta method carries the covariance over to the constrained values. Directions in which
    constraints allow no movement are removed first; a simplex, for example, has C - 1.

    The Hessian is a central difference of exact gradients, and scores are central differences of
    the rows' log evidence, both in float64 regardless of the params' dtype. This works for every
    family, including kernels without second derivatives. It takes three passes over the data per
    unconstrained number, and is therefore meant for small models.

    :param model: the fitted program.
    :param rows: the model's tensor arguments, N rows each.
    :param site: name of the discrete site.
    :param given: values of the model's other latent sites, if it has any.
    :param freeze: names of params taken as known, in addition to those with
        ``requires_grad=False``.
    :param robust: compute the sandwich instead of the inverse information.
    :param chunk: rows evaluated at once.
    :returns: estimates, standard errors and covariance. Warns (``RuntimeWarning``) if the fit has
        not converged.
    :raises NumericalError: if the information is singular; the message names the params that the
        data do not identify (a component without rows; logits or factors known up to a
        transformation). Also if it has negative eigenvalues: the params are not at a maximum.
    :raises ModelError: if the program has random sites outside its data plate, or draws a
        subsample. Parameters of plain torch modules (``MixtureOfExperts``) cannot be varied.
    :raises OptionError: if an option does not fit the program.

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
    check_flag(robust=robust)
    likelihood = ExactLikelihood(model, rows, site, given, frozenset(freeze), chunk)
    params = likelihood.params
    u = params.start
    gradient, log_evidence = likelihood.slope(u)
    weight = likelihood.weight()
    hessian, scores = central_differences(likelihood, u, log_evidence)
    tangent = params.tangent()
    directions = tangent.directions
    information = -directions.T @ hessian @ directions
    inverse = _inverse(information, tangent)
    _warn_unless_converged(directions.T @ gradient, inverse)
    if robust:
        influence = weight.sqrt().unsqueeze(-1) * scores @ directions @ inverse
        inverse = influence.T @ influence
    covariance = tangent.jacobian @ inverse @ tangent.jacobian.T
    values = params.values(u)
    return ObservedInformation(
        params=values,
        standard_errors=_by_param(_standard_errors(covariance), values),
        names=params.labels(),
        covariance=covariance,
        information=information,
        log_likelihood=float((weight * log_evidence).sum()),
    )


def standard_errors(model: Callable[..., Any], *rows: Tensor, **options: Any) -> dict[str, Tensor]:
    """Compute standard errors of the model's params by name; see :func:`observed_information`.

    :param model: the fitted program.
    :param rows: the model's tensor arguments, N rows each.
    :param options: those of :func:`observed_information`.
    :returns: for each param a tensor of its shape, in float64.

    >>> import pyro
    >>> from pyro_mixtures.distributions import IsotropicNormals, MixtureWeights
    >>> def model(x):
    ...     loc = pyro.param("loc", x.mean(0, keepdim=True))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", MixtureWeights(torch.ones(1)))
    ...         pyro.sample("x", IsotropicNormals(loc, torch.ones(1))[z], obs=x)
    >>> standard_errors(model, torch.randn(100, 1))
    {'loc': tensor([[0.1000]], dtype=torch.float64)}
    """
    return observed_information(model, *rows, **options).standard_errors


def _standard_errors(covariance: Tensor) -> Tensor:
    return covariance.diagonal().clamp_min(0).sqrt()


def _by_param(numbers: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split ``numbers`` (K,) into tensors of the shapes of the params' ``values``."""
    parts = numbers.split([value.numel() for value in values.values()])
    return {
        name: part.reshape(value.shape)
        for (name, value), part in zip(values.items(), parts, strict=True)
    }


def central_differences(
    likelihood: ExactLikelihood, u: Tensor, log_evidence: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the Hessian (U, U) and the rows' unweighted scores (N, U), by central differences."""
    hessian_rows, score_columns = [], []
    for number in range(len(u)):
        length = _step_length(likelihood, u, number, log_evidence)
        step = torch.zeros_like(u)
        step[number] = length
        above, below = likelihood.slope(u + step), likelihood.slope(u - step)
        hessian_rows.append((above.gradient - below.gradient) / (2 * length))
        score_columns.append((above.log_evidence - below.log_evidence) / (2 * length))
    hessian = torch.stack(hessian_rows)
    return (hessian + hessian.T) / 2, torch.stack(score_columns, -1)


def _step_length(
    likelihood: ExactLikelihood, u: Tensor, number: int, log_evidence: Tensor
) -> float:
    """Return the step of ``u[number]`` that changes some row's log likelihood by ``_CHANGE``."""
    scale = 1 + abs(float(u[number]))
    trial_length = 1e-6 * scale
    trial = u.clone()
    trial[number] += trial_length
    largest_change = float((likelihood.log_evidence(trial) - log_evidence).abs().max())
    rate = largest_change / trial_length
    length = _CHANGE / rate if rate > 0 and math.isfinite(rate) else math.inf
    return min(length, 0.1 * scale)


def _inverse(information: Tensor, tangent: Tangent) -> Tensor:
    """Return the inverse of the information (R, R).

    :raises NumericalError: if it is singular or has negative eigenvalues.
    """
    size = information.diagonal().abs().sqrt()
    unit = torch.where(size > 0, 1 / size, 1.0)
    eigenvalues, eigenvectors = torch.linalg.eigh(unit.unsqueeze(-1) * information * unit)
    if float(eigenvalues[0]) < -_SINGULAR:
        names = _moved_params(eigenvectors[:, :1], tangent)
        raise NumericalError(
            f"the log likelihood curves upwards in params {names}: they are not at a maximum; fit "
            "until convergence first"
        )
    flat = eigenvectors[:, eigenvalues < _SINGULAR]
    if flat.shape[1]:
        raise NumericalError(
            f"params {_moved_params(flat, tangent)} are not identified: in {flat.shape[1]} "
            "directions the log likelihood does not change; freeze= them, or remove what is "
            "redundant (components without rows, a gate without reference, repeated covariates)"
        )
    root = eigenvectors / eigenvalues.sqrt() * unit.unsqueeze(-1)
    return root @ root.T


def _moved_params(directions: Tensor, tangent: Tangent) -> list[str]:
    """Return the names of the params that any of the ``directions`` (R, L) moves."""
    moved = (directions.square().amax(-1) > 1e-3).tolist()
    return sorted({name for name, is_moved in zip(tangent.owners, moved, strict=True) if is_moved})


def _warn_unless_converged(gradient: Tensor, inverse: Tensor) -> None:
    predicted_gain = float(gradient @ inverse @ gradient) / 2
    if predicted_gain > _CONVERGED:
        warnings.warn(
            f"the log likelihood can still increase by about {predicted_gain:.2g} nats, but "
            "standard errors are valid at a maximum only: fit until convergence first",
            RuntimeWarning,
            stacklevel=3,
        )
