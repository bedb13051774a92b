"""Scores of one family's fits: information criteria, held-out log evidence, PSIS-LOO."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch

from pyro_mixtures.diagnostics.model_choice.loo import LeaveOneOut, leave_one_out
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive, predictive
from pyro_mixtures.diagnostics.model_choice.rows import make_folds
from pyro_mixtures.diagnostics.model_choice.score import Score
from pyro_mixtures.infer.restarts.component_path import (
    Build,
    ComponentPath,
    PathOptions,
    Rows,
    Tick,
)
from pyro_mixtures.infer.restarts.stored_fits import StoredFit, fresh_store, inference_of
from pyro_mixtures.infer.uncertainty.bootstrap import check_unweighted
from pyro_mixtures.infer.uncertainty.criteria import Criteria, criteria


class _Evaluation(TypedDict):
    truncated: bool
    chunk: int | None


class Scorer:
    """Fits and scores families, all with the same rows, folds and random numbers.

    :param sizes: numbers of components, increasing.
    :param heldout: rows that no fit sees.
    :param folds: number of folds of cross-validation, or 0.
    :param draws: number of refits for PSIS-LOO, or 0.
    :param truncated: score with the guide of each fit instead of the exact sum over components.
    """

    def __init__(
        self,
        rows: Rows,
        sizes: Sequence[int],
        options: PathOptions,
        *,
        heldout: Rows | None,
        folds: int,
        draws: int,
        truncated: bool,
        generator: torch.Generator | None,
    ):
        self.rows = rows
        self.sizes = sizes
        self.options = options
        self.heldout = heldout
        self.draws = draws
        self.evaluation = _Evaluation(truncated=truncated, chunk=options.chunk)
        seeds_shape = (folds + 1, len(sizes))
        self.seeds = torch.randint(1 << 31, seeds_shape, generator=generator, device="cpu").tolist()
        self.draw_seed = int(torch.randint(1 << 31, (), generator=generator, device="cpu"))
        self.folds = make_folds(rows, folds, generator)

    def fits(self) -> int:
        """Return the number of fits of one family."""
        paths = 1 + len(self.folds)
        sizes = len(self.sizes)
        return paths * self.options.fits(sizes) + self.draws * sizes

    def scores(self, family: str, build: Build, tick: Tick) -> Iterator[Score]:
        """Fit a family with all numbers of components, then yield one score for each."""
        if self.draws:
            with fresh_store(self.draw_seed):
                check_unweighted(inference_of(build(self.sizes[0])), self.rows)
        path = ComponentPath(build, self.rows, self.options, tick)
        fits = path.fit(self.sizes, self.seeds[0])
        heldout = self._heldout(build, fits, tick)
        for size, stored, heldout_score in zip(self.sizes, fits, heldout, strict=True):
            yield Score(
                family=family,
                components=size,
                criteria=self._criteria(stored),
                heldout=heldout_score,
                loo=self._loo(path, stored),
                stored=stored,
            )

    def _criteria(self, stored: StoredFit) -> Criteria:
        guide = stored.fit.guide
        with stored.model.store():
            return criteria(
                stored.fit.model,
                *self.rows,
                guide=guide if self.evaluation["truncated"] else None,
                site=guide.site,
                freeze=stored.em.freeze,
                chunk=self.evaluation["chunk"],
            )

    def _heldout(
        self, build: Build, fits: Sequence[StoredFit], tick: Tick
    ) -> Sequence[Predictive | None]:
        """Return the held-out log densities for each size.

        Cross-validation fits each fold from scratch.
        """
        if self.heldout is not None:
            return [predictive(stored, self.heldout, **self.evaluation) for stored in fits]
        if not self.folds:
            return [None] * len(fits)
        densities_and_weights = np.empty((len(fits), 2, len(self.rows[0])))
        for fold, seeds in zip(self.folds, self.seeds[1:], strict=True):
            path = ComponentPath(build, fold.train_rows(), self.options, tick)
            densities_and_weights[..., fold.test.numpy()] = [
                predictive(stored, fold.test_rows(), **self.evaluation)
                for stored in path.fit(self.sizes, seeds)
            ]
        return [Predictive(*arrays) for arrays in densities_and_weights]

    def _loo(self, path: ComponentPath, stored: StoredFit) -> LeaveOneOut | None:
        if not self.draws:
            return None
        return leave_one_out(path, stored, draws=self.draws, seed=self.draw_seed, **self.evaluation)
