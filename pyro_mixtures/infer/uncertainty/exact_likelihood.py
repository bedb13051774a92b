"""The exact log likelihood of rows as a function of a program's params, in float64."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.func import functional_call

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, NumericalError, OptionError, row_numbers
from pyro_mixtures.infer.uncertainty.estimated_params import EstimatedParams
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import log_joint, read_structure
from pyro_mixtures.poutine.params import ParamHandle, handle_of

# (row, component) pairs per chunk, whose graph is in memory at once.
_PAIRS = 1 << 20

Rows = tuple[Tensor, ...]


class Slope(NamedTuple):
    """The gradient of the log likelihood, and the terms of its sum."""

    gradient: Tensor  # (U,) of the weighted sum of the rows' log evidence
    log_evidence: Tensor  # (N,) of each row, without its weight


class ExactLikelihood:
    """The rows' log evidence as a function of the unconstrained params u (U,), in float64.

    :param rows: the model's tensor arguments, N rows each.
    :param site: name of the discrete site.
    :param given: values of the model's other latent sites.
    :param freeze: names of params that stay fixed.
    :param chunk: rows evaluated at once.
    :raises ModelError: if the program has random sites outside its data plate.
    :raises OptionError: if ``freeze`` names a param that the model does not have, or leaves none.
    :raises NumericalError: if an estimated param is not finite.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rows: Rows,
        site: str,
        given: Mapping[str, Tensor] | None,
        freeze: frozenset[str],
        chunk: int | None,
    ):
        tensors = Batches(rows).tensors
        self.structure = read_structure(model, site, tensors, {})
        if self.structure.outside:
            raise ModelError(
                f"sites {list(self.structure.outside)} lie outside the data plate: the likelihood "
                "of the rows does not include them"
            )
        if chunk is not None:
            check_whole(chunk=chunk)
        self.chunk = chunk or max(1, _PAIRS // self.structure.components)
        params = _params_of(model, tensors)
        self.params = EstimatedParams(_estimated(params, freeze))
        all_params = EstimatedParams(params)
        self.fixed_values = all_params.values(all_params.start)
        self.rows = tuple(_to_double(tensor) for tensor in tensors)
        self.given = {name: _to_double(value) for name, value in (given or {}).items()}
        self.model = _with_double_buffers(model)

    def slope(self, u: Tensor) -> Slope:
        """Return the gradient of the log likelihood at ``u``, and each row's log evidence."""
        u = u.detach().requires_grad_()
        gradient = torch.zeros_like(u)
        chunks = []
        with torch.enable_grad():
            for log_evidence, weight in self._chunks(u):
                if log_evidence.requires_grad:
                    gradient += torch.autograd.grad((weight * log_evidence).sum(), u)[0]
                chunks.append(log_evidence.detach())
        return Slope(gradient, torch.cat(chunks))

    def log_evidence(self, u: Tensor) -> Tensor:
        """Return each row's log evidence (N,) at ``u``."""
        with torch.no_grad():
            return torch.cat([log_evidence for log_evidence, _ in self._chunks(u)])

    def weight(self) -> Tensor:
        """Return the row weights (N,)."""
        with torch.no_grad():
            return torch.cat([weight for _, weight in self._chunks(self.params.start)])

    def _chunks(self, u: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield log evidence and weights of one chunk of rows after the other."""
        for start in range(0, len(self.rows[0]), self.chunk):
            row_block = tuple(tensor[start : start + self.chunk] for tensor in self.rows)
            values = {**self.fixed_values, **self.params.values(u)}
            model = pyro.poutine.substitute(self.model, data=values)
            with _double_by_default(), row_numbers(start.__add__):
                joint = log_joint(
                    model,
                    self.structure,
                    self._all_components,
                    row_block,
                    {},
                    self.given,
                    gradients=torch.is_grad_enabled(),
                )
            if joint.rows != len(row_block[0]):
                raise ModelError(
                    f"the model took {joint.rows} of {len(row_block[0])} rows: open its plate "
                    "without subsample_size"
                )
            log_evidence = joint.log_joint.logsumexp(0)
            if joint.mask is not None:
                log_evidence = torch.where(joint.mask, log_evidence, 0.0)
            yield log_evidence, torch.ones_like(log_evidence.detach()) * joint.scale

    def _all_components(self, index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(self.structure.components, device=device).unsqueeze(-1)


def _params_of(model: Callable[..., Any], rows: Rows) -> list[ParamHandle]:
    with pyro.poutine.block(), torch.no_grad():
        nodes = pyro.poutine.trace(model).get_trace(*rows).nodes.values()
    return [handle_of(node) for node in nodes if node["type"] == "param"]


def _estimated(params: list[ParamHandle], freeze: frozenset[str]) -> list[ParamHandle]:
    """Return the params that are neither frozen nor constant."""
    names = [param.name for param in params]
    unknown = sorted(freeze - set(names))
    if unknown:
        raise OptionError(f"freeze={unknown}: the model has no such params; it has {names}")
    estimated = [param for param in params if param.leaf.requires_grad and param.name not in freeze]
    if not estimated:
        raise OptionError("no params are left to estimate: all are frozen, or the model has none")
    infinite = [param.name for param in estimated if not bool(param.leaf.isfinite().all())]
    if infinite:
        raise NumericalError(
            f"params {infinite} are not finite, such as those of a gate's components without rows: "
            "freeze= them, or fit with fewer components"
        )
    return estimated


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _with_double_buffers(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return the model with its constants, if it is a module, in float64."""
    if not isinstance(model, torch.nn.Module):
        return model
    buffers: Any = {name: _to_double(buffer) for name, buffer in model.named_buffers()}
    return lambda *args, **kwargs: functional_call(model, buffers, args, kwargs)


@contextmanager
def _double_by_default() -> Iterator[None]:
    """Make float64 the dtype of constants that the program creates."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
