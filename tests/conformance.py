"""The battery that every Gaussian component family inherits: it supplies how to build itself and an oracle."""

import copy
from collections.abc import Callable
from contextlib import contextmanager

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from torch import Tensor

from pyro_mixtures.distributions import Components
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.scoring.predict import sample
from pyro_mixtures.models import Mixture
from pyro_mixtures.ops import use_backend

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
FEATURES = 3
ROWS = 70


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to ``tolerance`` of the largest expected entry (entries that cancel lose their own digits)."""
    expected = expected.detach().to(actual)
    finite = expected.isfinite()
    size = float(expected[finite].abs().max()) if bool(finite.any()) else 1.0
    torch.testing.assert_close(
        actual.detach(), expected, rtol=tolerance, atol=tolerance * max(size, 1e-300)
    )


def cpu_rows(rows: int, features: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Rows spread a little wider than the components of :meth:`FamilyConformance.arguments`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return (
        2 * torch.randn(rows, features, generator=generator, dtype=torch.float64, device="cpu")
    ).to(dtype)


@contextmanager
def one_thread():
    """Test problems are tiny: a second thread costs more than it gives, above all on a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact_loss(model: Callable, *args, **kwargs) -> float:
    """Minus the evidence by stock Pyro: the model enumerated, an empty guide."""
    return TraceEnum_ELBO(max_plate_nesting=1).loss(
        config_enumerate(model), lambda *_, **__: None, *args, **kwargs
    )


