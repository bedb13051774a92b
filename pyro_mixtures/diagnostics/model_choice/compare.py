"""Model choice: families of mixtures over numbers of components, fitted and compared in one call."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.model_choice.rows import heldout_rows
from pyro_mixtures.diagnostics.model_choice.score import INFORMATION, PREDICTIVE, Comparison, Score
from pyro_mixtures.diagnostics.model_choice.scorer import Scorer
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.restarts.growth import checked_sizes
from pyro_mixtures.infer.restarts.path import Build, Plan, Start
from pyro_mixtures.infer.restarts.trials import random_state_kept
from pyro_mixtures.options import check_flag, check_generator, check_whole


def compare_fits(
    builds: Mapping[str, Build],
    *rows: Tensor,
    components: Sequence[int],
    criterion: str = "bic",
    heldout: Tensor | Sequence[Tensor] | None = None,
    folds: int = 0,
    draws: int = 0,
    warm_start: bool = True,
    starts: int = 0,
    start: Start | None = None,
    truncated: bool = False,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> Comparison:
    """Fit every family with every number of components, and choose.

    ===============  ================================================================================================
    ``criterion``    chooses
    ===============  ================================================================================================
    ``"bic"``        the smallest ``p log n - 2 log L``; ``"aic"`` and ``"icl"`` likewise: see
                     :func:`~pyro_mixtures.infer.uncertainty.criteria.criteria`
    ``"heldout"``    by the log evidence of ``heldout`` rows, or of all rows by ``folds``, each row scored by the fit
                     that has not seen its fold. Exact at any number of components
    ``"loo"``        by PSIS-LOO, from ``draws`` refits to resampled rows, which start at the fit, see
                     :func:`~pyro_mixtures.diagnostics.model_choice.loo.leave_one_out`. Takes draws
                     x N numbers. ``unreliable`` is the share of rows whose Pareto k is too large,
                     and whose density under the draws that have not seen them is taken instead
    ===============  ================================================================================================

    A row of weight w counts as w rows in all of them, and is in a fold as a whole. The last two are
    estimates with errors: of all fits that are as good as the best up to one standard error of the
    difference the simplest is chosen, see :meth:`Comparison.best_by`.

    :param builds: by the family's name ``build(components)``, which makes a fresh ``EM`` (or
        ``(model, EM)``).
    :param rows: the model's tensor arguments, N rows each.
    :param components: numbers of components, increasing.
    :param heldout: rows that no fit sees, a tensor for each of ``rows``.
    :param folds: K of K-fold cross-validation: every fit is made K times more, from its first start
        on.
    :param draws: refits of each fit for PSIS-LOO, 30 at least; 0 does without. Rows must have
        weights of one.
    :param warm_start: each fit grows from that of the number of components before (as
        :func:`~pyro_mixtures.infer.restarts.growth.grow` does; the likeliest of three short ones
        goes on), and then competes, from the largest back to the smallest, with the one after
        without the components that its rows miss least; what this mends grows and shrinks once
        more. It needs re-seeding and weights that are a simplex param, and one exact pass over the
        rows for each component that goes.
    :param starts: fresh starts beside growth, the likeliest of which goes on (see
        :func:`~pyro_mixtures.infer.restarts.best_of.best_of`) and competes with it. What has
        nothing to grow from has one at least; so has a guide that does not split components,
        ``HardPartition``.
    :param start: ``start(model, *rows)`` sets the params of a fresh model, as ``lambda model, x:
        model.start_at(seed_rows(x, model.components))``; by default they stay as ``build`` made
        them.
    :param truncated: score with each fit's guide, a lower bound, instead of the sum over all
        components.
    :param chunk: rows evaluated at once.
    :param generator: source of randomness, on the CPU; torch's global one by default. Pyro's random
        state is put back.
    :param progress: show a bar of the fits with the best so far.
    :param fit_options: for :func:`~pyro_mixtures.infer.em.fit`, of every fit.
    :returns: the scores. The params of the best are in place in Pyro's store, which otherwise holds
        what it held.
    :raises OptionError: for impossible options, or a criterion that they do not compute, or more
        folds than rows.
    :raises DataError: when held out rows do not fit the rows. :raises ModelError: for draws of rows
        that have weights.
    :raises NumericalError: when a fit fails.

    Programs run on one row first. Ctrl-C returns the scores that are complete,
    ``interrupted=True``, if there are any: those of a family come after its last fit.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> def spheres(components):
    ...     model = GaussianMixture(components=components, features=2, covariance="isotropic")
    ...     return EM(model, FullPartition(model, components=components))
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> found = compare_fits({"spheres": spheres}, x, components=[1, 2, 3], progress=False)
    >>> found.best.family, found.best.components
    ('spheres', 2)
    """
    check_flag(warm_start=warm_start, truncated=truncated)
    check_whole(minimum=0, folds=folds, draws=draws, starts=starts)
    check_whole(epochs=fit_options.get("epochs", 1), chunk=1 if chunk is None else chunk)
    check_generator(generator)
    _check_builds(builds)
    if start is not None and not callable(start):
        raise OptionError(
            f"start={start!r}: give a function start(model, *rows) that sets the params of a fresh model"
        )
    sizes = checked_sizes(components)
    _check_criterion(criterion, heldout=heldout is not None, folds=folds, draws=draws)
    tensors = Batches(rows).tensors
    plan = Plan(warm_start, starts, start, chunk, fit_options)
    scorer = Scorer(
        tensors, sizes, plan, heldout_rows(heldout, tensors), folds, draws, truncated, generator
    )
    scores: list[Score] = []
    interrupted = False
    with (
        random_state_kept(),
        tqdm(
            total=len(builds) * scorer.fits(), desc="fits", disable=not progress, unit="fit"
        ) as bar,
    ):
        try:
            for name, build in builds.items():
                for score in scorer.scores(name, build, bar.update):
                    scores.append(score)
                    best = Comparison(scores, criterion).best
                    bar.set_postfix(best=f"{best.family} {best.components}", refresh=False)
        except KeyboardInterrupt:
            if not scores:
                raise
            interrupted = True
    result = Comparison(scores, criterion, interrupted)
    result.best.use()
    return result


def _check_builds(builds: Any) -> None:
    if not isinstance(builds, Mapping) or not builds or not all(map(callable, builds.values())):
        raise OptionError(
            f'builds={builds!r}: give families by name, {{"diagonal": build}} with build(components)'
        )


def _check_criterion(criterion: str, *, heldout: bool, folds: int, draws: int) -> None:
    if criterion not in (*INFORMATION, *PREDICTIVE):
        raise OptionError(
            f"unknown criterion={criterion!r}; choose one of {(*INFORMATION, *PREDICTIVE)}"
        )
    if heldout and folds:
        raise OptionError(
            f"heldout= and folds={folds}: give rows that are held out, or folds, not both"
        )
    if criterion == "heldout" and not heldout and not folds:
        raise OptionError(
            "criterion='heldout' needs rows that are held out: heldout=rows, or folds=5"
        )
    if draws:
        check_whole(minimum=30, draws=draws)
    elif criterion == "loo":
        raise OptionError("criterion='loo' needs draws: give draws=100")
