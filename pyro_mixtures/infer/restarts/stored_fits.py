"""Fits together with their params: several fits of one program, each in its own param store."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import transform_to

from pyro_mixtures.data.rows import spaced_rows
from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.poutine.params import ParamHandle, handle_of

State = Any  # what ParamStoreDict.get_state() returns; Pyro does not type it
Params = dict[str, ParamHandle]  # by name
Values = dict[str, Tensor]  # constrained values of params, by name


class StoredModel:
    """A program that runs in a param store of its own, regardless of what Pyro's store holds.

    Pyro identifies params by name alone. Two fits of the same program would therefore overwrite
    each other's values in a shared store.

    :param model: the program.
    :param state: the state of a param store, as ``pyro.get_param_store().get_state()`` returns it.

    >>> def model():
    ...     return pyro.param("loc", torch.zeros(()))
    >>> stored = StoredModel(model, {"params": {}, "constraints": {}})
    >>> with torch.no_grad():
    ...     in_global_store, in_own_store = model().fill_(1.0), stored()
    >>> in_global_store.item(), in_own_store.item()
    (1.0, 0.0)
    """

    def __init__(self, model: Callable[..., Any], state: State):
        self.model = model
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.store():
            return self.model(*args, **kwargs)

    @contextmanager
    def store(self) -> Iterator[None]:
        """Replace Pyro's param store by this program's within the context."""
        with pyro.get_param_store().scope(self.state):
            yield


@dataclass(frozen=True)
class StoredFit:
    """A fit together with the state of the param store in which it was made.

    :param fit: the fit.
    :param state: the state of its param store.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import fit, log_evidence
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.randn(50, 2)
    >>> with pyro.get_param_store().scope() as state:
    ...     model = GaussianMixture(components=2, features=2)
    ...     result = fit(EM(model, FullPartition(model, components=2)), x, progress=False)
    >>> stored = StoredFit(result, state)
    >>> log_evidence(stored.model, x).shape, "loc" in pyro.get_param_store()
    (torch.Size([50]), False)
    >>> stored.use() is result, "loc" in pyro.get_param_store()
    (True, True)
    """

    fit: Fit
    state: State = field(repr=False)

    @property
    def model(self) -> StoredModel:
        """The fitted program with its own params, regardless of what Pyro's store holds."""
        return StoredModel(self.fit.model, self.state)

    @property
    def em(self) -> EM:
        """The strategy of a fit by EM."""
        assert isinstance(self.fit.inference, EM)
        return self.fit.inference

    def use(self) -> Fit:
        """Copy the params into Pyro's store, where they replace params of the same names.

        :returns: the fit.
        """
        store = pyro.get_param_store()
        for name in self.state["params"].keys() & store.keys():
            del store[name]
        store.set_state(self.state)
        return self.fit

    def params(self, rows: Sequence[Tensor]) -> Params:
        """Return the params that the program declares when it runs on ``rows``."""
        with preserved_random_state(), self.model.store():
            return params_of(self.em, rows)

    def values(self, rows: Sequence[Tensor]) -> Values:
        """Return copies of the constrained values of :meth:`params`."""
        params = self.params(rows)
        return {name: constrained_value(param).clone() for name, param in params.items()}


@contextmanager
def fresh_store(seed: int) -> Iterator[State]:
    """Replace Pyro's param store by an empty one and set the seed of all random generators.

    Yields the state of the new store, which holds the params of the context at its end.
    """
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope() as state:
        yield state


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the random state of torch, NumPy and Python at the end of the context."""
    random_state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(random_state)


def inference_of(built: Any) -> EM:
    """Return the ``EM`` in the result of a user's ``build()``: an ``EM``, or ``(model, EM)``.

    :raises ModelError: for any other result.
    """
    inference = built[-1] if isinstance(built, tuple) else built
    if not isinstance(inference, EM):
        raise ModelError(
            f"build() returned {type(inference).__name__}: return an EM, or (model, EM)"
        )
    return inference


def params_of(inference: EM, rows: Sequence[Tensor]) -> Params:
    """Return the params that the program declares when it runs on a sample of ``rows``."""
    with pyro.poutine.block(), torch.no_grad():
        tracer = pyro.poutine.trace(inference.model, param_only=True)
        trace = tracer.get_trace(*spaced_rows(rows, inference.guide.components))
    sites: dict[str, Any] = trace.nodes
    return {name: handle_of(site) for name, site in sites.items() if site["type"] == "param"}


def constrained_value(param: ParamHandle) -> Tensor:
    """Return the constrained value of a param, without gradients."""
    return transform_to(param.constraint)(param.leaf.detach())


def write_values(params: Params, values: Values) -> None:
    """Set ``params`` to their constrained ``values``."""
    for name, param in params.items():
        param.write(values[name])


def state_without_modules(*owners: Any) -> State:
    """Return the state of Pyro's store without the params of modules among ``owners``.

    In this state a module's params have the values that the module holds. In Pyro's store they may
    have those of another module with params of the same names.
    """
    module_params = names_in_modules(*owners)
    state = pyro.get_param_store().get_state()
    return {
        field: {name: entry for name, entry in state[field].items() if name not in module_params}
        for field in ("params", "constraints")
    }


def names_in_modules(*owners: Any) -> set[str]:
    """Return the names in Pyro's store of all params of modules among ``owners``."""
    return {
        name.removesuffix("_unconstrained")
        for owner in owners
        if isinstance(owner, torch.nn.Module)
        for name, _ in owner.named_parameters()
    }