@pytest.mark.usefixtures("on_one_thread")
class FamilyConformance:
    """A family's test class sets these and defines ``arguments``, ``oracle``, ``model`` and ``maximizer``."""

    family: type[Components]

    def arguments(
        self, components: int, features: int, lead: tuple[int, ...] = ()
    ) -> dict[str, Tensor]:
        """Some valid arguments in float64 by name, batch shape (*lead, C)."""
        raise NotImplementedError

    def oracle(self, loc: Tensor, *others: Tensor) -> dist.TorchDistribution:
        """The stock distribution of the same arguments."""
        raise NotImplementedError

    def model(self, components: int, features: int) -> Mixture:
        """The Pyro program of the family."""
        raise NotImplementedError

    def maximizer(self, x: Tensor, q: Tensor, *old: Tensor) -> tuple[Tensor, ...]:
        """One component's new arguments from rows ``x`` (N, D) of responsibilities ``q`` (N,), by the textbook."""
        raise NotImplementedError

    # How tests build things. Everything is on the CPU by name, so that the meta pass can run them.

    @pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
    def dtype(self, request) -> torch.dtype:
        return request.param

    @pytest.fixture(params=["auto", "torch"])
    def backend(self, request):
        with use_backend(request.param):
            yield

    def build(
        self, components: int = 5, dtype=torch.float64, lead: tuple[int, ...] = ()
    ) -> Components:
        """The family with leaf arguments of ``dtype``, the same at every call."""
        torch.manual_seed(0)
        with torch.device("cpu"):
            given = self.arguments(components, FEATURES, lead)
        return self.family(
            **{name: value.to(dtype).requires_grad_() for name, value in given.items()}
        )

    def oracle_of(self, family: Components) -> tuple[dist.TorchDistribution, list[Tensor]]:
        """The oracle in float64 with leaf arguments of the same values, and these."""
        leaves = [value.detach().double().requires_grad_() for value in family.arguments.values()]
        return self.oracle(*leaves), leaves

    def mixture(
        self, components: int = 5, dtype=torch.float64, features: int = FEATURES
    ) -> Mixture:
        """A mixture whose components and weights all differ, the same at every call."""
        torch.manual_seed(0)
        with torch.device("cpu"), torch.no_grad():
            model = self.model(components, features)
            for name, value in self.arguments(components, features).items():
                setattr(model, name, value.to(torch.float32))
            weights = torch.arange(2.0, components + 2)
            model.weights = weights / weights.sum()
        return model.to(dtype)

    def brute_log_joint(self, model: Mixture, x: Tensor) -> Tensor:
        """log p(c, x) (N, C) in float64, differentiable in the model's params."""
        family = model.component_distributions()
        normals = self.oracle(*(value.double() for value in family.arguments.values()))
        return model.weights.double().log() + normals.log_prob(x.double().unsqueeze(-2))

    def exact_guide(self, model: Mixture) -> TruncatedPartition:
        """A truncated guide that truncates nothing."""
        c = model.components
        return TruncatedPartition(model, components=c, candidates=c, neighbors=c, explore=0, seed=0)

    # Densities.

    @pytest.mark.meta
    @pytest.mark.parametrize("shape", ["rows", "candidates", "everyone", "padded"])
    def test_log_prob_and_gradients_equal_the_oracle(self, dtype, backend, shape):
        family, x = self.build(dtype=dtype), cpu_rows(ROWS, FEATURES, dtype).requires_grad_()
        generator = torch.Generator("cpu").manual_seed(2)
        z = torch.randint(5, (4, ROWS), generator=generator, device="cpu")
        if shape == "padded":
            z[1, ::3], z[3] = -1, -1
        z = {"rows": z[0], "everyone": torch.arange(5, device="cpu").unsqueeze(-1)}.get(shape, z)

        normals, leaves = self.oracle_of(family)
        wide = x.detach().double().requires_grad_()
        table = normals.log_prob(wide.unsqueeze(-2))  # (B, C)
        full = z.expand(*z.shape[:-1], ROWS)
        expected = table.gather(-1, full.clamp_min(0).reshape(-1, ROWS).T).T.reshape(full.shape)
        expected = torch.where(full < 0, -torch.inf, expected)

        actual = family[z].log_prob(x)
        assert actual.dtype == dtype
        assert_near(actual, expected, TOLERANCE[dtype])

        weight = torch.randn(full.shape, generator=generator, dtype=torch.float64, device="cpu")
        (weight * expected)[full >= 0].sum().backward()
        (weight.to(dtype) * actual)[full >= 0].sum().backward()
        for mine, theirs in zip((x, *family.arguments.values()), (wide, *leaves), strict=True):
            assert_near(mine.grad, theirs.grad, TOLERANCE[dtype])

    @pytest.mark.meta
    def test_log_prob_with_batches_of_parameters_equals_the_oracle(self, dtype, backend):
        """Vectorised particles: arguments (P, 1, C, ...), z (S, 1, B), rows (B, D)."""
        family, x = self.build(3, dtype, lead=(2, 1)), cpu_rows(7, FEATURES, dtype)
        normals, leaves = self.oracle_of(family)
        z = torch.randint(3, (4, 1, 7), device="cpu")
        expected = normals.log_prob(x.double().unsqueeze(-2))  # (P, B, C)
        expected = (
            expected.expand(4, 2, 7, 3).gather(-1, z.expand(4, 2, 7).unsqueeze(-1)).squeeze(-1)
        )
        actual = family[z].log_prob(x)
        assert_near(actual, expected, TOLERANCE[dtype])
        actual.square().sum().backward()
        expected.square().sum().backward()
        for mine, theirs in zip(family.arguments.values(), leaves, strict=True):
            assert_near(mine.grad, theirs.grad, TOLERANCE[dtype])

    def test_unselected_log_prob_has_every_component(self, dtype, backend):
        family, x = self.build(dtype=dtype), cpu_rows(7, FEATURES, dtype)
        normals, _ = self.oracle_of(family)
        rows = x.unsqueeze(-2)
        assert_near(family.log_prob(rows), normals.log_prob(rows.double()), TOLERANCE[dtype])

    # Pyro's protocol.

    def test_shapes_are_those_of_a_pyro_distribution(self):
        family = self.build()
        assert (family.batch_shape, family.event_shape) == ((5,), (FEATURES,))
        selected = family[torch.tensor([[0, 1], [4, 2], [3, 3]])]
        assert (selected.batch_shape, selected.event_shape) == ((3, 2), (FEATURES,))
        wide = selected.expand((6, 3, 2))
        assert wide.shape() == (6, 3, 2, FEATURES)
        assert wide.sample().shape == (6, 3, 2, FEATURES)
        assert wide.sample((4,)).shape == (4, 6, 3, 2, FEATURES)
        assert wide.log_prob(wide.sample()).shape == (6, 3, 2)
        assert selected.log_prob(torch.zeros(FEATURES, dtype=torch.float64)).shape == (3, 2)

    def test_plates_expand_the_selected_distribution(self):
        family, z = self.build(), torch.tensor([0, 4, 1, 1])

        def model():
            with pyro.plate("copies", 3, dim=-2), pyro.plate("data", 4, dim=-1):
                return pyro.sample("x", family[z])

        trace = pyro.poutine.trace(model).get_trace()
        trace.compute_log_prob()
        value = trace.nodes["x"]["value"]
        assert value.shape == (3, 4, FEATURES)
        normals, _ = self.oracle_of(family)
        expected = (
            normals.log_prob(value.unsqueeze(-2))
            .gather(-1, z.expand(3, 4).unsqueeze(-1))
            .squeeze(-1)
        )
        assert_near(trace.nodes["x"]["log_prob"], expected, 1e-10)

    def test_has_no_support_to_enumerate(self):
        family = self.build()
        assert not family.has_enumerate_support
        assert not family[torch.tensor([0])].has_enumerate_support

    @pytest.mark.parametrize("method", ["sample", "rsample"])
    def test_draws_have_the_moments_of_the_oracle(self, method):
        family, n = self.build(3), 20_000
        normals, _ = self.oracle_of(family)
        mean, variance = (
            normals.mean.expand(3, FEATURES).detach(),
            normals.variance.expand(3, FEATURES).detach(),
        )
        draws = getattr(family[torch.arange(3)], method)((n,)).detach()
        z_score = (draws.mean(0) - mean) / (variance / n).sqrt()
        assert z_score.abs().max() < 5
        away = draws - draws.mean(0)
        covariance = torch.einsum("nci,ncj->cij", away, away) / n
        expected = self.covariance(normals)
        spread = (variance.unsqueeze(-1) * variance.unsqueeze(-2) + expected.square()) / n
        assert ((covariance - expected) / spread.sqrt()).abs().max() < 5

    @staticmethod
    def covariance(normals: dist.TorchDistribution) -> Tensor:
        """Covariance matrices (C, D, D) of the oracle."""
        if isinstance(normals, torch.distributions.Independent):
            return normals.variance.detach().diag_embed()
        return normals.covariance_matrix.detach()

    def test_gradient_flows_through_rsample(self):
        family, z = self.build(3), torch.tensor([0, 2, 2, 1])

        def draw(*arguments: Tensor) -> Tensor:
            torch.manual_seed(0)
            return self.family(*arguments, validate_args=False)[z].rsample()

        assert not family[z].sample().requires_grad
        torch.autograd.gradcheck(draw, tuple(family.arguments.values()))

    def test_mean_is_that_of_each_rows_component(self):
        family, z = self.build(), torch.tensor([4, 0, 4])
        torch.testing.assert_close(family[z].mean, family.loc.expand(5, FEATURES)[z])
        torch.testing.assert_close(family.mean, family.loc.expand(5, FEATURES))

    def test_arguments_out_of_their_constraints_are_refused(self):
        given = {name: value.detach() for name, value in self.build().arguments.items()}
        for name, value in given.items():
            with pytest.raises(ValueError, match=name):
                self.family(
                    **{**given, name: torch.full_like(value, torch.nan)}, validate_args=True
                )
            if name not in ("loc", "factor"):
                with pytest.raises(ValueError, match=name):
                    self.family(**{**given, name: -value}, validate_args=True)

    # The evidence and its truncations.

    @pytest.mark.meta
    def test_untruncated_loss_is_minus_the_evidence(self, dtype, backend):
        model, x = self.mixture(dtype=dtype), cpu_rows(ROWS, FEATURES, dtype)
        expected = -self.brute_log_joint(model, x).logsumexp(-1).sum().item()
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        for loss in (
            elbo.loss(model, self.exact_guide(model), x),
            elbo.loss(model, FullPartition(model, components=5), x),
            exact_loss(model, x),
        ):
            assert loss == pytest.approx(expected, rel=TOLERANCE[dtype])

    @pytest.mark.meta
    def test_training_loss_is_that_of_the_best_of_each_search_space(self, dtype, backend):
        model, x = self.mixture(9, dtype), cpu_rows(ROWS, FEATURES, dtype)
        guide = TruncatedPartition(
            model, components=9, candidates=2, neighbors=3, explore=0, seed=3
        )
        guide.eval().posterior(x)  # allocates the random start without a search
        known, graph = guide.sets.table.tolist(), guide.graph.neighbors.tolist()
        joint = self.brute_log_joint(model, x).detach()
        best = []
        for row, start in zip(joint.tolist(), known, strict=True):
            space = {k for c in start for k in graph[c]}
            best.append(sorted(space, key=row.__getitem__)[-2:])
        expected = -joint.gather(1, torch.tensor(best, device="cpu")).logsumexp(-1).sum().item()
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide.train(), x)
        assert loss == pytest.approx(expected, rel=TOLERANCE[dtype])
        assert [set(row) for row in guide.sets.table.tolist()] == [set(row) for row in best]

    @pytest.mark.meta
    def test_evaluation_loss_and_gradient_are_those_of_the_stored_sets(self, dtype, backend):
        model, x = self.mixture(9, dtype), cpu_rows(ROWS, FEATURES, dtype)
        guide = TruncatedPartition(model, components=9, candidates=3, neighbors=4, seed=3)
        for _ in range(3):
            guide.posterior(x)
        stored = guide.sets.table.clone()
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(model, guide.eval(), x)
        grads = torch.autograd.grad(loss, list(model.parameters()))

        wide = copy.deepcopy(model).double()
        expected = -self.brute_log_joint(wide, x).gather(1, stored.long()).logsumexp(-1).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
        for mine, theirs in zip(
            grads, torch.autograd.grad(expected, list(wide.parameters())), strict=True
        ):
            assert_near(mine, theirs, TOLERANCE[dtype])
        assert torch.equal(guide.sets.table, stored)

    def test_svi_lowers_the_truncated_loss(self):
        model, x = self.mixture(9, torch.float32), cpu_rows(ROWS, FEATURES)
        guide = TruncatedPartition(model, components=9, candidates=2, neighbors=3, seed=3)
        svi = SVI(model, guide, Adam({"lr": 0.03}), TraceEnum_ELBO(max_plate_nesting=1))
        losses = [svi.step(x) for _ in range(15)]
        assert losses[-1] < losses[0] - 5

    # EM.

    @pytest.mark.meta
    def test_one_em_step_gives_the_textbook_parameters(self, dtype, backend):
        model, x = self.mixture(3, dtype), cpu_rows(ROWS, FEATURES, dtype)
        q = self.brute_log_joint(model, x).softmax(-1).detach()
        old = [
            value.detach().double() for value in model.component_distributions().arguments.values()
        ]
        each = [self.maximizer(x.double(), q[:, c], *(value[c] for value in old)) for c in range(3)]
        EM(model, self.exact_guide(model), variance_floor=0.0).step(x)
        tolerance = 20 * TOLERANCE[dtype]  # solves lose a little
        assert_near(model.weights, q.mean(0), tolerance)
        new = model.component_distributions().arguments.values()
        for mine, theirs in zip(new, zip(*each, strict=True), strict=True):
            assert_near(mine, torch.stack(theirs), tolerance)

    @pytest.mark.parametrize("explore", [0, 1, None], ids=["explore=0", "explore=1", "full"])
    def test_free_energy_never_falls(self, dtype, explore):
        model, x = self.mixture(6, dtype), cpu_rows(150, FEATURES, dtype)
        guide = FullPartition(model, components=6)
        if explore is not None:
            guide = TruncatedPartition(
                model, components=6, candidates=2, neighbors=3, explore=explore, seed=0
            )
        em = EM(model, guide, empty="keep")
        losses = torch.tensor([em.step(x) for _ in range(10)], dtype=torch.float64)
        assert losses[-1] < losses[0]
        rises = losses.diff().clamp_min(0) / losses[0].abs()
        assert rises.max() <= TOLERANCE[dtype], losses.tolist()

    def test_minibatches_add_up_to_the_full_batch(self, dtype):
        x = cpu_rows(ROWS, FEATURES, dtype)
        outcomes = []
        for size in (ROWS, 16):
            pyro.clear_param_store()
            model = self.mixture(6, dtype)
            guide = TruncatedPartition(
                model, components=6, candidates=2, neighbors=3, explore=0, seed=0
            )
            em, losses = EM(model, guide, empty="keep"), []
            for _ in range(3):
                parts = torch.arange(ROWS).split(size)
                losses.append(sum(em.accumulate(x[part], index=part, size=ROWS) for part in parts))
                em.maximize()
            sets = guide.sets.table.sort(-1).values
            outcomes.append(
                (
                    torch.tensor(losses, dtype=dtype),
                    *model.state_dict().values(),
                    sets,
                    guide.graph.neighbors,
                )
            )
        rtol, atol = (1e-3, 1e-4) if dtype == torch.float32 else (1e-9, 1e-10)
        for whole, in_parts in zip(*outcomes, strict=True):
            torch.testing.assert_close(in_parts, whole, rtol=rtol, atol=atol)

    def test_em_recovers_well_separated_components_from_samples(self):
        truth = self.mixture(3)
        with torch.no_grad():
            truth.loc = 20 * torch.eye(3, FEATURES, dtype=torch.float64)
        x = sample(truth, size=900)["x"]
        wanted, normals = truth.weights.detach(), self.oracle_of(truth.component_distributions())[0]
        pyro.clear_param_store()
        model = self.mixture(3)
        with torch.no_grad():
            model.loc = truth.loc + torch.randn(3, FEATURES, dtype=torch.float64)
        em = EM(model, TruncatedPartition(model, components=3, candidates=2, neighbors=2))
        for _ in range(25):
            em.step(x)
        torch.testing.assert_close(model.weights.detach(), wanted, rtol=0, atol=0.07)
        found = self.oracle_of(model.component_distributions())[0]
        rows = 900 * wanted.view(-1, 1)
        assert ((found.mean - normals.mean) / (normals.variance / rows).sqrt()).abs().max() < 4
        spread = normals.variance.detach()
        scale = (spread.unsqueeze(-1) * spread.unsqueeze(-2) / rows.unsqueeze(-1)).sqrt()
        assert ((self.covariance(found) - self.covariance(normals)) / scale).abs().max() < 6

    # State.

    def test_saved_and_loaded_state_gives_the_same_loss(self, tmp_path):
        x = cpu_rows(ROWS, FEATURES, torch.float64)

        def pair():
            model = self.model(6, FEATURES).double()
            return model, TruncatedPartition(model, components=6, candidates=2, neighbors=3)

        model, guide = pair()
        em = EM(model, guide)
        for _ in range(3):
            em.step(x)
        before = em.evaluate_loss(x)
        torch.save(
            {"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "state.pt"
        )
        pyro.clear_param_store()
        model, guide = pair()
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        guide.load_state_dict(state["guide"])
        assert EM(model, guide).evaluate_loss(x) == before

    @pytest.mark.meta
    def test_double_widens_model_and_loss(self):
        model, x = self.mixture(dtype=torch.float32), cpu_rows(ROWS, FEATURES)
        guide = self.exact_guide(model)
        em = EM(model, guide)
        single = em.evaluate_loss(x)
        model.double()
        pyro.clear_param_store()
        posterior = guide.posterior(x.double())
        assert posterior.log_prob.dtype == torch.float64
        assert em.evaluate_loss(x.double()) == pytest.approx(single, rel=1e-5)
        em.step(x)  # rows are widened to the parameters
        assert {value.dtype for value in model.parameters()} == {torch.float64}

    @pytest.mark.cuda
    def test_cuda_gives_the_losses_of_the_cpu(self):
        x, found = cpu_rows(ROWS, FEATURES), []
        for device in ("cpu", "cuda"):
            pyro.clear_param_store()
            model, rows = self.mixture(6).to(device), x.double().to(device)
            guide = TruncatedPartition(
                model, components=6, candidates=2, neighbors=3, explore=0, seed=0
            )
            em = EM(model, guide, empty="keep")
            steps = [em.step(rows) for _ in range(4)]
            assert {value.device.type for value in model.parameters()} == {device}
            grads = torch.autograd.grad(
                TraceEnum_ELBO().differentiable_loss(model, guide, rows), [*model.parameters()]
            )
            found.append((torch.tensor(steps), *(grad.cpu() for grad in grads)))
        for host, accelerator in zip(*found, strict=True):
            torch.testing.assert_close(accelerator, host, rtol=1e-8, atol=1e-8)

    @pytest.mark.cuda
    def test_cuda_density_equals_the_oracle(self, dtype):
        family, x = self.build(dtype=dtype), cpu_rows(ROWS, FEATURES, dtype)
        normals, _ = self.oracle_of(family)
        moved = self.family(
            **{name: value.detach().cuda() for name, value in family.arguments.items()}
        )
        z = torch.randint(5, (3, ROWS))
        expected = normals.log_prob(x.double().unsqueeze(-2)).gather(-1, z.T).T
        actual = moved[z.cuda()].log_prob(x.cuda())
        assert actual.device.type == "cuda"
        assert_near(actual.cpu(), expected, TOLERANCE[dtype])
