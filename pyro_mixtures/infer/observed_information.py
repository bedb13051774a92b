"""Observed information: standard errors of a fitted mixture's params, from the Hessian of its exact log likelihood."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import transform_to
from torch.func import functional_call

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, NumericalError, OptionError
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import log_joint, read_declaration
from pyro_mixtures.poutine.params import ParamHandle, handle_of

# (row, component) pairs of a chunk, whose graph is alive at once.
_PAIRS = 1 << 20
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
    information: Tensor  # (R, R) minus the Hessian, in R free directions of the unconstrained params
    log_likelihood: float  # in nats


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

    The log likelihood is exact, :math:`\sum_n \log \sum_c p(c, x_n)`, by row weights. (Where a family's or gate's log
    density includes a ridge penalty, so does this: errors are then those of the penalised fit.) Minus its Hessian A in
    the unconstrained params gives their covariance :math:`A^{-1}`, or with ``robust`` the sandwich :math:`A^{-1} B
    A^{-1}` with B the sum of the rows' outer products of scores, which is right under a wrong model, too (White,
    "Maximum likelihood estimation of misspecified models", Econometrica 50, 1982). A row of weight two counts as two
    rows of its kind: weights are counts here, not those of a survey. The delta method carries it over to
    the constrained values. Directions that constraints leave no freedom (a simplex has C - 1) are taken out first.

    The Hessian is a central difference of exact gradients, and scores are central differences of the rows' evidence,
    in float64 whatever the params' dtype: so any family will do, kernels without second derivatives included. That
    takes three passes over the data for every unconstrained number: for small models.

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
        (``MixtureOfModules``) are the modules' own and cannot be moved.

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
    likelihood = _Likelihood(model, rows, site, given, frozenset(freeze), chunk)
    found = likelihood.params
    (slope, evidence), weight = likelihood.slope(found.start), likelihood.weight()
    hessian, scores = _differences(likelihood, found.start, evidence)
    tangent = found.tangent()
    information = -tangent.free.T @ hessian @ tangent.free
    inverse = _inverse(information, tangent.owners)
    _warn_unless_converged(tangent.free.T @ slope, inverse)
    if robust:
        moved = weight.sqrt().unsqueeze(-1) * scores @ tangent.free @ inverse
        inverse = moved.T @ moved
    covariance = tangent.out @ inverse @ tangent.out.T
    values = found.values(found.start)
    spread = covariance.diagonal().clamp_min(0).sqrt().split([value.numel() for value in values.values()])
    errors = {name: part.reshape(values[name].shape) for name, part in zip(values, spread, strict=True)}
    return ObservedInformation(
        values, errors, found.labels(), covariance, information, float((weight * evidence).sum())
    )


def standard_errors(model: Callable, *rows: Tensor, **options: Any) -> dict[str, Tensor]:
    """Standard errors of the model's params, by name, each shaped like its param: see :func:`observed_information`."""
    return observed_information(model, *rows, **options).standard_errors


class _Tangent(NamedTuple):
    """R directions of the unconstrained numbers u (U,) that move the K constrained ones."""

    free: Tensor  # (U, R), orthonormal
    out: Tensor  # (K, R), how they move these
    owners: list[str]  # the param of each


