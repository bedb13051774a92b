"""The rows' log evidence as a function of a program's params, in float64."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.func import functional_call

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, NumericalError, OptionError
from pyro_mixtures.infer.uncertainty.estimated_params import EstimatedParams
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import log_joint, read_structure
from pyro_mixtures.poutine.params import ParamHandle, handle_of

# (row, component) pairs of a chunk, whose graph is alive at once.
_PAIRS = 1 << 20


class ExactLikelihood:
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
        self.structure = read_structure(model, site, tensors, {})
        if self.structure.outside:
            raise ModelError(
                f"sites {list(self.structure.outside)} lie outside the data plate: the likelihood of the rows alone "
                "would ignore them"
            )
        if chunk is not None:
            check_whole(chunk=chunk)
        self.size = chunk or max(1, _PAIRS // self.structure.components)
        handles = _handles(model, tensors)
        unknown = sorted(freeze - {h.name for h in handles})
        if unknown:
            raise OptionError(
                f"freeze={unknown}: the model has no such params; it has {[h.name for h in handles]}"
            )
        estimated = [h for h in handles if h.leaf.requires_grad and h.name not in freeze]
        if not estimated:
            raise OptionError(
                "no params are left to estimate: all are frozen, or the model has none"
            )
        infinite = [h.name for h in estimated if not bool(h.leaf.isfinite().all())]
        if infinite:
            raise NumericalError(
                f"params {infinite} are not finite, as those of a gate's components without rows: freeze= them, or fit "
                "with fewer components"
            )
        self.params = EstimatedParams(estimated)
        everything = EstimatedParams(handles)
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

    def log_evidence(self, u: Tensor) -> Tensor:
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
            model = pyro.poutine.substitute(
                self.model, data={**self.known, **self.params.values(u)}
            )
            with _double():
                joint = log_joint(
                    model,
                    self.structure,
                    self._all_components,
                    some,
                    {},
                    self.given,
                    gradients=torch.is_grad_enabled(),
                )
            if joint.rows != len(some[0]):
                raise ModelError(
                    f"the model took {joint.rows} of {len(some[0])} rows: open its plate without subsample_size"
                )
            log_evidence = joint.log_joint.logsumexp(0)
            if joint.mask is not None:
                log_evidence = torch.where(joint.mask, log_evidence, 0.0)
            yield log_evidence, torch.ones_like(log_evidence.detach()) * joint.scale

    def _all_components(self, index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(self.structure.components, device=device).unsqueeze(-1)


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
