"""What fits that compete share: each in a param store of its own, and the winner's params put in place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import transform_to

from pyro_mixtures.data.rows import some_rows
from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.poutine.params import ParamHandle, handle_of


@contextmanager
def own_params(seed: int) -> Iterator[Any]:
    """An empty param store and the random state of ``seed``; yields the store's state, full at the end."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope() as params:
        yield params


def put_in_place(params: Any) -> None:
    """Add the params of a store's state to Pyro's store, in place of others of their names."""
    store = pyro.get_param_store()
    for name in params["params"].keys() & store.keys():
        del store[name]
    store.set_state(params)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put Pyro's random state back at the end."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def inference_of(built: Any) -> EM:
    """The ``EM`` of what ``build()`` returned: itself, or the last of (model, EM)."""
    inference = built[-1] if isinstance(built, tuple) else built
    if not isinstance(inference, EM):
        raise ModelError(f"build() returned {type(inference).__name__}: give an EM, or (model, EM)")
    return inference


def params_of(inference: EM, rows: Sequence[Tensor]) -> dict[str, ParamHandle]:
    """The params of a program, by name, as one run of it on some of the ``rows`` states them."""
    few = some_rows(rows, inference.guide.components)
    with pyro.poutine.block(), torch.no_grad():
        run = pyro.poutine.trace(inference.model, param_only=True)
        sites: dict[str, Any] = run.get_trace(*few).nodes
    return {name: handle_of(site) for name, site in sites.items() if site["type"] == "param"}


def value_of(param: ParamHandle) -> Tensor:
    """The constrained value, without gradients."""
    return transform_to(param.constraint)(param.leaf.detach())
