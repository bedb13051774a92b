"""The choice among given scores."""

import numpy as np
import pytest
import torch

from pyro_mixtures.diagnostics.model_choice.predictive import Predictive
from pyro_mixtures.diagnostics.model_choice.score import Comparison, Score
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.uncertainty.criteria import Criteria

pytestmark = pytest.mark.usefixtures("on_one_thread")


class TestChoice:
    """Made-up scores of 1, 2 and 3 components."""

    @staticmethod
    def comparison(*values, criterion="heldout"):
        scores = [
            Score(
                "one",
                c,
                Criteria(-1.0, 5 * c, 4, 0.0, float(-c), 0.0, 0.0, torch.ones(1)),
                Predictive(v),
                None,
                None,
            )
            for c, v in enumerate(map(np.asarray, values), 1)
        ]
        return Comparison(scores, criterion)

    def test_the_simplest_of_equally_good_fits_is_chosen(self):
        row = np.array([-1.0, -8.0, -3.0, -4.0])
        up, down = row + np.array([1.0, 0.9, 1.1, 1.0]), row + np.array([1.0, 0.8, 1.3, 1.1])
        result = self.comparison(row, up, down)
        assert (
            result.best_by("heldout", errors=0).components == 3
        )  # 4.2 against 4.0, with an error of 0.35
        assert result.best.components == 2  # even though each sum has an error of 6

    def test_a_difference_without_error_counts(self):
        row = np.zeros(4)
        assert self.comparison(row, row + 0.1, row).best.components == 2

    def test_small_information_criteria_are_good(self):
        assert self.comparison(*np.zeros((3, 4)), criterion="bic").best.components == 3

    @pytest.mark.parametrize("errors", ["a", -1, float("nan"), None])
    def test_errors_are_numbers(self, errors):
        with pytest.raises(OptionError, match="errors="):
            self.comparison(np.zeros(4)).best_by("heldout", errors=errors)

    @pytest.mark.parametrize(
        ("criterion", "message"), [("loo", "draws=100"), ("waic", "choose one of")]
    )
    def test_what_was_not_computed_is_refused(self, criterion, message):
        with pytest.raises(OptionError, match=message):
            self.comparison(np.zeros(4)).best_by(criterion)
