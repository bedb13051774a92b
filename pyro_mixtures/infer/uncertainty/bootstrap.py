"""The bootstrap of a fitted mixture: how far its params move with the rows that happened to be drawn."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.restarts.placed import Placed, State, store_without
from pyro_mixtures.infer.restarts.starts import LabelledGuide
from pyro_mixtures.infer.restarts.trials import inference_of, random_state_kept
from pyro_mixtures.options import check_generator, check_whole

Build = Callable[[], EM | tuple[Callable, EM]]


class Refit(NamedTuple):
    """The fit of one resample, and its program in the param store that it was fitted in."""

    fit: Fit
    model: Placed


@dataclass(frozen=True)
class Bootstrap:
    """The outcome of :func:`bootstrap`."""

    fit: Fit  # of the rows as they are
    refits: tuple[Refit, ...]

    @property
    def elbos(self) -> np.ndarray:
        """The ELBO (draws,) that each refit ended with, in nats per row of its resample."""
        return np.array([refit.fit.elbo for refit in self.refits])

    @property
    def converged(self) -> np.ndarray:
        """Whether each refit (draws,) settled."""
        return np.array([refit.fit.converged for refit in self.refits])


def bootstrap(
    fitted: Fit | Build,
    *rows: Tensor,
    draws: int = 100,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> Bootstrap:
    """Fit a mixture again to rows drawn with replacement, ``draws`` times, each from the params of the first fit.

    The spread of the refits' params is that of the estimator over data sets of N rows (Efron,
    "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979; of mixtures:
    McLachlan & Peel, "Finite Mixture Models", 2000, 2.16). Starting at the fit keeps each refit
    near its mode and its labels; ``to_arviz`` aligns what switched nevertheless. The spread says
    nothing of other modes: restarts do.

    :param fitted: a :class:`Fit` by EM of ``rows``, or ``build()``, which makes a fresh ``EM`` (or
        ``(model, EM)``) to be fitted to them first.
    :param rows: the model's tensor arguments, N rows each.
    :param draws: number of resamples.
    :param generator: source of randomness, on the CPU; torch's global one by default. Pyro's random
        state is put back.
    :param progress: show a progress bar of the draws.
    :param fit_options: for :func:`fit`, each time.
    :raises OptionError: when ``draws`` or ``epochs=`` is not positive.
    :raises ModelError: when the fit is not by EM: an optimiser's state cannot begin anew; or when
        rows have weights.

    Every refit is a copy of model and guide with a param store of its own; Pyro's store keeps the
    first fit. The labels of a hard partition go with the rows. A truncated guide keeps its
    neighbour graph and searches anew. Memory is ``draws`` times that of the model and the guide.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=2)
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> found = bootstrap(lambda: EM(model, FullPartition(model, components=2)), x, draws=3, progress=False)
    >>> len(found.refits), found.elbos.shape
    (3, (3,))
    """
    check_whole(draws=draws, epochs=fit_options.get("epochs", 1))
    check_generator(generator)
    tensors = Batches(rows).tensors
    first = fitted if isinstance(fitted, Fit) else _first(fitted, tensors, fit_options)
    if not isinstance(first.inference, EM):
        raise ModelError(
            f"bootstrap fits again by EM, but this fit is by {type(first.inference).__name__}: give a fit by EM, or "
            "put priors on the params and let to_arviz draw from their guide"
        )
    check_unweighted(first.inference, tensors)
    count = len(tensors[0])
    refits = []
    with (
        random_state_kept(),
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
    """Refuse resampling of rows that have weights: one that stands for several would be drawn, or left out, as a whole.

    :raises ModelError: when weights of the rows differ from one.
    """
    with random_state_kept(), pyro.poutine.block(), torch.no_grad():
        nodes: Any = pyro.poutine.trace(em.model).get_trace(*rows).nodes
    scale = torch.as_tensor(nodes[em.guide.site]["scale"], device="cpu")
    if not bool((scale == 1).all()):
        raise ModelError(
            "the model's rows have weights other than one, but a bootstrap draws rows: give it the rows one by one "
            "(items that were drawn, instead of their counts)"
        )


def _first(build: Any, rows: tuple[Tensor, ...], fit_options: dict[str, Any]) -> Fit:
    if not callable(build):
        raise OptionError(
            f"{type(build).__name__} is neither a Fit nor a function that makes an EM"
        )
    return fit(inference_of(build()), *rows, progress=False, **fit_options)


def _refit(
    em: EM, rows: tuple[Tensor, ...], index: Tensor, seed: int, fit_options: dict[str, Any]
) -> Refit:
    """Fit a copy to the rows ``index`` (N,)."""
    pyro.set_rng_seed(seed)
    inference = copy.deepcopy(_with_labels(em, index))
    model = Placed(inference.model, _copied(store_without(inference.model, inference.guide)))
    with model.store():
        again = fit(
            inference,
            *(tensor[index.to(tensor.device)] for tensor in rows),
            progress=False,
            **fit_options,
        )
    return Refit(again, model)


def _with_labels(em: EM, index: Tensor) -> EM:
    """A shallow copy of ``em`` with a shallow copy of its guide, whose labels are those of the rows drawn."""
    inference, guide = copy.copy(em), copy.copy(em.guide)
    if isinstance(guide, LabelledGuide) and guide.labels is not None:
        guide.set_labels(guide.labels[..., index])
    inference.guide = guide
    inference.forget()
    return inference


def _copied(state: State) -> State:
    """Params that functions state live in the store alone: without copies all refits would share them."""
    params = {
        name: leaf.detach().clone().requires_grad_(leaf.requires_grad)
        for name, leaf in state["params"].items()
    }
    return {"params": params, "constraints": dict(state["constraints"])}
