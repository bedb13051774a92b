"""Comparison of fits: families of mixtures, each with several numbers of components."""

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
from pyro_mixtures.infer.restarts.component_path import Build, PathOptions, Start
from pyro_mixtures.infer.restarts.growth import checked_sizes
from pyro_mixtures.infer.restarts.stored_fits import preserved_random_state
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
    """Fit every family with every number of components, and choose the best fit.

    ===============  ==============================================================================
    ``criterion``    chooses
    ===============  ==============================================================================
    ``"bic"``        the smallest ``p log n - 2 log L``; ``"aic"`` and ``"icl"`` likewise: see
                     :func:`~pyro_mixtures.infer.uncertainty.criteria.criteria`
    ``"heldout"``    by the log evidence of the ``heldout`` rows, or by cross-validation with
                     ``folds``: each row is scored by the fit that has not seen its fold
    ``"loo"``        by PSIS-LOO over ``draws`` refits to resampled rows, each started from the
                     fit: see :func:`~pyro_mixtures.diagnostics.model_choice.loo.leave_one_out`.
                     The column ``unreliable`` is the share of rows with too large a Pareto k; for
                     these the mean density under the refits without the row is taken
    ===============  ==============================================================================

    A row of weight w counts as w rows in all of them, and belongs to one fold as a whole. The last
    two are estimates with standard errors: of all fits that are as good as the best one, up to one
    standard error of the difference, the simplest is chosen; see :meth:`Comparison.best_by`.

    With ``warm_start`` each fit grows from the fit with the next smaller number of components, as
    :func:`~pyro_mixtures.infer.restarts.growth.grow` does; the most likely of three short fits is
    continued. Then, from the largest number to the smallest, each fit competes with the next larger
    one after pruning: the component whose removal costs the least log likelihood is taken out. Fits
    that improve are grown and pruned once more. This needs re-seeding, weights that are one simplex
    param, and one exact pass over the rows per pruned component.

    :param builds: maps the name of each family to ``build(components)``, which returns a new ``EM``
        (or ``(model, EM)``).
    :param rows: the model's tensor arguments, N rows each.
    :param components: numbers of components, increasing.
    :param heldout: rows that no fit sees, one tensor for each of ``rows``.
    :param folds: K of K-fold cross-validation. Every fit is made K more times, from its first start
        on.
    :param draws: refits per fit for PSIS-LOO, at least 30; 0 omits it. All row weights must be one.
        Memory: draws x N numbers.
    :param warm_start: start each fit from its neighbors.
    :param starts: number of fresh starts per fit, in addition to growth; the most likely one is
        continued (see :func:`~pyro_mixtures.infer.restarts.best_of.best_of`) and competes with the
        grown fit. There is at least one where nothing can grow: for the smallest number of
        components, and for guides that do not split components (``HardPartition``).
    :param start: ``start(model, *rows)`` sets the params of a new model, such as ``lambda model, x:
        model.start_at(seed_rows(x, model.components))``. By default they stay as ``build`` made
        them.
    :param truncated: score with the guide of each fit, which gives a lower bound, instead of the
        sum over all components.
    :param chunk: rows evaluated at once.
    :param generator: source of randomness, on the CPU; torch's global generator by default. Pyro's
        random state is restored at the end.
    :param progress: show a progress bar over the fits, with the best one so far.
    :param fit_options: passed to :func:`~pyro_mixtures.infer.em.fit` for every fit.
    :returns: the scores of all fits. The params of the best fit are in Pyro's store; other params
        there are unchanged. Ctrl-C returns the scores of the families that are complete, with
        ``interrupted=True``, or is raised if there are none.
    :raises OptionError: for invalid options, a ``criterion`` that the options do not compute, or
        more folds than rows.
    :raises DataError: if held-out rows have another shape than the rows of the fit.
    :raises ModelError: for ``draws`` if row weights differ from one.
    :raises NumericalError: if a fit fails.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> def spheres(components):
    ...     model = GaussianMixture(components=components, features=2, covariance="isotropic")
    ...     return EM(model, FullPartition(model, components=components))
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> result = compare_fits({"spheres": spheres}, x, components=[1, 2, 3], progress=False)
    >>> result.best.family, result.best.components
    ('spheres', 2)
    """
    check_flag(warm_start=warm_start, truncated=truncated, progress=progress)
    check_whole(minimum=0, folds=folds, draws=draws, starts=starts)
    check_whole(epochs=fit_options.get("epochs", 1), chunk=1 if chunk is None else chunk)
    check_generator(generator)
    _check_builds(builds)
    _check_start(start)
    sizes = checked_sizes(components)
    _check_criterion(criterion, heldout=heldout is not None, folds=folds, draws=draws)
    tensors = Batches(rows).tensors
    scorer = Scorer(
        tensors,
        sizes,
        PathOptions(warm_start, starts, start, chunk, fit_options),
        heldout=heldout_rows(heldout, tensors),
        folds=folds,
        draws=draws,
        truncated=truncated,
        generator=generator,
    )
    with preserved_random_state():
        result = _compare(scorer, builds, criterion, progress)
    result.best.use()
    return result


def _compare(
    scorer: Scorer, builds: Mapping[str, Build], criterion: str, progress: bool
) -> Comparison:
    scores: list[Score] = []
    total = len(builds) * scorer.fits()
    with tqdm(total=total, desc="fits", disable=not progress, unit="fit") as bar:
        try:
            for family, build in builds.items():
                for score in scorer.scores(family, build, bar.update):
                    scores.append(score)
                    best = Comparison(scores, criterion).best
                    bar.set_postfix(best=f"{best.family} {best.components}", refresh=False)
        except KeyboardInterrupt:
            if not scores:
                raise
            return Comparison(scores, criterion, interrupted=True)
    return Comparison(scores, criterion)


def _check_builds(builds: Any) -> None:
    if not isinstance(builds, Mapping) or not builds or not all(map(callable, builds.values())):
        raise OptionError(
            f"builds={builds!r}: pass a dictionary of families by name, such as "
            '{"diagonal": build} with a function build(components)'
        )


def _check_start(start: Any) -> None:
    if start is not None and not callable(start):
        raise OptionError(
            f"start={start!r}: pass a function start(model, *rows) that sets the params of a new "
            "model"
        )


def _check_criterion(criterion: str, *, heldout: bool, folds: int, draws: int) -> None:
    if criterion not in (*INFORMATION, *PREDICTIVE):
        raise OptionError(
            f"unknown criterion={criterion!r}; choose one of {(*INFORMATION, *PREDICTIVE)}"
        )
    if heldout and folds:
        raise OptionError(f"heldout= and folds={folds}: pass one of them, not both")
    if criterion == "heldout" and not heldout and not folds:
        raise OptionError("criterion='heldout' needs held-out rows: pass heldout=rows, or folds=5")
    if draws:
        check_whole(minimum=30, draws=draws)
    elif criterion == "loo":
        raise OptionError("criterion='loo' needs draws: pass draws=100")
