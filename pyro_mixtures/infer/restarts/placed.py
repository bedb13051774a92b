"""Programs whose params live in a param store of their own: several fits of one declaration side by side."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch

State = Any  # of a param store: its get_state()


class Placed:
    """``model`` as a program that runs in the param store of ``state``, wherever it is called.

    Pyro knows params by name alone, so that fits of the same program take each other's values in
    one store.

    >>> def model():
    ...     return pyro.param("loc", torch.zeros(()))
    >>> other = Placed(model, {"params": {}, "constraints": {}})
    >>> with torch.no_grad():
    ...     here, there = model().fill_(1.0), other()
    >>> here.item(), there.item()
    (1.0, 0.0)
    """

    def __init__(self, model: Callable, state: State):
        self.model, self.state = model, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.store():
            return self.model(*args, **kwargs)

    @contextmanager
    def store(self) -> Iterator[None]:
        """Pyro's store with this program's params in it, until the end."""
        with pyro.get_param_store().scope(self.state):
            yield


def store_without(*owners: Any) -> State:
    """The state of Pyro's store, but for params that modules among ``owners`` hold themselves.

    Run in it, such modules give the values that they hold, and not those that another model left
    under their names.
    """
    names, state = held_names(*owners), pyro.get_param_store().get_state()
    return {
        "params": {name: leaf for name, leaf in state["params"].items() if name not in names},
        "constraints": {
            name: entry for name, entry in state["constraints"].items() if name not in names
        },
    }


def held_names(*owners: Any) -> set[str]:
    """Names in Pyro's store of the params that modules among ``owners`` hold."""
    modules = [owner for owner in owners if isinstance(owner, torch.nn.Module)]
    return {
        name.removesuffix("_unconstrained")
        for module in modules
        for name, _ in module.named_parameters()
    }
