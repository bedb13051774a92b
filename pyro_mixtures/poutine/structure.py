"""The structure of a mixture program: its discrete site, the data plate, and all other sites."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.poutine.util import site_is_subsample

from pyro_mixtures.distributions import Selected
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import ModelError
from pyro_mixtures.ops.kernels.threads import reserve_threads


class ProgramStructure(NamedTuple):
    """What strategies need to know about a program. It is constant over calls with other rows."""

    site: str  # the discrete site, z
    components: int
    plate: str
    dim: int  # of the data plate, negative
    nesting: int  # largest number of plates around any site: candidates are enumerated left of them
    # Observed sites inside the data plate, in program order, without deterministic ones.
    observed: tuple[str, ...]
    # Observed sites and factors outside the data plate, such as priors written as factors.
    outside: tuple[str, ...]
    latent: tuple[str, ...]  # all other latent sites, whose values must be supplied
    dims: dict[str, int]  # number of dimensions of each site's value
    stock: frozenset[str]  # observed sites whose distribution is not a lazily selected family
    # Whether a stock distribution, that of z included, hides which params its arguments are.
    by_value: bool
    parameter_bytes: int  # size of all params
    on_kernels: bool  # whether the CPU kernels of this package do nearly all of the work

    def threads(self) -> AbstractContextManager[None]:
        """Return the context of runs, which gives the threads to the kernels or to torch."""
        return reserve_threads() if self.on_kernels else nullcontext()


def read_structure(
    model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ProgramStructure:
    """Run ``model`` once, hidden from the caller's handlers, and read its structure.

    :param model: the Pyro program.
    :param site: name of the discrete site.
    :param args: the model's positional arguments.
    :param kwargs: its keyword arguments.
    :returns: the structure: the discrete site, the data plate, and the sites of each kind.
    :raises ModelError: when there is no discrete latent site of that name in exactly one vectorized
        plate, or when two sites have the same name.
    """
    trace = _traced(model, args, kwargs)
    # Pyro's messages are typed for callables, not for distributions.
    sites: dict[str, Any] = {
        name: node for name, node in trace.nodes.items() if node["type"] == "sample"
    }
    names = [name for name, node in sites.items() if not site_is_subsample(node)]
    _check_discrete(site, sites, names)
    frame = _data_frame(site, sites[site])
    inside = {name for name in names if _is_inside(sites[name], frame.name)}
    observations = [
        name
        for name in names
        if sites[name]["is_observed"] and not _is_deterministic(sites[name]["fn"])
    ]
    observed = tuple(name for name in observations if name in inside)
    frames = [f for name in names for f in sites[name]["cond_indep_stack"] if f.vectorized]
    stock = frozenset(name for name in observed if not _is_selected(sites[name]["fn"]))
    params = [node["value"] for node in trace.nodes.values() if node["type"] == "param"]
    return ProgramStructure(
        site=site,
        components=len(sites[site]["fn"].enumerate_support(expand=False)),
        plate=frame.name,
        dim=frame.dim,
        nesting=max(-int(f.dim or 0) for f in frames),
        observed=observed,
        outside=tuple(name for name in observations if name not in inside),
        latent=tuple(name for name in names if name != site and not sites[name]["is_observed"]),
        dims={name: sites[name]["value"].dim() for name in names},
        stock=stock,
        by_value=bool(stock) or not _is_weights(sites[site]["fn"]),
        parameter_bytes=sum(value.numel() * value.element_size() for value in params),
        on_kernels=all(_is_on_kernels(sites[name]) for name in observed),
    )


def _traced(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with pyro.poutine.block(), torch.no_grad():
        try:
            return pyro.poutine.trace(model).get_trace(*args, **kwargs)
        except RuntimeError as error:
            if "Multiple" in str(error):
                raise ModelError(
                    f"two sites have the same name: {error}; give each site its own name"
                ) from error
            raise


def _check_discrete(site: str, sites: dict[str, Any], names: list[str]) -> None:
    if site not in names:
        raise ModelError(
            f"the model has no sample site {site!r}; it has {sorted(names)}. "
            "Pass site= to the guide"
        )
    node = sites[site]
    if node["is_observed"]:
        raise ModelError(f"site {site!r} is observed: nothing is left to infer")
    if not getattr(node["fn"], "has_enumerate_support", False):
        raise ModelError(
            f"site {site!r} is {type(node['fn']).__name__}: a mixture's z must be discrete"
        )


def _data_frame(site: str, node: Any) -> Any:
    """Return the frame of the data plate, the only plate around the discrete site."""
    stack = node["cond_indep_stack"]
    if len(stack) != 1 or not stack[0].vectorized:
        raise ModelError(
            f"site {site!r} must lie in exactly one vectorized plate, the data plate; "
            f"it lies in {[frame.name for frame in stack]}"
        )
    return stack[0]


def _unmasked(fn: Any) -> Any:
    return fn.base_dist if isinstance(fn, MaskedDistribution) else fn


def _is_selected(fn: Any) -> bool:
    return isinstance(_unmasked(fn), Selected)


def _is_weights(fn: Any) -> bool:
    return isinstance(_unmasked(fn), ComponentWeights)


def _is_on_kernels(node: Any) -> bool:
    fn = _unmasked(node["fn"])
    return isinstance(fn, Selected) and fn.family.on_kernels and node["value"].device.type == "cpu"


def _is_deterministic(fn: Any) -> bool:
    """``pyro.deterministic`` sites only name a value."""
    return isinstance(_unmasked(fn), Delta)


def _is_inside(node: Any, plate: str) -> bool:
    return any(frame.name == plate for frame in node["cond_indep_stack"])
