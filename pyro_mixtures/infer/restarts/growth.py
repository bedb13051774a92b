"""Growing a mixture: fit few components, split the largest ones, continue with more components."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.infer.restarts.stored_fits import (
    Params,
    StoredFit,
    Values,
    constrained_value,
    fresh_store,
    inference_of,
    params_of,
    preserved_random_state,
)
from pyro_mixtures.options import check_flag, check_whole
from pyro_mixtures.poutine.params import ParamHandle

# Expected rows of a new component. Too few for its parameters, so that EM re-seeds it; but not
# zero, since the first candidates of a row may all be new components.
_EXPECTED_ROWS = 1e-3


def grow(
    build: Callable[[int], EM | tuple[Callable[..., Any], EM]],
    *rows: Tensor,
    components: Sequence[int],
    start: Callable[[Any], Any] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> list[Fit]:
    """Fit a mixture with increasing numbers of components, each fit starting from the one before.

    The components that a stage adds start with almost no weight. The first M-steps then re-seed
    them, as they re-seed all empty components: each becomes a copy of a large component. Growth
    therefore needs ``EM(empty="reseed")`` and families that can split a component. It is greedy: a
    later split may not undo a merge of an early stage. Where components overlap,
    :func:`~pyro_mixtures.infer.restarts.best_of.best_of` can find a much better fit.

    :param build: returns a new ``EM`` (or ``(model, EM)``) with the given number of components.
    :param rows: the model's tensor arguments, each with N rows.
    :param components: numbers of components of the stages, increasing.
    :param start: sets the params of the first stage's model, such as ``lambda model:
        model.start_at(seeds)``; by default they stay as ``build`` made them.
    :param generator: source of randomness, on the CPU; torch's global generator by default. Pyro's
        random state is restored at the end.
    :param progress: show a progress bar for every stage.
    :param fit_options: passed to :func:`~pyro_mixtures.infer.em.fit` in every stage.
    :returns: the fits of all stages. The params of the last one are in Pyro's store; models that
        are modules hold their own. Ctrl-C ends the current stage, which is then the last one.
    :raises OptionError: for numbers that do not increase, an ``EM`` that does not re-seed, a guide
        that fills empty clusters itself (``HardPartition``), or params that cannot grow.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) + 8 * k for k in range(4)])
    >>> def build(components):
    ...     model = GaussianMixture(components=components, features=2)
    ...     return EM(model, FullPartition(model, components=components))
    >>> [len(stage.model.weights) for stage in grow(build, x, components=[1, 2, 4], progress=False)]
    [1, 2, 4]
    """
    check_flag(progress=progress)
    sizes, tensors = checked_sizes(components), Batches(rows).tensors
    seeds = torch.randint(1 << 31, (len(sizes),), generator=generator, device="cpu").tolist()
    stages: list[StoredFit] = []
    with preserved_random_state():
        for size, seed in zip(sizes, seeds, strict=True):
            with fresh_store(seed) as state:
                inference = inference_of(build(size))
                if stages:
                    smaller_size = sizes[len(stages) - 1]
                    values = stages[-1].values(tensors)
                    inherit_values(inference, tensors, values, size, smaller_size)
                elif start is not None:
                    start(inference.model)
                if len(sizes) > 1:
                    _check_reseeds(inference)
                    _check_guide(inference)
                stage = fit(inference, *tensors, progress=progress, **fit_options)
                stages.append(StoredFit(stage, state))
            if stages[-1].fit.interrupted:
                break
    stages[-1].use()
    return [stage.fit for stage in stages]


def checked_sizes(components: Sequence[int]) -> list[int]:
    """Return numbers of components as a list.

    :raises OptionError: unless they are positive and increase.
    """
    if not isinstance(components, Iterable):
        raise OptionError(
            f"components={components!r}: pass a sequence of numbers of components, such as "
            "range(1, 9)"
        )
    sizes = list(components)
    for size in sizes:
        check_whole(components=size)
    if not sizes or any(larger <= smaller for smaller, larger in pairwise(sizes)):
        raise OptionError(f"components={sizes}: pass increasing numbers of components")
    return sizes


def inherit_values(
    inference: EM, rows: tuple[Tensor, ...], values: Values, size: int, smaller_size: int
) -> None:
    """Start a model of ``size`` components from the ``values`` of a fit with ``smaller_size``.

    The first components get the fitted params; the others get almost no weight. EM will re-seed
    those at random rows of large components, so that repeated growth tries different splits.

    :raises ModelError: if the two models have different params.
    :raises OptionError: for params that cannot grow, or an ``EM`` that does not re-seed.
    """
    _check_reseeds(inference)
    split_seed = int(torch.randint(1 << 31, (), device="cpu"))
    inference.random_rows = torch.Generator().manual_seed(split_seed)
    params = params_of(inference, rows)
    if params.keys() != values.keys():
        different = sorted(params.keys() ^ values.keys())
        raise ModelError(
            f"build({size}) and build({smaller_size}) have different params: {different}"
        )
    new_weight = _EXPECTED_ROWS / _weighted_rows(inference, rows)
    weights = _weights_among(params, values, smaller_size)
    for name, param in params.items():
        if name in weights:
            param.write(_grown_weights(values[name], size, new_weight))
        else:
            _write_grown(param, values[name], size, smaller_size)
    if not weights:
        raise OptionError(
            "growth gives new components almost no weight: it needs weights that are one simplex "
            "param; fit each number of components by itself, or pass warm_start=False to "
            "compare_fits"
        )


def _weights_among(params: Params, values: Values, components: int) -> set[str]:
    return {
        name
        for name, param in params.items()
        if param.constraint is constraints.simplex and values[name].shape == (components,)
    }


def _grown_weights(weights: Tensor, size: int, new_weight: float) -> Tensor:
    """Append components of weight ``new_weight`` to ``weights`` (C,)."""
    added = size - len(weights)
    return torch.cat([weights * (1 - added * new_weight), weights.new_full((added,), new_weight)])


def _write_grown(param: ParamHandle, value: Tensor, size: int, smaller_size: int) -> None:
    """Set the entries of the first components, or all entries of a param that components share."""
    shape = constrained_value(param).shape
    if shape == value.shape:
        param.write(value)
    elif shape == (size, *value.shape[1:]):
        param.write(value, slice(0, smaller_size))
    else:
        raise OptionError(
            f"param {param.name!r} has shape {tuple(value.shape)} for {smaller_size} components "
            f"and {tuple(shape)} for {size}: params of a mixture that grows have one entry per "
            "component, or are shared by all components"
        )


def _weighted_rows(inference: EM, rows: tuple[Tensor, ...]) -> float:
    """Return the sum of the row weights, but at least N, as EM does to find empty components."""
    with pyro.poutine.block(), torch.no_grad():
        nodes: Any = pyro.poutine.trace(inference.model).get_trace(*rows).nodes
    scale = torch.as_tensor(nodes[inference.guide.site]["scale"], dtype=torch.float64, device="cpu")
    count = len(rows[0])
    return max(count, float(scale.sum() if scale.numel() > 1 else scale * count))


def _check_reseeds(inference: EM) -> None:
    if inference.empty != "reseed":
        raise OptionError(
            f"empty={inference.empty!r}: growth splits components by re-seeding; use "
            "EM(empty='reseed')"
        )


def _check_guide(inference: EM) -> None:
    if isinstance(inference.guide, LabeledGuide):
        raise OptionError(
            f"{type(inference.guide).__name__} fills empty clusters itself, so EM would never "
            "split a component and the new ones would stay empty: use fit_restarts for each "
            "number of clusters"
        )
