"""Scores of one family's fits: information criteria, evidence of rows held out, PSIS-LOO."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pyro_mixtures.diagnostics.model_choice.loo import LeaveOneOut, leave_one_out
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive, predictive
from pyro_mixtures.diagnostics.model_choice.rows import folds_of
from pyro_mixtures.diagnostics.model_choice.score import Score
from pyro_mixtures.infer.restarts.path import Build, Member, Path, Plan, Rows, Tick
from pyro_mixtures.infer.restarts.trials import inference_of, own_params
from pyro_mixtures.infer.uncertainty.bootstrap import check_unweighted
from pyro_mixtures.infer.uncertainty.criteria import Criteria, criteria


class Scorer:
    """The same rows, folds and random numbers for all families."""

    def __init__(
        self,
        rows: Rows,
        sizes: Sequence[int],
        plan: Plan,
        heldout: Rows | None,
        folds: int,
        draws: int,
        truncated: bool,
        generator: torch.Generator | None,
    ):
        self.rows, self.sizes, self.plan, self.heldout = rows, sizes, plan, heldout
        self.draws, self.truncated = draws, truncated
        self.seeds = torch.randint(
            1 << 31, (folds + 1, len(sizes)), generator=generator, device="cpu"
        ).tolist()
        self.draw_seed = int(torch.randint(1 << 31, (), generator=generator, device="cpu"))
        self.folds = folds_of(rows, folds, generator)

    def fits(self) -> int:
        """Fits of one family."""
        return (1 + len(self.folds)) * self.plan.fits(len(self.sizes)) + self.draws * len(
            self.sizes
        )

    def scores(self, name: str, build: Build, tick: Tick) -> Iterator[Score]:
        """One score a size, after the fits of all sizes."""
        if self.draws:
            with own_params(self.draw_seed):
                check_unweighted(inference_of(build(self.sizes[0])), self.rows)
        path = Path(build, self.rows, self.plan, tick)
        members = path(self.sizes, self.seeds[0])
        for member, heldout in zip(members, self._heldout(build, members, tick), strict=True):
            yield Score(
                family=name,
                components=member.components,
                criteria=self._criteria(member),
                heldout=heldout,
                loo=self._loo(path, member),
                member=member,
            )

    def _criteria(self, member: Member) -> Criteria:
        guide = member.fit.guide
        options: Any = {
            "guide": guide if self.truncated else None,
            "site": guide.site,
            "chunk": self.plan.chunk,
        }
        with member.model.store():
            return criteria(member.fit.model, *self.rows, freeze=member.freeze, **options)

    def _heldout(self, build: Build, members: list[Member], tick: Tick) -> list[Predictive | None]:
        """For each size; by folds its fits begin anew in each."""
        if self.heldout is not None:
            return [predictive(member, self.heldout, **self._options()) for member in members]
        if not self.folds:
            return [None] * len(members)
        found = np.empty((len(members), 2, len(self.rows[0])))  # values and weights
        for fold, seeds in zip(self.folds, self.seeds[1:], strict=True):
            fitted = Path(build, fold.training(), self.plan, tick)(self.sizes, seeds)
            found[..., fold.test.numpy()] = [
                predictive(member, fold.testing(), **self._options()) for member in fitted
            ]
        return [Predictive(*rows) for rows in found]

    def _loo(self, path: Path, member: Member) -> LeaveOneOut | None:
        if not self.draws:
            return None
        return leave_one_out(path, member, draws=self.draws, seed=self.draw_seed, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"truncated": self.truncated, "chunk": self.plan.chunk}
