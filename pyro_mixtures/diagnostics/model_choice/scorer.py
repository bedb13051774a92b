"""Scores of one family's fits: information criteria, evidence of rows held out, PSIS-LOO."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pyro_mixtures.diagnostics.model_choice.fits import Build, Member, Path, Plan, Rows, Tick
from pyro_mixtures.diagnostics.model_choice.loo import LeaveOneOut, Predictive, leave_one_out
from pyro_mixtures.diagnostics.model_choice.rows import folds_of
from pyro_mixtures.diagnostics.model_choice.score import Score
from pyro_mixtures.infer.criteria import Criteria, criteria
from pyro_mixtures.infer.scoring import evidence


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
        self.seeds = torch.randint(1 << 31, (folds + 1, len(sizes)), generator=generator, device="cpu").tolist()
        self.draw_seed = int(torch.randint(1 << 31, (), generator=generator, device="cpu"))
        self.folds = folds_of(rows, folds, generator)

    def fits(self) -> int:
        """Fits of one family."""
        return (1 + len(self.folds)) * self.plan.fits(len(self.sizes)) + self.draws * len(self.sizes)

    def scores(self, name: str, build: Build, tick: Tick) -> Iterator[Score]:
        """One score a size, after the fits of all sizes."""
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
        with member.model.store():
            return criteria(member.fit.model, *self.rows, freeze=member.freeze, **self._options(member))

    def _heldout(self, build: Build, members: list[Member], tick: Tick) -> list[Predictive | None]:
        """For each size; by folds its fits begin anew in each."""
        if self.heldout is not None:
            return [Predictive(self._evidence(member, self.heldout)) for member in members]
        if not self.folds:
            return [None] * len(members)
        values = np.empty((len(members), len(self.rows[0])))
        for fold, seeds in zip(self.folds, self.seeds[1:], strict=True):
            fitted = Path(build, fold.training(), self.plan, tick)(self.sizes, seeds)
            values[:, fold.test.numpy()] = [self._evidence(member, fold.testing()) for member in fitted]
        return [Predictive(row) for row in values]

    def _loo(self, path: Path, member: Member) -> LeaveOneOut | None:
        if not self.draws:
            return None
        options: Any = {"truncated": self.truncated, "chunk": self.plan.chunk}
        return leave_one_out(path, member, draws=self.draws, seed=self.draw_seed, **options)

    def _evidence(self, member: Member, rows: Rows) -> np.ndarray:
        with member.model.store():
            return evidence(member.fit.model, *rows, **self._options(member)).double().cpu().numpy()

    def _options(self, member: Member) -> dict[str, Any]:
        guide = member.fit.guide
        return {"guide": guide if self.truncated else None, "site": guide.site, "chunk": self.plan.chunk}
