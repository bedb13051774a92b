"""What a strategy must know of a Pyro program before it runs it: the discrete site, its plate, the other sites."""

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
    """A mixture as declared: constant over calls, but for the numbers of rows."""

    site: str
    components: int
    plate: str
    dim: int  # of the data plate, negative
    nesting: int  # most plates around any site: candidates are enumerated left of them
    observed: tuple[
        str, ...
    ]  # observed sites inside the data plate, in program order, deterministic ones left out
    outside: tuple[
        str, ...
    ]  # observed sites and factors outside the data plate: priors written as factors, say
    latent: tuple[str, ...]  # all other latent sites, which somebody must supply
    dims: dict[str, int]  # how many dimensions each site's value has
    stock: frozenset[str]  # observed sites whose distribution is not a lazily selected family
    by_value: (
        bool  # whether a stock distribution, z's included, hides which params its arguments are
    )
    parameter_bytes: int  # size of all params
    on_kernels: bool  # whether the kernels of this package do nearly all of the work, on the CPU

    def threads(self) -> AbstractContextManager[None]:
        """Context of runs of the program: who gets the threads, the kernels or torch."""
        return reserve_threads() if self.on_kernels else nullcontext()


def read_structure(
    model: Callable, site: str, args: tuple, kwargs: dict[str, Any]
) -> ProgramStructure:
    """Run ``model`` once, unobserved by the caller's handlers, and read what kind of mixture it is.

    :raises ModelError: when there is no discrete site of that name in exactly one vectorised plate,
        or two of them.
    """
    with pyro.poutine.block(), torch.no_grad():
        try:
            trace = pyro.poutine.trace(model).get_trace(*args, **kwargs)
        except RuntimeError as error:
            if "Multiple" in str(error):
                raise ModelError(
                    f"a name is used by two sites: {error}; every site needs its own"
                ) from error
            raise
    # Pyro's messages are typed for callables, not for distributions.
    sites: dict[str, Any] = {
        name: node for name, node in trace.nodes.items() if node["type"] == "sample"
    }
    known = [name for name, node in sites.items() if not site_is_subsample(node)]
    if site not in known:
        raise ModelError(
            f"the model has no sample site {site!r}; it has {sorted(known)}. Pass site= to the guide"
        )
    node = sites[site]
    if node["is_observed"]:
        raise ModelError(f"site {site!r} is observed: nothing is left to infer")
    if not getattr(node["fn"], "has_enumerate_support", False):
        raise ModelError(
            f"site {site!r} is {type(node['fn']).__name__}: a mixture's z must be discrete"
        )
    plates = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    if len(plates) != 1 or len(node["cond_indep_stack"]) != 1:
        names = [frame.name for frame in node["cond_indep_stack"]]
        raise ModelError(
            f"site {site!r} must lie in exactly one vectorised plate, the data plate; it lies in {names}"
        )
    frame = plates[0]
    inside = [name for name in known if _inside(sites[name], frame.name)]
    frames = [f for name in known for f in sites[name]["cond_indep_stack"] if f.vectorized]
    observed = tuple(
        name
        for name in inside
        if sites[name]["is_observed"] and not _is_deterministic(sites[name]["fn"])
    )
    return ProgramStructure(
        site=site,
        components=len(node["fn"].enumerate_support(expand=False)),
        plate=frame.name,
        dim=frame.dim,
        nesting=max(-int(f.dim or 0) for f in frames),
        observed=observed,
        outside=tuple(
            name
            for name in known
            if sites[name]["is_observed"]
            and name not in inside
            and not _is_deterministic(sites[name]["fn"])
        ),
        latent=tuple(name for name in known if name != site and not sites[name]["is_observed"]),
        dims={name: sites[name]["value"].dim() for name in known},
        stock=frozenset(name for name in observed if not _is_selected(sites[name]["fn"])),
        by_value=not all(_is_selected(sites[name]["fn"]) for name in observed)
        or not _is_weights(node["fn"]),
        parameter_bytes=sum(
            _bytes(node["value"]) for node in trace.nodes.values() if node["type"] == "param"
        ),
        on_kernels=all(_is_on_kernels(sites[name]) for name in observed),
    )


def _unmasked(fn):
    return fn.base_dist if isinstance(fn, MaskedDistribution) else fn


def _is_selected(fn) -> bool:
    return isinstance(_unmasked(fn), Selected)


def _is_weights(fn) -> bool:
    return isinstance(_unmasked(fn), ComponentWeights)


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size()


def _is_on_kernels(node) -> bool:
    fn = _unmasked(node["fn"])
    return isinstance(fn, Selected) and fn.family.on_kernels and node["value"].device.type == "cpu"


def _is_deterministic(fn) -> bool:
    """``pyro.deterministic`` sites only give a value a name."""
    return isinstance(_unmasked(fn), Delta)


def _inside(node, plate: str) -> bool:
    return any(frame.name == plate for frame in node["cond_indep_stack"])