class _Params:
    """The params that are estimated, as one vector of their unconstrained numbers u (U,) in float64."""

    def __init__(self, handles: list[ParamHandle]):
        self.handles = handles
        self.start = torch.cat([h.leaf.detach().double().reshape(-1) for h in handles])
        self.sizes = [h.leaf.numel() for h in handles]

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Constrained values by name."""
        parts = zip(self.handles, u.split(self.sizes), strict=True)
        return {h.name: transform_to(h.constraint)(part.reshape(h.leaf.shape)) for h, part in parts}

    def tangent(self) -> "_Tangent":
        """Where the constrained values can go."""
        free, out, owners = [], [], []
        for handle, part in zip(self.handles, self.start.split(self.sizes), strict=True):
            constrain = transform_to(handle.constraint)

            def flat(u: Tensor, constrain=constrain, shape=handle.leaf.shape) -> Tensor:
                return constrain(u.reshape(shape)).reshape(-1)

            jacobian = torch.autograd.functional.jacobian(flat, part)
            free.append(_free_directions(jacobian))
            out.append(jacobian @ free[-1])
            owners += [handle.name] * free[-1].shape[1]
        return _Tangent(torch.block_diag(*free), torch.block_diag(*out), owners)

    def labels(self) -> tuple[str, ...]:
        """Names of all constrained numbers."""
        shapes = {name: value.shape for name, value in self.values(self.start).items()}
        return tuple(
            f"{name}[{', '.join(map(str, at))}]" if at else name
            for name, shape in shapes.items()
            for at in product(*map(range, shape))
        )


class _Likelihood:
    """The rows' log evidence as a function of the unconstrained params, in float64."""

    def __init__(
        self,
        model: Callable,
        rows: tuple,
        site: str,
        given: Mapping[str, Tensor] | None,
        freeze: frozenset[str],
        chunk: int | None,
    ):
        tensors = Batches(rows).tensors
        self.declaration = read_declaration(model, site, tensors, {})
        if self.declaration.outside:
            raise ModelError(
                f"sites {list(self.declaration.outside)} lie outside the data plate: the likelihood of the rows alone "
                "would ignore them"
            )
        if chunk is not None:
            check_whole(chunk=chunk)
        self.size = chunk or max(1, _PAIRS // self.declaration.components)
        handles = _handles(model, tensors)
        unknown = sorted(freeze - {h.name for h in handles})
        if unknown:
            raise OptionError(f"freeze={unknown}: the model has no such params; it has {[h.name for h in handles]}")
        estimated = [h for h in handles if h.leaf.requires_grad and h.name not in freeze]
        if not estimated:
            raise OptionError("no params are left to estimate: all are frozen, or the model has none")
        infinite = [h.name for h in estimated if not bool(h.leaf.isfinite().all())]
        if infinite:
            raise NumericalError(
                f"params {infinite} are not finite, as those of a gate's components without rows: freeze= them, or fit "
                "with fewer components"
            )
        self.params = _Params(estimated)
        everything = _Params(handles)
        self.known = everything.values(everything.start)
        self.rows = tuple(_widened(tensor) for tensor in tensors)
        self.given = {name: _widened(value) for name, value in (given or {}).items()}
        self.model = _with_wide_buffers(model)

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (U,) of the log likelihood, and each row's evidence (N,), which counts once in it."""
        u = u.detach().requires_grad_()
        total, parts = torch.zeros_like(u), []
        with torch.enable_grad():
            for part, weight in self._parts(u):
                if part.requires_grad:
                    total += torch.autograd.grad((weight * part).sum(), u)[0]
                parts.append(part.detach())
        return total, torch.cat(parts)

    def evidence(self, u: Tensor) -> Tensor:
        """Each row's evidence (N,)."""
        with torch.no_grad():
            return torch.cat([part for part, _ in self._parts(u)])

    def weight(self) -> Tensor:
        """How often each row (N,) counts."""
        with torch.no_grad():
            return torch.cat([weight for _, weight in self._parts(self.params.start)])

    def _parts(self, u: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.rows[0]), self.size):
            some = tuple(tensor[start : start + self.size] for tensor in self.rows)
            model = pyro.poutine.substitute(self.model, data={**self.known, **self.params.values(u)})
            with _double():
                joint = log_joint(
                    model, self.declaration, self._everyone, some, {}, self.given, gradients=torch.is_grad_enabled()
                )
            if joint.rows != len(some[0]):
                raise ModelError(
                    f"the model took {joint.rows} of {len(some[0])} rows: open its plate without subsample_size"
                )
            evidence = joint.log_joint.logsumexp(0)
            if joint.mask is not None:
                evidence = torch.where(joint.mask, evidence, 0.0)
            yield evidence, torch.ones_like(evidence.detach()) * joint.scale

    def _everyone(self, index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(self.declaration.components, device=device).unsqueeze(-1)


def _handles(model: Callable, rows: tuple) -> list[ParamHandle]:
    """The program's params, each once."""
    with pyro.poutine.block(), torch.no_grad():
        nodes = pyro.poutine.trace(model).get_trace(*rows).nodes.values()
    return [handle_of(node) for node in nodes if node["type"] == "param"]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _with_wide_buffers(model: Callable) -> Callable:
    """A module's constants in float64, like its params."""
    if not isinstance(model, torch.nn.Module):
        return model
    buffers: Any = {name: _widened(buffer) for name, buffer in model.named_buffers()}
    return lambda *args, **kwargs: functional_call(model, buffers, args, kwargs)


@contextmanager
def _double() -> Iterator[None]:
    """Constants that the program makes are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _differences(likelihood: _Likelihood, u: Tensor, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """The Hessian (U, U) of the log likelihood, and the rows' scores (N, U), unweighted, by central differences."""
    hessian, scores = [], []
    for i in range(len(u)):
        step = torch.zeros_like(u)
        step[i] = h = _step(likelihood, u, i, evidence)
        (up, above), (down, below) = likelihood.slope(u + step), likelihood.slope(u - step)
        hessian.append((up - down) / (2 * h))
        scores.append((above - below) / (2 * h))
    found = torch.stack(hessian)
    return (found + found.T) / 2, torch.stack(scores, -1)


def _step(likelihood: _Likelihood, u: Tensor, i: int, evidence: Tensor) -> float:
    """How far number ``i`` may move before some row's log likelihood changes by ``_CHANGE``."""
    trial, size = u.clone(), 1 + abs(float(u[i]))
    trial[i] += 1e-6 * size
    rate = float((likelihood.evidence(trial) - evidence).abs().max()) / (1e-6 * size)
    wanted = _CHANGE / rate if rate > 0 and math.isfinite(rate) else math.inf
    return min(wanted, 0.1 * size)


def _free_directions(jacobian: Tensor) -> Tensor:
    """Orthonormal directions (U, R) of u that constrained values follow, whatever the units of these."""
    length = jacobian.norm(dim=-1, keepdim=True)
    unit = jacobian / torch.where(length > 0, length, 1.0)
    _, size, directions = torch.linalg.svd(unit, full_matrices=False)
    return directions[size > _SINGULAR * size.max()].T


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
