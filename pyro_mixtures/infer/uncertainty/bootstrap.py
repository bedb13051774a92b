"""The bootstrap of a fitted mixture: refits to rows drawn with replacement."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.data.rows import Batches, numbered
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.infer.restarts.stored_fits import (
    State,
    StoredFit,
    inference_of,
    preserved_random_state,
    state_without_modules,
)
from pyro_mixtures.options import check_flag, check_generator, check_whole

Build = Callable[[], EM | tuple[Callable[..., Any], EM]]


@dataclass(frozen=True)
class Bootstrap:
    """The outcome of :func:`bootstrap`.

    :param fit: the fit of the original rows.
    :param refits: the fits of the resamples, each with its params.
    """

    fit: Fit
    refits: tuple[StoredFit, ...]

    def __repr__(self) -> str:
        converged = int(self.converged.sum())
        return f"Bootstrap({self.fit!r}, {len(self.refits)} refits, {converged} of them converged)"

    @property
    def elbos(self) -> np.ndarray:
        """ELBO (draws,) of each refit, in nats per row of its resample."""
        return np.array([refit.fit.elbo for refit in self.refits])

    @property
    def converged(self) -> np.ndarray:
        """Whether each refit (draws,) converged."""
        return np.array([refit.fit.converged for refit in self.refits])


def bootstrap(
    fitted: Fit | Build,
    *rows: Tensor,
    draws: int = 100,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> Bootstrap:
    """Refit a mixture to resamples of the rows, each time from the params of the first fit.

    The spread of the refits' params estimates the sampling distribution of the estimator for data
    sets of N rows (Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics
    7, 1979; for mixtures: McLachlan & Peel, "Finite Mixture Models", 2000, section 2.16). Refits
    start from the first fit, so they stay near its mode and keep its order of components;
    ``to_arviz`` aligns those whose components switched. The spread does not include other modes:
    use restarts to find these.

    Each refit uses a copy of model and guide and its own param store; Pyro's store keeps the first
    fit. A hard partition's labels are resampled with their rows. A truncated guide keeps its
    neighbor graph and searches for candidates again. Memory: ``draws`` copies of model and guide.

    :param fitted: a :class:`Fit` of ``rows`` by EM, or a function ``build()`` that returns a new
        ``EM`` (or ``(model, EM)``), which is fitted to the rows first.
    :param rows: the model's tensor arguments, N rows each.
    :param draws: number of resamples.
    :param generator: source of randomness, on the CPU; torch's global generator by default. Pyro's
        random state is restored at the end.
    :param progress: show a progress bar over the draws.
    :param fit_options: passed to :func:`fit` for every fit.
    :returns: the first fit and the refits. Ctrl-C ends the current refit, which is then the last
        one.
    :raises OptionError: if ``draws`` or ``epochs=`` is not positive.
    :raises ModelError: if the fit is not by EM (an optimizer's state cannot be reset), or if rows
        have weights.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=2)
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> def build():
    ...     return EM(model, FullPartition(model, components=2))
    >>> result = bootstrap(build, x, draws=3, progress=False)
    >>> len(result.refits), result.elbos.shape
    (3, (3,))
    """
    check_flag(progress=progress)
    check_whole(draws=draws, epochs=fit_options.get("epochs", 1))
    check_generator(generator)
    tensors = Batches(rows).tensors
    first = fitted if isinstance(fitted, Fit) else _first_fit(fitted, tensors, fit_options)
    if not isinstance(first.inference, EM):
        raise ModelError(
            f"bootstrap refits by EM, but this fit is by {type(first.inference).__name__}: pass a "
            "fit by EM, or put priors on the params and let to_arviz draw from their guide"
        )
    check_unweighted(first.inference, tensors)
    count = len(tensors[0])
    refits: list[StoredFit] = []
    with (
        preserved_random_state(),
        tqdm(total=draws, desc="bootstrap", disable=not progress, unit="draw") as bar,
    ):
        for _ in range(draws):
            index = torch.randint(count, (count,), generator=generator, device="cpu")
            seed = int(torch.randint(1 << 31, (), generator=generator, device="cpu"))
            refits.append(_refit(first.inference, tensors, index, seed, fit_options))
            bar.update()
            if refits[-1].fit.interrupted:
                break
    return Bootstrap(first, tuple(refits))


def check_unweighted(em: EM, rows: tuple[Tensor, ...]) -> None:
    """Refuse rows with weights, which resampling would draw or omit as a whole.

    :raises ModelError: if a row weight differs from one.
    """
    with preserved_random_state(), pyro.poutine.block(), torch.no_grad():
        nodes: Any = pyro.poutine.trace(em.model).get_trace(*rows).nodes
    scale = torch.as_tensor(nodes[em.guide.site]["scale"], device="cpu")
    if not bool((scale == 1).all()):
        raise ModelError(
            "the model's rows have weights other than one, but the bootstrap resamples rows: pass "
            "each row as often as it counts, with weight one (the items that were drawn, not their "
            "counts)"
        )


def _first_fit(build: Any, rows: tuple[Tensor, ...], fit_options: dict[str, Any]) -> Fit:
    if not callable(build):
        raise OptionError(
            f"{type(build).__name__} is neither a Fit nor a function build() that returns an EM"
        )
    return fit(inference_of(build()), *rows, progress=False, **fit_options)


def _refit(
    em: EM, rows: tuple[Tensor, ...], index: Tensor, seed: int, fit_options: dict[str, Any]
) -> StoredFit:
    """Fit a copy of ``em`` to the rows ``index`` (N,)."""
    pyro.set_rng_seed(seed)
    inference = copy.deepcopy(_with_resampled_labels(em, index))
    state = _copy_params(state_without_modules(inference.model, inference.guide))
    resampled = [tensor[index.to(tensor.device)] for tensor in rows]
    with pyro.get_param_store().scope(state), numbered(index):
        result = fit(inference, *resampled, progress=False, **fit_options)
    return StoredFit(result, state)


def _with_resampled_labels(em: EM, index: Tensor) -> EM:
    """Return a shallow copy of ``em`` whose guide holds the labels of the rows ``index``."""
    inference, guide = copy.copy(em), copy.copy(em.guide)
    if isinstance(guide, LabeledGuide) and guide.labels is not None:
        guide.set_labels(guide.labels[..., index])
    inference.guide = guide
    inference.forget()
    return inference


def _copy_params(state: State) -> State:
    """Copy the params of functions: they exist only in the store, and refits would share them."""
    params = {
        name: leaf.detach().clone().requires_grad_(leaf.requires_grad)
        for name, leaf in state["params"].items()
    }
    return {"params": params, "constraints": dict(state["constraints"])}
