"""The battery that families of discrete outcomes inherit: they supply how to build themselves and a table."""

import copy
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_mixtures.distributions import Components
from pyro_mixtures.errors import DataError, PartitionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, log_evidence, responsibilities, sample
from tests.conformance import TOLERANCE, assert_near, exact_loss

ITEMS = 12
ROWS = 90


def outcomes(rows: int = ROWS, seed: int = 1) -> Tensor:
    """Item numbers, small ones more often."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return (ITEMS * torch.rand(rows, generator=generator, device="cpu").square()).long()


@pytest.mark.usefixtures("on_one_thread")
class DiscreteConformance:
    """A family's test class defines ``arguments``, ``make``, ``table``, ``model`` and ``maximizer``."""

    argument: str  # the name of the one argument

    def values(self, components: int, lead: tuple[int, ...] = ()) -> Tensor:
        """A valid argument in float64, batch shape (*lead, C)."""
        raise NotImplementedError

    def make(self, value: Tensor) -> Components:
        """The family."""
        raise NotImplementedError

    def table(self, value: Tensor) -> Tensor:
        """Log probabilities (*lead, C, ITEMS) by brute force, differentiable."""
        raise NotImplementedError

    def model(self, components: int) -> Any:
        """The Pyro program of the family, whose M-step is complete."""
        raise NotImplementedError

    def maximizer(self, counts: Tensor) -> Tensor:
        """The argument (C, ...) that fits expected ``counts`` (C, ITEMS) best, by other means."""
        raise NotImplementedError

    @pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
    def dtype(self, request) -> torch.dtype:
        return request.param

    def build(
        self, components: int = 5, dtype=torch.float64, lead: tuple[int, ...] = ()
    ) -> Components:
        torch.manual_seed(0)
        with torch.device("cpu"):
            return self.make(self.values(components, lead).to(dtype).requires_grad_())

    def value_of(self, family: Components) -> Tensor:
        return family.arguments[self.argument]

    def table_of(self, family: Components) -> tuple[Tensor, Tensor]:
        """The brute-force table in float64, and its leaf."""
        leaf = self.value_of(family).detach().double().requires_grad_()
        return self.table(leaf), leaf

    def mixture(self, components: int = 5, dtype=torch.float64) -> Any:
        """A mixture whose components and weights all differ, the same at every call."""
        torch.manual_seed(0)
        with torch.device("cpu"), torch.no_grad():
            model = self.model(components).to(dtype)
            setattr(model, self.argument, self.values(components).to(dtype))
            weights = torch.arange(2.0, components + 2, dtype=dtype)
            model.weights = weights / weights.sum()
        return model

    def log_joint(self, model: Any, items: Tensor) -> Tensor:
        """log p(c, x) (N, C) in float64, differentiable in the params."""
        table = self.table(getattr(model, self.argument).double())
        return model.weights.double().log() + table[:, items].T

    def truncated(self, model: Any, components: int) -> TruncatedPartition:
        return TruncatedPartition(
            model, components=components, candidates=2, neighbors=3, explore=1, seed=0
        )

    # Densities.

    @pytest.mark.meta
    @pytest.mark.parametrize("shape", ["rows", "candidates", "everyone", "padded"])
    @pytest.mark.parametrize("recorded", [False, True])
    def test_log_prob_and_gradients_equal_brute_force(self, dtype, shape, recorded):
        family, items = self.build(dtype=dtype), outcomes()
        generator = torch.Generator("cpu").manual_seed(2)
        z = torch.randint(5, (4, ROWS), generator=generator, device="cpu")
        if shape == "padded":
            z[1, ::3], z[3] = -1, -1
        z = {"rows": z[0], "everyone": torch.arange(5, device="cpu").unsqueeze(-1)}.get(shape, z)
        table, leaf = self.table_of(family)
        full = z.expand(*z.shape[:-1], ROWS)
        expected = torch.where(full < 0, -torch.inf, table[full.clamp_min(0), items])
        with torch.set_grad_enabled(recorded):
            actual = family[z].log_prob(items)
        assert actual.dtype == dtype
        assert_near(actual, expected, TOLERANCE[dtype])
        if recorded:
            weight = torch.randn(full.shape, generator=generator, dtype=torch.float64, device="cpu")
            (weight * expected)[full >= 0].sum().backward()
            (weight.to(dtype) * actual)[full >= 0].sum().backward()
            assert_near(
                self.tangent(family, self.value_of(family).grad), leaf.grad, 10 * TOLERANCE[dtype]
            )

    def tangent(self, family: Components, gradient: Tensor) -> Tensor:
        """The part of a gradient that the brute-force table also has."""
        return gradient

    @pytest.mark.meta
    @pytest.mark.parametrize("recorded", [False, True])
    def test_log_prob_with_batches_of_parameters_equals_brute_force(self, dtype, recorded):
        """Vectorised particles: arguments (P, 1, C, ...), z (S, 1, B), rows (B,)."""
        family, items = self.build(3, dtype, lead=(2, 1)), outcomes(7)
        table, _ = self.table_of(family)
        z = torch.randint(3, (4, 1, 7), device="cpu")
        expected = table[:, 0][:, :, items].unsqueeze(0).expand(4, 2, 3, 7)
        expected = expected.gather(2, z.unsqueeze(1).expand(4, 2, 1, 7)).squeeze(2)
        with torch.set_grad_enabled(recorded):
            assert_near(family[z].log_prob(items), expected, TOLERANCE[dtype])

    @pytest.mark.meta
    def test_unselected_log_prob_has_every_component(self, dtype):
        family, items = self.build(dtype=dtype), outcomes(7)
        table, _ = self.table_of(family)
        assert_near(family.log_prob(items.unsqueeze(-1)), table[:, items].T, TOLERANCE[dtype])

    def test_probabilities_sum_to_one(self, dtype):
        family = self.build(dtype=dtype)
        every = family.log_prob(torch.arange(ITEMS).unsqueeze(-1))
        torch.testing.assert_close(every.logsumexp(0).exp(), torch.ones(5, dtype=dtype))

    # Pyro's protocol.

    def test_shapes_are_those_of_a_pyro_distribution(self):
        family = self.build()
        assert (family.batch_shape, family.event_shape) == ((5,), ())
        selected = family[torch.tensor([[0, 1], [4, 2], [3, 3]])]
        wide = selected.expand((6, 3, 2))
        assert wide.sample((4,)).shape == (4, 6, 3, 2)
        assert wide.log_prob(wide.sample()).shape == (6, 3, 2)
        assert selected.log_prob(torch.tensor(1)).shape == (3, 2)
        assert not selected.has_rsample
        assert not selected.has_enumerate_support
        with pytest.raises(NotImplementedError, match=type(family).__name__):
            selected.rsample()

    def test_plates_expand_the_selected_distribution(self):
        family, z = self.build(), torch.tensor([0, 4, 1, 1])

        def model():
            with pyro.plate("copies", 3, dim=-2), pyro.plate("data", 4, dim=-1):
                return pyro.sample("x", family[z])

        trace = pyro.poutine.trace(model).get_trace()
        trace.compute_log_prob()
        value = trace.nodes["x"]["value"]
        assert value.shape == (3, 4)
        table, _ = self.table_of(family)
        assert_near(trace.nodes["x"]["log_prob"], table[z.expand(3, 4), value], 1e-10)

    @pytest.mark.meta
    def test_draws_have_the_frequencies_of_their_component(self, dtype):
        family, n = self.build(3, dtype), 20_000
        z = torch.tensor([2, 0], device="cpu")
        with torch.device("cpu"):
            draws = family[z].sample((n,))
        found = (
            torch.stack([torch.bincount(draws[:, i], minlength=ITEMS) for i in range(2)]).double()
            / n
        )
        probs = self.table_of(family)[0].detach().exp()[z]
        assert ((found - probs) / (probs * (1 - probs) / n).sqrt()).abs().max() < 5

    @pytest.mark.parametrize("bad", [-1, ITEMS])
    def test_outcomes_out_of_range_are_refused(self, bad):
        with pytest.raises(DataError, match=rf"not in \[0, {ITEMS}\)"):
            self.build()[torch.tensor([0])].log_prob(torch.tensor([bad]))

    @pytest.mark.parametrize("recorded", [False, True])
    def test_components_out_of_range_are_refused(self, recorded):
        with torch.set_grad_enabled(recorded), pytest.raises((PartitionError, IndexError)):
            self.build()[torch.tensor([0, 5])].log_prob(torch.tensor([1, 1]))

    # The evidence and its truncations.

    @pytest.mark.meta
    def test_untruncated_loss_is_minus_the_evidence(self, dtype):
        model, items = self.mixture(dtype=dtype), outcomes()
        each = self.log_joint(model, items).logsumexp(-1).detach()
        guide, elbo = FullPartition(model, components=5), TraceEnum_ELBO(max_plate_nesting=1)
        for loss in (
            elbo.loss(model, guide, items),
            EM(model, guide).evaluate_loss(items),
            exact_loss(model, items),
        ):
            assert loss == pytest.approx(-float(each.sum()), rel=10 * TOLERANCE[dtype])
        assert_near(log_evidence(model, items), each, 10 * TOLERANCE[dtype])
        q = responsibilities(model, items, top=5)
        expected = self.log_joint(model, items).softmax(-1).detach()
        dense = torch.zeros_like(expected).scatter(1, q.components, q.probs.double())
        assert_near(dense, expected, 10 * TOLERANCE[dtype])

    @pytest.mark.meta
    def test_evaluation_loss_and_gradient_are_those_of_the_stored_sets(self, dtype):
        model, items = self.mixture(9, dtype), outcomes()
        guide = self.truncated(model, 9)
        for _ in range(3):
            guide.posterior(items)
        stored = guide.sets.table.clone()
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide.eval(), items)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        wide = copy.deepcopy(model).double()
        expected = -self.log_joint(wide, items).gather(1, stored.long()).logsumexp(-1).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=10 * TOLERANCE[dtype])
        for mine, theirs in zip(
            grads, torch.autograd.grad(expected, list(wide.parameters())), strict=True
        ):
            assert_near(mine, theirs, 10 * TOLERANCE[dtype])

    def test_svi_lowers_the_truncated_loss(self):
        model, items = self.mixture(9, torch.float32), outcomes()
        svi = SVI(
            model, self.truncated(model, 9), Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1)
        )
        losses = [svi.step(items) for _ in range(20)]
        assert losses[-1] < losses[0] - 1

    # EM.

    @pytest.mark.meta
    def test_one_em_step_gives_the_best_parameters(self, dtype):
        model, items = self.mixture(3, dtype), outcomes()
        q = self.log_joint(model, items).softmax(-1).detach()
        with torch.device("cpu"):
            counts = torch.zeros(3, ITEMS, dtype=torch.float64).index_add(1, items, q.T)
            best = self.maximizer(counts)
        EM(model, FullPartition(model, components=3)).step(items)
        assert_near(model.weights, q.mean(0), 20 * TOLERANCE[dtype])
        # Float32 cannot see how high an optimum is beyond its own rounding.
        assert_near(getattr(model, self.argument), best, 2e-3 if dtype == torch.float32 else 1e-5)

    @pytest.mark.meta
    @pytest.mark.parametrize("kind", ["full", "truncated", "hard"])
    def test_free_energy_never_falls(self, dtype, kind):
        model, items = self.mixture(6, dtype), outcomes(150)
        make = {"full": FullPartition, "hard": HardPartition}.get(kind)
        guide = self.truncated(model, 6) if make is None else make(model, components=6)
        em = EM(model, guide, empty="keep")
        losses = torch.tensor([em.step(items) for _ in range(6)], dtype=torch.float64, device="cpu")
        assert losses[-1] < losses[0]
        rises = losses.diff().clamp_min(0) / losses[0].abs()
        assert rises.max() <= TOLERANCE[dtype], losses.tolist()

    def test_minibatches_add_up_to_the_full_batch(self, dtype):
        items, found = outcomes(), []
        for size in (ROWS, 16):
            pyro.clear_param_store()
            model = self.mixture(6, dtype)
            em = EM(model, self.truncated(model, 6), empty="keep")
            em.guide.explore = 0
            for _ in range(3):
                for part in torch.arange(ROWS).split(size):
                    em.accumulate(items[part], index=part, size=ROWS)
                em.maximize()
            found.append(list(model.state_dict().values()))
        for whole, in_parts in zip(*found, strict=True):
            torch.testing.assert_close(
                in_parts, whole, rtol=1e-2, atol=2e-3 if dtype == torch.float32 else 1e-6
            )

    def test_stepwise_em_raises_the_evidence(self):
        model, items = self.mixture(3), outcomes(400)
        em = EM(
            model,
            FullPartition(model, components=3),
            step_size=lambda t: (t + 2) ** -0.6,
            empty="keep",
        )
        before = em.evaluate_loss(items)
        for part in torch.arange(400).split(100):
            em.step(items[part], index=part, size=400)
        assert em.evaluate_loss(items) < before

    # State.

    def test_saved_and_loaded_state_gives_the_same_loss(self, tmp_path):
        from safetensors.torch import load_file, save_file

        items = outcomes()
        model = self.mixture(6)
        em = EM(model, FullPartition(model, components=6))
        for _ in range(3):
            em.step(items)
        before = em.evaluate_loss(items)
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items()},
            tmp_path / "state.safetensors",
        )
        pyro.clear_param_store()
        other = self.model(6).double()
        other.load_state_dict(load_file(tmp_path / "state.safetensors"))
        assert EM(other, FullPartition(other, components=6)).evaluate_loss(items) == before

    def test_draws_of_the_program_have_the_mixtures_frequencies(self):
        model, n = self.mixture(3), 20_000
        draws = sample(model, size=n)["x"]
        with torch.no_grad():
            probs = self.log_joint(model, torch.arange(ITEMS)).logsumexp(-1).exp()
        found = torch.bincount(draws, minlength=ITEMS).double() / n
        assert ((found - probs) / (probs * (1 - probs) / n).sqrt()).abs().max() < 5
