"""The tests that families over a finite set of outcomes inherit."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_mixtures.distributions import Components
from pyro_mixtures.errors import DataError, PartitionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, log_evidence, responsibilities, sample
from pyro_mixtures.testing.families import ROWS, FamilyConformance
from pyro_mixtures.testing.tools import assert_near

ITEMS = 12


def outcomes(rows: int = 90, seed: int = 1) -> Tensor:
    """Return item numbers (N,) below 12, small ones more often.

    >>> outcomes(4).shape
    torch.Size([4])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return (ITEMS * torch.rand(rows, generator=generator, device="cpu").square()).long()


class Table:
    """Log densities (*lead, C, ITEMS) of outcomes, as an oracle."""

    def __init__(self, log_probs: Tensor):
        self.log_probs = log_probs

    def log_prob(self, items: Tensor) -> Tensor:
        """Return log probabilities of item numbers, whose shape broadcasts to (*lead, C)."""
        shape = torch.broadcast_shapes(items.shape, self.log_probs.shape[:-1])
        table = self.log_probs.expand(*shape, -1)
        return table.gather(-1, items.expand(shape).unsqueeze(-1)).squeeze(-1)


class DiscreteConformance(FamilyConformance):
    """Tests of a family with one argument over item numbers 0 to 11.

    Set ``argument`` and define ``values``, ``build_from``, ``table`` and ``best``. Families
    whose log density is that of a pseudo-likelihood override the tests of frequencies.

    >>> from pyro_mixtures.distributions import Categoricals
    >>> class TestCategoricals(DiscreteConformance):
    ...     argument = "probs"
    ...
    ...     def values(self, components, lead=()):
    ...         return torch.randn(*lead, components, 12, dtype=torch.float64).softmax(-1)
    ...
    ...     def build_from(self, value, validate_args=None):
    ...         return Categoricals(value, validate_args=validate_args)
    ...
    ...     def table(self, value):
    ...         return value.log()
    ...
    ...     def best(self, counts):
    ...         return counts / counts.sum(-1, keepdim=True)
    """

    argument: str  # the name of the one argument
    slack = 10.0
    minibatch_tolerances = {torch.float32: (1e-2, 2e-3), torch.float64: (1e-2, 1e-6)}

    def values(self, components: int, lead: tuple[int, ...] = ()) -> Tensor:
        """Return a valid argument in float64, batch shape (*lead, C)."""
        raise NotImplementedError

    def build_from(self, value: Tensor, validate_args: bool | None = None) -> Components:
        """Build the family from its argument."""
        raise NotImplementedError

    def table(self, value: Tensor) -> Tensor:
        """Return log probabilities (*lead, C, ITEMS) by brute force, differentiable."""
        raise NotImplementedError

    def best(self, counts: Tensor) -> Tensor:
        """Return the best argument (C, ...) for expected ``counts`` (C, ITEMS), by other means."""
        raise NotImplementedError

    def arguments(self, components: int, lead: tuple[int, ...] = ()) -> dict[str, Tensor]:
        return {self.argument: self.values(components, lead)}

    def make(self, arguments: dict[str, Tensor], validate_args: bool | None = None) -> Components:
        return self.build_from(arguments[self.argument], validate_args)

    def oracle(self, *arguments: Tensor) -> Table:
        return Table(self.table(*arguments))

    def rows(self, count: int = ROWS, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        """Return item numbers; ``dtype`` does not matter."""
        return outcomes(count, seed)

    def maximizer(self, x: Tensor, q: Tensor, *old: Tensor) -> tuple[Tensor, ...]:
        counts = torch.zeros(1, ITEMS, dtype=torch.float64).index_add(1, x, q.unsqueeze(0))
        return (self.best(counts)[0],)

    def maximizer_tolerance(self, dtype: torch.dtype) -> float:
        # Float32 cannot resolve how high an optimum is beyond its own rounding.
        return 2e-3 if dtype == torch.float32 else 1e-5

    def check_frequencies(self, draws: Tensor, probs: Tensor) -> None:
        """Compare the frequencies of ``draws`` (N,) with ``probs`` (ITEMS,)."""
        count = len(draws)
        frequencies = torch.bincount(draws, minlength=ITEMS).double() / count
        z_score = (frequencies - probs) / (probs * (1 - probs) / count).sqrt()
        assert float(z_score.abs().max()) < 5

    # Item numbers are names: these tests take frequencies instead of moments.

    def test_mean_is_that_of_each_rows_component(self) -> None:
        """Means of item numbers carry no information."""

    @pytest.mark.meta
    def test_draws_have_the_moments_of_the_oracle(self) -> None:
        """Compare frequencies."""
        for dtype in (torch.float32, torch.float64):
            family = self.build(3, dtype)
            probs = self.oracle_of(family)[0].log_probs.detach().exp()
            z = torch.tensor([2, 0], device="cpu")
            with torch.device("cpu"):
                draws = family[z].sample(torch.Size((20_000,)))
            for column, component in enumerate(z.tolist()):
                self.check_frequencies(draws[:, column], probs[component])

    def test_draws_of_the_program_have_the_mixtures_frequencies(self) -> None:
        model = self.mixture(3)
        draws = sample(model, size=20_000)["x"]
        with torch.no_grad():
            probs = self.log_joint(model, torch.arange(ITEMS)).logsumexp(-1).exp()
        self.check_frequencies(draws, probs)

    def test_probabilities_sum_to_one(self, dtype: torch.dtype) -> None:
        family = self.build(dtype=dtype)
        every = family.log_prob(torch.arange(ITEMS).unsqueeze(-1))
        torch.testing.assert_close(every.logsumexp(0).exp(), torch.ones(5, dtype=dtype))

    @pytest.mark.parametrize("bad", [-1, ITEMS])
    def test_outcomes_out_of_range_are_refused(self, bad: int) -> None:
        with pytest.raises(DataError, match=rf"not in \[0, {ITEMS}\)"):
            self.build()[torch.tensor([0])].log_prob(torch.tensor([bad]))

    @pytest.mark.parametrize("recorded", [False, True])
    def test_components_out_of_range_are_refused(self, recorded: bool) -> None:
        with torch.set_grad_enabled(recorded), pytest.raises((PartitionError, IndexError)):
            self.build()[torch.tensor([0, 5])].log_prob(torch.tensor([1, 1]))

    @pytest.mark.meta
    def test_log_evidence_and_responsibilities_of_rows_equal_brute_force(
        self, dtype: torch.dtype
    ) -> None:
        model, items = self.mixture(dtype=dtype), self.rows()
        joint = self.log_joint(model, items).detach()
        tolerance = self.tolerance(dtype)
        assert_near(log_evidence(model, items), joint.logsumexp(-1), tolerance)
        q = responsibilities(model, items, top=5)
        dense = torch.zeros_like(joint).scatter(1, q.components, q.probs.double())
        assert_near(dense, joint.softmax(-1), tolerance)

    def test_state_saved_by_safetensors_gives_the_same_loss(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        items = self.rows()
        model: Any = self.mixture(6)
        em = EM(model, FullPartition(model, components=6))
        for _ in range(3):
            em.step(items)
        before = em.evaluate_loss(items)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, tmp_path / "state.safetensors")
        pyro.clear_param_store()
        other = self.model(6).double()
        other.load_state_dict(load_file(tmp_path / "state.safetensors"))
        assert EM(other, FullPartition(other, components=6)).evaluate_loss(items) == before
