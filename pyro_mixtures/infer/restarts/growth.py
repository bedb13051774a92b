"""Growing a mixture: fit few components, split the largest, go on with more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.restarts.trials import (
    inference_of,
    own_params,
    params_of,
    put_in_place,
    random_state_kept,
    value_of,
)
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine.params import ParamHandle

# Rows that a new component may expect: too few to live, and not none, since a row's first
# candidates may all be new.
_LITTLE = 1e-3


class Stage(NamedTuple):
    """A fit of one size, in the param store that it left behind."""

    fit: Fit
    params: dict[str, ParamHandle]
    store: Any


def grow(
    build: Callable[[int], EM | tuple[Callable, EM]],
    *rows: Tensor,
    components: Sequence[int],
    start: Callable[[Any], Any] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> list[Fit]:
    """Fit a mixture in stages of growing size; each begins with the components of the stage before.

    A stage's new components begin with hardly any weight, and so the first M-steps split them off
    the largest components, as they do with all dead ones: growth takes an ``EM`` of
    ``empty="reseed"``, and families that say how to split. Growth is greedy: what a small stage has
    merged a split may not part again, and where components overlap
    :func:`~pyro_mixtures.infer.restarts.best_of.best_of` several starts can do far better.

    :param build: makes a fresh ``EM`` (or ``(model, EM)``) with that many components.
    :param rows: the model's tensor arguments, each with N rows.
    :param components: sizes of the stages, increasing.
    :param start: sets the params of the first stage's model, as ``lambda model:
        model.start_at(seeds)``; by default it starts as ``build`` makes it.
    :param generator: source of randomness, on the CPU; torch's global one by default. Pyro's random
        state is put back.
    :param fit_options: for :func:`~pyro_mixtures.infer.em.fit`, of every stage.
    :returns: the stages' fits. The params of the last are in place in Pyro's store; models that are
        modules hold their own.
    :raises OptionError: for sizes that do not increase, an ``EM`` that does not re-seed, a guide
        that fills empty parts itself (``HardPartition``), or params that do not grow.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) + 8 * k for k in range(4)])
    >>> def build(components):
    ...     model = GaussianMixture(components=components, features=2)
    ...     return EM(model, FullPartition(model, components=components))
    >>> [len(stage.model.weights) for stage in grow(build, x, components=[1, 2, 4], progress=False)]
    [1, 2, 4]
    """
    sizes = checked_sizes(components)
    seeds = torch.randint(1 << 31, (len(sizes),), generator=generator, device="cpu").tolist()
    stages: list[Stage] = []
    with random_state_kept():
        for size, seed in zip(sizes, seeds, strict=True):
            with own_params(seed) as store:
                inference = inference_of(build(size))
                params = params_of(inference, rows)
                if stages:
                    before = {name: value_of(param) for name, param in stages[-1].params.items()}
                    inherit(inference, rows, before, size, sizes[len(stages) - 1])
                elif start is not None:
                    start(inference.model)
                if len(sizes) > 1:
                    _check_splits(inference)
                    _check_growth(inference)
                found = fit(inference, *rows, progress=progress, **fit_options)
            stages.append(Stage(found, params, store))
            if found.interrupted:
                break
    put_in_place(stages[-1].store)
    return [stage.fit for stage in stages]


def checked_sizes(components: Sequence[int]) -> list[int]:
    """Numbers of components, refused unless they increase."""
    if not isinstance(components, Iterable):
        raise OptionError(
            f"components={components!r}: give several numbers of components, as range(1, 9)"
        )
    sizes = list(components)
    for size in sizes:
        check_whole(components=size)
    if not sizes or any(b <= a for a, b in pairwise(sizes)):
        raise OptionError(f"components={sizes}: give numbers of components, increasing")
    return sizes


def _check_splits(inference: EM) -> None:
    if inference.empty != "reseed":
        raise OptionError(
            f"empty={inference.empty!r}: growth splits components by re-seeding, EM(empty='reseed')"
        )


def _check_growth(inference: EM) -> None:
    if inference.guide.reseeds:
        raise OptionError(
            f"{type(inference.guide).__name__} fills empty parts by itself, so that EM splits none and new ones stay "
            "empty: use fit_restarts for each number of parts"
        )


def _expected_rows(inference: EM, rows: tuple[Tensor, ...]) -> float:
    """Rows by their weights; those of weights below one count as one, as EM has it."""
    with pyro.poutine.block(), torch.no_grad():
        nodes: Any = pyro.poutine.trace(inference.model).get_trace(*rows).nodes
    scale = torch.as_tensor(nodes[inference.guide.site]["scale"], dtype=torch.float64, device="cpu")
    count = len(rows[0])
    return max(count, float(scale.sum() if scale.numel() > 1 else scale * count))


def inherit(
    inference: EM, rows: tuple[Tensor, ...], before: Mapping[str, Tensor], size: int, old: int
) -> None:
    """Give the first of ``size`` components the params ``before`` of ``old``, and the others hardly any weight.

    They will be split off at random rows of the largest: another time may part what this one does
    not.

    :raises OptionError: for params that do not grow, or an ``EM`` that does not re-seed.
    """
    _check_splits(inference)
    inference.random_rows = torch.Generator().manual_seed(
        int(torch.randint(1 << 31, (), device="cpu"))
    )
    params = params_of(inference, rows)
    if params.keys() != before.keys():
        raise ModelError(
            f"build({size}) has other params than build({old}): {sorted(params.keys() ^ before.keys())}"
        )
    little = _LITTLE / _expected_rows(inference, rows)
    weighted = False
    for name, param in params.items():
        value, wanted = before[name], value_of(param).shape
        if param.constraint is constraints.simplex and value.shape == (old,):
            param.write(
                torch.cat(
                    [value * (1 - (size - old) * little), value.new_full((size - old,), little)]
                )
            )
            weighted = True
        elif wanted == value.shape:  # shared by all components
            param.write(value)
        elif wanted == (size, *value.shape[1:]):
            param.write(value, slice(0, old))
        else:
            raise OptionError(
                f"param {name!r} is {tuple(value.shape)} for {old} components and {tuple(wanted)} for {size}: params "
                "of a mixture that grows have one entry a component, or are shared by all"
            )
    if not weighted:
        raise OptionError(
            "new components begin with little weight: growth needs weights that are one simplex param"
        )
