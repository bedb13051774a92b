"""The recall of a guide's neighbor graph equals brute force."""

import pytest
import torch

from pyro_mixtures.diagnostics.reports.neighbor_recall import neighbor_recall
from pyro_mixtures.diagnostics.reports.partition_report import partition_report
from pyro_mixtures.infer import Fit
from tests.diagnostics.reports.fitted_mixtures import C, log_densities, rows, truncated

pytestmark = pytest.mark.usefixtures("on_one_thread")


class TestNeighborRecall:
    def divergences(self, result: Fit, x: torch.Tensor) -> torch.Tensor:
        """Divergences (C, C) over the rows of each component."""
        density = log_densities(result, x)
        winner = result.guide.posterior(x).candidates[0]
        table = torch.stack(
            [(density[winner == c, c : c + 1] - density[winner == c]).mean(0) for c in range(C)]
        )
        return table.fill_diagonal_(-torch.inf)

    @pytest.mark.meta
    def test_share_of_the_true_neighbors(self):
        x = rows(torch.float64)[: 4 * C]  # no component has more rows than are evaluated
        result = truncated(x, neighbors=4)
        result.guide.eval()
        order = self.divergences(result, x).argsort(1)
        live = result.guide.posterior(x).candidates[0].unique()
        for graph in (
            result.guide.graph.neighbors,
            order[:, :4],
            order[:, [0, 5, 6, 7]],
            order[:, [0, 1, 6, 7]],
        ):
            held = (order[:, 1:4, None] == graph[:, None, 1:]).any(-1)
            result.guide.graph.neighbors = graph.int()
            recall = partition_report(result, x).recall
            assert recall.share == pytest.approx(float(held[live].double().mean()))
            assert (recall.neighbors, recall.components) == (3, len(live))

    def test_sample_bounds_what_is_evaluated(self):
        x = rows()
        result = truncated(x)
        labels = result.guide.sets.table[:, 0].long()
        d, graph = result.guide.read(x), result.guide.graph.neighbors
        assert neighbor_recall(result.model, d, graph, labels, x, sample=1).components == 1
        assert neighbor_recall(result.model, d, graph[:, :1], labels, x) is None
