"""The tests that every component family inherits."""

import copy
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import PyroOptim
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import Components, MixtureWeights
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.ops import use_backend
from pyro_mixtures.poutine import data_plate
from pyro_mixtures.testing.tools import TOLERANCE, assert_near, exact_loss, one_thread

ROWS = 70

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class FamilyMixture(PyroModule):
    """A mixture of one family, as a Pyro program over rows ``x`` (B, *event).

    Its params are ``weights`` (C,) and the ``arguments``, by name.

    >>> from pyro_mixtures.distributions import IsotropicNormals
    >>> arguments = {"loc": torch.zeros(2, 3), "scale": torch.ones(2)}
    >>> model = FamilyMixture(lambda given: IsotropicNormals(**given), arguments)
    >>> model(torch.zeros(5, 3)).shape
    torch.Size([5, 3])
    """

    weights: Any

    def __init__(
        self, make: Callable[[dict[str, Tensor]], Components], arguments: dict[str, Tensor]
    ):
        super().__init__()
        self.make, self.argument_names = make, tuple(arguments)
        family = make(arguments)
        self.components = family.components
        equal = torch.full((self.components,), 1.0 / self.components)
        self.weights = PyroParam(equal, constraint=constraints.simplex)
        for name, value in arguments.items():
            setattr(self, name, PyroParam(value, constraint=family.arg_constraints[name]))

    def component_distributions(self) -> Components:
        """Return the C component distributions of the present params."""
        return self.make({name: getattr(self, name) for name in self.argument_names})

    def forward(
        self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None
    ) -> Any:
        weights, components = MixtureWeights(self.weights), self.component_distributions()
        with data_plate(x, index, size):
            z = pyro.sample("z", weights)
            return pyro.sample("x", components[z], obs=x)


class FamilyConformance:
    """Tests of one component family.

    Set ``family`` and define ``arguments``, ``oracle`` and ``maximizer``. Override ``rows`` when
    rows drawn from the oracle do not suit, ``make`` when the family takes more than its arguments,
    and ``model`` to test a program of your own. See :mod:`pyro_mixtures.testing` for an example.
    """

    family: Any
    slack = 1.0  # factor on the tolerances of densities and losses
    # Relative and absolute differences between parameters after minibatches and after one batch.
    minibatch_tolerances = {torch.float32: (1e-3, 1e-4), torch.float64: (1e-9, 1e-10)}

    # What a test class defines.

    def arguments(self, components: int, lead: tuple[int, ...] = ()) -> dict[str, Tensor]:
        """Return valid random arguments in float64 by name, batch shape (*lead, C)."""
        raise NotImplementedError

    def oracle(self, *arguments: Tensor) -> Any:
        """Return a dense reference for the arguments, usually a stock Pyro distribution.

        Its batch shape is (*lead, C). It has the method ``log_prob(rows)``, which broadcasts rows
        (N, 1, *event) against the components, and the attributes ``mean`` and ``variance``.
        """
        raise NotImplementedError

    def maximizer(self, x: Tensor, q: Tensor, *old: Tensor) -> tuple[Tensor, ...]:
        """Return one component's new arguments after an EM step, by the textbook formula.

        :param x: rows (N, *event), floating-point ones in float64.
        :param q: (N,) responsibilities of the component.
        :param old: its arguments before the step.
        """
        raise NotImplementedError

    def make(self, arguments: dict[str, Tensor], validate_args: bool | None = None) -> Components:
        """Build the family from its arguments."""
        family: Components = self.family(**arguments, validate_args=validate_args)
        return family

    def rows(self, count: int = ROWS, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        """Return rows (N, *event) in the family's support, on the CPU, the same at every call."""
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            oracle = self.oracle(*self.arguments(count).values())
            drawn: Tensor = oracle.sample()  # one row of each of as many components
        return drawn.to(dtype)

    def model(self, components: int) -> Any:
        """Return a Pyro program with the params ``weights`` and the family's arguments by name."""
        return FamilyMixture(self.make, self.arguments(components))

    def maximizer_tolerance(self, dtype: torch.dtype) -> float:
        """Return the relative accuracy of the arguments after one EM step."""
        return 20 * TOLERANCE[dtype]

    # How tests build things. All tensors are put on the CPU by name, so that the tests also run
    # with another default device.

    @pytest.fixture(autouse=True)
    def fresh_start(self) -> Iterator[None]:
        """Clear Pyro's param store, fix its seed, validate arguments, and use one thread."""
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pyro.enable_validation(True)
        with one_thread():
            yield
        pyro.clear_param_store()

    @pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
    def dtype(self, request: Any) -> torch.dtype:
        dtype: torch.dtype = request.param
        return dtype

    @pytest.fixture(params=["auto", "torch"])
    def backend(self, request: Any) -> Iterator[None]:
        with use_backend(request.param):
            yield

    def tolerance(self, dtype: torch.dtype) -> float:
        return self.slack * TOLERANCE[dtype]

    def build(
        self, components: int = 5, dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = ()
    ) -> Components:
        """Return the family with leaf arguments of ``dtype``, the same at every call."""
        torch.manual_seed(0)
        with torch.device("cpu"):
            given = self.arguments(components, lead)
        return self.make({name: value.to(dtype).requires_grad_() for name, value in given.items()})

    def oracle_of(self, family: Components) -> tuple[Any, list[Tensor]]:
        """Return the oracle in float64 with leaf arguments of the same values, and these."""
        leaves = [value.detach().double().requires_grad_() for value in family.arguments.values()]
        return self.oracle(*leaves), leaves

    def brute_force(self, oracle: Any, x: Tensor) -> Tensor:
        """Log densities (*lead, N, C) of rows ``x`` (N, *event)."""
        event_dim = len(self.build(1).event_shape)
        log_prob: Tensor = oracle.log_prob(x.unsqueeze(-1 - event_dim))
        return log_prob

    def mixture(self, components: int = 5, dtype: torch.dtype = torch.float64) -> Any:
        """Return a mixture whose components and weights all differ, the same at every call."""
        torch.manual_seed(0)
        with torch.device("cpu"), torch.no_grad():
            model = self.model(components).to(dtype)
            for name, value in self.arguments(components).items():
                setattr(model, name, value.to(dtype))
            weights = torch.arange(2.0, components + 2, dtype=dtype)
            model.weights = weights / weights.sum()
        return model

    def model_arguments(self, model: Any) -> list[Tensor]:
        """The model's arguments in float64, differentiable in its params."""
        return [getattr(model, name).double() for name in self.build(1).argument_names]

    def log_joint(self, model: Any, x: Tensor) -> Tensor:
        """log p(c, x) (N, C) in float64 by brute force, differentiable in the model's params."""
        oracle = self.oracle(*self.model_arguments(model))
        weights: Tensor = model.weights.double()
        return weights.log() + self.brute_force(oracle, _double(x))

    def exact_guide(self, model: Any, components: int) -> TruncatedPartition:
        """Return a truncated guide whose candidates are all components."""
        return TruncatedPartition(
            model,
            components=components,
            candidates=components,
            neighbors=components,
            explore=0,
            seed=0,
        )

    def truncated_guide(self, model: Any, components: int, explore: int = 0) -> TruncatedPartition:
        return TruncatedPartition(
            model, components=components, candidates=2, neighbors=3, explore=explore, seed=0
        )

    def tangent(self, family: Components, gradient: Tensor) -> Tensor:
        """Project a gradient on the directions that the oracle has too; all of them by default."""
        return gradient

    def check_gradients(self, family: Components, leaves: list[Tensor], dtype: torch.dtype) -> None:
        for argument, leaf in zip(family.arguments.values(), leaves, strict=True):
            assert argument.grad is not None
            assert leaf.grad is not None
            gradient = self.tangent(family, argument.grad)
            assert_near(gradient, leaf.grad, 10 * self.tolerance(dtype))

    # Densities.

    @pytest.mark.meta
    @pytest.mark.parametrize("shape", ["rows", "candidates", "all components", "padded"])
    def test_log_prob_and_gradients_equal_the_oracle(
        self, dtype: torch.dtype, backend: None, shape: str
    ) -> None:
        family, x = self.build(dtype=dtype), self.rows(ROWS, dtype)
        if x.is_floating_point():
            x.requires_grad_()
        generator = torch.Generator("cpu").manual_seed(2)
        z = torch.randint(5, (4, ROWS), generator=generator, device="cpu")
        if shape == "padded":
            z[1, ::3], z[3] = -1, -1
        every = torch.arange(5, device="cpu").unsqueeze(-1)
        z = {"rows": z[0], "all components": every}.get(shape, z)

        oracle, leaves = self.oracle_of(family)
        wide = _double(x.detach())
        if wide.is_floating_point():
            wide.requires_grad_()
        table = self.brute_force(oracle, wide)  # (B, C)
        full = z.expand(*z.shape[:-1], ROWS)
        expected = table.gather(-1, full.clamp_min(0).reshape(-1, ROWS).T).T.reshape(full.shape)
        expected = torch.where(full < 0, -torch.inf, expected)

        actual = family[z].log_prob(x)
        assert actual.dtype == dtype
        assert_near(actual, expected, self.tolerance(dtype))
        with torch.no_grad():
            assert_near(family[z].log_prob(x), expected, self.tolerance(dtype))

        weight = torch.randn(full.shape, generator=generator, dtype=torch.float64, device="cpu")
        (weight * expected)[full >= 0].sum().backward()
        (weight.to(dtype) * actual)[full >= 0].sum().backward()
        self.check_gradients(family, leaves, dtype)
        if x.is_floating_point():
            assert x.grad is not None
            assert wide.grad is not None
            assert_near(x.grad, wide.grad, 10 * self.tolerance(dtype))

    @pytest.mark.meta
    def test_log_prob_with_batches_of_parameters_equals_the_oracle(
        self, dtype: torch.dtype, backend: None
    ) -> None:
        """Vectorized particles: arguments (P, 1, C, ...), z (S, 1, B), rows (B, ...)."""
        family, x = self.build(3, dtype, lead=(2, 1)), self.rows(7, dtype)
        oracle, leaves = self.oracle_of(family)
        z = torch.randint(3, (4, 1, 7), device="cpu")
        expected = self.brute_force(oracle, _double(x))  # (P, B, C)
        expected = expected.expand(4, 2, 7, 3)
        expected = expected.gather(-1, z.expand(4, 2, 7).unsqueeze(-1)).squeeze(-1)
        actual = family[z].log_prob(x)
        assert_near(actual, expected, self.tolerance(dtype))
        with torch.no_grad():
            assert_near(family[z].log_prob(x), expected, self.tolerance(dtype))
        actual.square().sum().backward()
        expected.square().sum().backward()
        self.check_gradients(family, leaves, dtype)

    @pytest.mark.meta
    def test_unselected_log_prob_has_every_component(
        self, dtype: torch.dtype, backend: None
    ) -> None:
        family, x = self.build(dtype=dtype), self.rows(7, dtype)
        oracle, _ = self.oracle_of(family)
        rows = x.unsqueeze(-1 - len(family.event_shape))
        expected = self.brute_force(oracle, _double(x))
        assert_near(family.log_prob(rows), expected, self.tolerance(dtype))

    # Pyro's protocol.

    def test_shapes_are_those_of_a_pyro_distribution(self) -> None:
        family = self.build()
        event = tuple(self.rows(1).shape[1:])
        assert (family.batch_shape, family.event_shape) == ((5,), event)
        selected = family[torch.tensor([[0, 1], [4, 2], [3, 3]])]
        assert (selected.batch_shape, selected.event_shape) == ((3, 2), event)
        wide = selected.expand(torch.Size((6, 3, 2)))
        assert wide.shape() == (6, 3, 2, *event)
        assert wide.sample().shape == (6, 3, 2, *event)
        assert wide.sample(torch.Size((4,))).shape == (4, 6, 3, 2, *event)
        assert wide.log_prob(wide.sample()).shape == (6, 3, 2)
        assert selected.log_prob(self.rows(1)[0]).shape == (3, 2)

    def test_plates_expand_the_selected_distribution(self) -> None:
        family, z = self.build(), torch.tensor([0, 4, 1, 1])

        def model() -> Any:
            with pyro.plate("copies", 3, dim=-2), pyro.plate("data", 4, dim=-1):
                return pyro.sample("x", family[z])

        trace = pyro.poutine.trace(model).get_trace()
        trace.compute_log_prob()
        node: Any = trace.nodes["x"]
        value = node["value"]
        assert value.shape == (3, 4, *family.event_shape)
        oracle, _ = self.oracle_of(family)
        flat = _double(value.reshape(12, *family.event_shape))
        expected = self.brute_force(oracle, flat).reshape(3, 4, 5)
        expected = expected.gather(-1, z.expand(3, 4).unsqueeze(-1)).squeeze(-1)
        assert_near(node["log_prob"], expected, self.tolerance(torch.float64))

    def test_has_no_support_to_enumerate(self) -> None:
        family = self.build()
        assert not family.has_enumerate_support
        assert not family[torch.tensor([0])].has_enumerate_support

    def test_draws_have_the_moments_of_the_oracle(self) -> None:
        family, count = self.build(3), 20_000
        oracle, _ = self.oracle_of(family)
        shape = (3, *family.event_shape)
        mean, variance = oracle.mean.detach().expand(shape), oracle.variance.detach().expand(shape)
        selected = family[torch.arange(3)]
        draws = [selected.sample(torch.Size((count,)))]
        if family.has_rsample:
            draws.append(selected.rsample(torch.Size((count,))).detach())
        for draw in draws:
            support: Any = family.support
            assert bool(support.check(draw).all())
            z_score = (draw.double().mean(0) - mean) / (variance / count).sqrt()
            assert float(z_score.abs().max()) < 5
            ratio = draw.double().var(0) / variance
            assert float(ratio.log().abs().max()) < 0.2

    def test_gradient_flows_through_rsample_if_there_is_one(self) -> None:
        family, z = self.build(3), torch.tensor([0, 2, 2, 1])
        names = list(family.arguments)
        assert not family[z].sample().requires_grad
        if not family.has_rsample:
            with pytest.raises(NotImplementedError, match=type(family).__name__):
                family[z].rsample()
            return

        def draw(*arguments: Tensor) -> Tensor:
            torch.manual_seed(0)
            given = dict(zip(names, arguments, strict=True))
            return self.make(given, validate_args=False)[z].rsample()

        torch.autograd.gradcheck(draw, tuple(family.arguments.values()))

    def test_mean_is_that_of_each_rows_component(self) -> None:
        family, z = self.build(), torch.tensor([4, 0, 4])
        oracle, _ = self.oracle_of(family)
        mean = oracle.mean.expand(5, *family.event_shape)
        assert_near(family[z].mean, mean[z], self.tolerance(torch.float64))
        assert_near(family.mean, mean, self.tolerance(torch.float64))

    def test_arguments_out_of_their_constraints_are_refused(self) -> None:
        family = self.build()
        given = {name: value.detach() for name, value in family.arguments.items()}
        for name, value in given.items():
            changed = {**given, name: torch.full_like(value, torch.nan)}
            with pytest.raises(ValueError, match=name):
                self.make(changed, validate_args=True)
            if not bool(family.arg_constraints[name].check(-value).all()):
                with pytest.raises(ValueError, match=name):
                    self.make({**given, name: -value}, validate_args=True)

    def test_nothing_is_written_into_the_arguments(self) -> None:
        family, x = self.build(), self.rows()
        z = torch.zeros(ROWS, dtype=torch.long)
        family[z].log_prob(x)
        self.maximize(family, z, x, torch.ones(ROWS, dtype=torch.float64))
        for argument in family.arguments.values():
            assert vars(argument) == {}

    # Log evidence and its truncations.

    @pytest.mark.meta
    def test_untruncated_loss_is_minus_the_log_evidence(
        self, dtype: torch.dtype, backend: None
    ) -> None:
        model, x = self.mixture(dtype=dtype), self.rows(ROWS, dtype)
        expected = -float(self.log_joint(model, x).detach().logsumexp(-1).sum())
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        full = FullPartition(model, components=5)
        for loss in (
            elbo.loss(model, self.exact_guide(model, 5), x),
            elbo.loss(model, full, x),
            EM(model, full).evaluate_loss(x),
            exact_loss(model, x),
        ):
            assert loss == pytest.approx(expected, rel=self.tolerance(dtype))

    @pytest.mark.meta
    def test_training_loss_is_that_of_the_best_of_each_search_space(
        self, dtype: torch.dtype, backend: None
    ) -> None:
        model, x = self.mixture(9, dtype), self.rows(ROWS, dtype)
        guide = TruncatedPartition(
            model, components=9, candidates=2, neighbors=3, explore=0, seed=3
        )
        guide.eval().posterior(x)  # allocates the random start without a search
        known, graph = table_of(guide).tolist(), neighbors_of(guide).tolist()
        joint = self.log_joint(model, x).detach()
        best = []
        for row, start in zip(joint.tolist(), known, strict=True):
            space = {k for c in start for k in graph[c]}
            best.append(sorted(space, key=row.__getitem__)[-2:])
        chosen = joint.gather(1, torch.tensor(best, device="cpu"))
        expected = -float(chosen.logsumexp(-1).sum())
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide.train(), x)
        assert loss == pytest.approx(expected, rel=self.tolerance(dtype))
        assert [set(row) for row in table_of(guide).tolist()] == [set(row) for row in best]

    @pytest.mark.meta
    def test_evaluation_loss_and_gradient_are_those_of_the_stored_sets(
        self, dtype: torch.dtype, backend: None
    ) -> None:
        model, x = self.mixture(9, dtype), self.rows(ROWS, dtype)
        guide = TruncatedPartition(model, components=9, candidates=3, neighbors=4, seed=3)
        for _ in range(3):
            guide.posterior(x)
        stored = table_of(guide).clone()
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(model, guide.eval(), x)
        gradients = torch.autograd.grad(loss, list(model.parameters()))

        wide = copy.deepcopy(model).double()
        expected = -self.log_joint(wide, x).gather(1, stored.long()).logsumexp(-1).sum()
        assert float(loss.detach()) == pytest.approx(
            float(expected.detach()), rel=self.tolerance(dtype)
        )
        wanted = torch.autograd.grad(expected, list(wide.parameters()))
        for mine, theirs in zip(gradients, wanted, strict=True):
            assert_near(mine, theirs, self.tolerance(dtype))
        assert torch.equal(table_of(guide), stored)

    def test_svi_lowers_the_truncated_loss(self) -> None:
        model, x = self.mixture(9, torch.float32), self.rows(ROWS, torch.float32)
        guide = TruncatedPartition(model, components=9, candidates=2, neighbors=3, seed=3)
        svi = SVI(
            model,
            guide,
            PyroOptim(torch.optim.Adam, {"lr": 0.03}),
            TraceEnum_ELBO(max_plate_nesting=1),
        )
        losses = [svi.step(x) for _ in range(20)]
        assert losses[-1] < losses[0] - 1

    # Sufficient statistics.

    def maximize(self, family: Components, z: Tensor, x: Tensor, q: Tensor) -> dict[str, Tensor]:
        """Arguments that maximize the density of rows ``x`` in components ``z`` of weight ``q``."""
        with torch.no_grad():
            sums = family[z].statistics(x, q)
            floor = family.floor(sums, 0.0)
            return family.maximize(
                family.finish(sums), frozenset(family.argument_names), floor=floor
            )

    def test_padding_and_rows_without_weight_contribute_nothing(
        self, dtype: torch.dtype, backend: None
    ) -> None:
        family, x = self.build(2, dtype), self.rows(ROWS, dtype)
        z = torch.arange(2 * ROWS).reshape(2, ROWS) % 2
        q = 0.1 + torch.rand(2, ROWS, dtype=dtype)
        expected = self.maximize(family, z[:, 9:], x[9:], q[:, 9:])
        z[:, :5], q[:, 5:9] = -1, 0.0
        if x.is_floating_point():
            x[:5] = torch.nan  # padding may hold anything
        actual = self.maximize(family, z, x, q)
        for name, value in expected.items():
            assert_near(actual[name], value, 20 * self.tolerance(dtype))

    def test_statistics_of_batches_add_up(self, dtype: torch.dtype, backend: None) -> None:
        family, x = self.build(2, dtype), self.rows(ROWS, dtype)
        z = torch.arange(2 * ROWS).reshape(2, ROWS) % 2
        q = 0.1 + torch.rand(2, ROWS, dtype=dtype)
        expected = self.maximize(family, z, x, q)
        with torch.no_grad():
            sums = family[z[:, :30]].statistics(x[:30], q[:, :30])
            sums = family[z[:, 30:]].statistics(x[30:], q[:, 30:], sums)
            floor = family.floor(sums, 0.0)
            free = frozenset(family.argument_names)
            actual = family.maximize(family.finish(sums), free, floor=floor)
        for name, value in expected.items():
            assert_near(actual[name], value, 100 * self.tolerance(dtype))

    def test_a_component_without_rows_has_finite_arguments(self, dtype: torch.dtype) -> None:
        family, x = self.build(3, dtype), self.rows(ROWS, dtype)
        z = 2 * (torch.arange(ROWS) % 2)
        for value in self.maximize(family, z, x, torch.ones(ROWS, dtype=dtype)).values():
            assert bool(value.isfinite().all())

    def test_no_free_argument_gives_no_update(self) -> None:
        family, x = self.build(2), self.rows()
        with torch.no_grad():
            sums = family[torch.arange(ROWS) % 2].statistics(x, torch.ones(ROWS).double())
            floor = family.floor(sums, 0.0)
            assert family.maximize(family.finish(sums), frozenset(), floor=floor) == {}

    # EM.

    @pytest.mark.meta
    def test_one_em_step_gives_the_textbook_parameters(
        self, dtype: torch.dtype, backend: None
    ) -> None:
        model, x = self.mixture(3, dtype), self.rows(ROWS, dtype)
        q = self.log_joint(model, x).softmax(-1).detach()
        old = [value.detach() for value in self.model_arguments(model)]
        with torch.device("cpu"):
            best = [
                self.maximizer(_double(x), q[:, c], *(value[c] for value in old)) for c in range(3)
            ]
        EM(model, self.exact_guide(model, 3), variance_floor=0.0).step(x)
        assert_near(model.weights, q.mean(0), 20 * self.tolerance(dtype))
        new = self.model_arguments(model)
        for mine, theirs in zip(new, zip(*best, strict=True), strict=True):
            assert_near(mine, torch.stack(theirs), self.maximizer_tolerance(dtype))

    @pytest.mark.meta
    @pytest.mark.parametrize("kind", ["truncated", "exploring", "full", "hard"])
    def test_loss_never_rises(self, dtype: torch.dtype, kind: str) -> None:
        model, x = self.mixture(6, dtype), self.rows(150, dtype)
        guide: Any = {
            "truncated": lambda: self.truncated_guide(model, 6),
            "exploring": lambda: self.truncated_guide(model, 6, explore=1),
            "full": lambda: FullPartition(model, components=6),
            "hard": lambda: HardPartition(model, components=6),
        }[kind]()
        em = EM(model, guide, empty="keep")
        steps = [em.step(x) for _ in range(10)]
        losses = torch.tensor(steps, dtype=torch.float64, device="cpu")
        assert losses[-1] < losses[0]
        rises = losses.diff().clamp_min(0) / losses[0].abs()
        assert rises.max() <= TOLERANCE[dtype], losses.tolist()

    def test_frozen_arguments_stay_and_the_loss_never_rises(self) -> None:
        names = self.build(1).argument_names
        x = self.rows()
        for count in range(1, len(names) + 1):
            for frozen in combinations(names, count):
                pyro.clear_param_store()
                model = self.mixture(3)
                before = {name: getattr(model, name).detach().clone() for name in frozen}
                em = EM(model, FullPartition(model, components=3), freeze=frozen, empty="keep")
                try:
                    losses = [em.step(x) for _ in range(3)]
                except ClosedFormError:  # states that it has no closed form for this choice
                    continue
                for name, value in before.items():
                    assert torch.equal(getattr(model, name), value)
                assert losses[2] <= losses[1] + 1e-9 * abs(losses[1])
                assert losses[1] <= losses[0] + 1e-9 * abs(losses[0])

    def test_minibatches_add_up_to_the_full_batch(self, dtype: torch.dtype) -> None:
        x = self.rows(ROWS, dtype)
        outcomes = []
        for size in (ROWS, 16):
            pyro.clear_param_store()
            model = self.mixture(6, dtype)
            guide = self.truncated_guide(model, 6)
            em, losses = EM(model, guide, empty="keep"), []
            for _ in range(3):
                batches = torch.arange(ROWS).split(size)
                losses.append(
                    sum(em.accumulate(x[rows], index=rows, size=ROWS) for rows in batches)
                )
                em.maximize()
            sets = table_of(guide).sort(-1).values
            params = model.state_dict().values()
            outcomes.append((torch.tensor(losses, dtype=dtype), *params, sets, neighbors_of(guide)))
        rtol, atol = self.minibatch_tolerances[dtype]
        for whole, in_batches in zip(*outcomes, strict=True):
            torch.testing.assert_close(in_batches, whole, rtol=rtol, atol=atol)

    def test_stepwise_em_raises_the_log_evidence(self) -> None:
        model, x = self.mixture(3), self.rows(400)
        guide = FullPartition(model, components=3)
        em = EM(model, guide, step_size=lambda t: (t + 2) ** -0.6, empty="keep")
        before = em.evaluate_loss(x)
        for rows in torch.arange(400).split(100):
            em.step(x[rows], index=rows, size=400)
        assert em.evaluate_loss(x) < before

    def test_an_empty_component_is_reseeded(self) -> None:
        model, x = self.mixture(3), self.rows(150)
        with torch.no_grad():
            model.weights = torch.tensor([0.5, 0.5 - 1e-14, 1e-14], dtype=torch.float64)
        em = EM(model, FullPartition(model, components=3), empty="reseed")
        for _ in range(4):
            em.step(x)
        assert float(model.weights.detach().min()) > 1e-6
        for value in model.state_dict().values():
            assert bool(value.isfinite().all())

    # State.

    def test_saved_and_loaded_state_gives_the_same_loss(self, tmp_path: Path) -> None:
        x = self.rows()

        def pair() -> tuple[Any, TruncatedPartition]:
            model = self.model(6).double()
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
    def test_double_widens_model_and_loss(self) -> None:
        model, x = self.mixture(dtype=torch.float32), self.rows(ROWS, torch.float32)
        guide = self.exact_guide(model, 5)
        em = EM(model, guide)
        single = em.evaluate_loss(x)
        model.double()
        pyro.clear_param_store()
        posterior = guide.posterior(_double(x))
        assert posterior.log_prob.dtype == torch.float64
        assert em.evaluate_loss(_double(x)) == pytest.approx(single, rel=1e-5)
        em.step(x)  # rows are widened to the parameters
        assert {value.dtype for value in model.parameters()} == {torch.float64}

    @needs_cuda
    @pytest.mark.cuda
    def test_cuda_gives_the_losses_of_the_cpu(self) -> None:
        x = self.rows()
        outcomes = []
        for device in ("cpu", "cuda"):
            pyro.clear_param_store()
            model, rows = self.mixture(6).to(device), x.to(device)
            guide = self.truncated_guide(model, 6)
            em = EM(model, guide, empty="keep")
            steps = [em.step(rows) for _ in range(4)]
            assert {value.device.type for value in model.parameters()} == {device}
            gradients = torch.autograd.grad(
                TraceEnum_ELBO().differentiable_loss(model, guide, rows), [*model.parameters()]
            )
            outcomes.append((torch.tensor(steps), *(gradient.cpu() for gradient in gradients)))
        for host, accelerator in zip(*outcomes, strict=True):
            torch.testing.assert_close(accelerator, host, rtol=1e-8, atol=1e-8)

    @needs_cuda
    @pytest.mark.cuda
    def test_cuda_density_equals_the_oracle(self, dtype: torch.dtype) -> None:
        family, x = self.build(dtype=dtype), self.rows(ROWS, dtype)
        oracle, _ = self.oracle_of(family)
        moved = self.make({name: value.detach().cuda() for name, value in family.arguments.items()})
        z = torch.randint(5, (3, ROWS))
        expected = self.brute_force(oracle, _double(x)).gather(-1, z.T).T
        actual = moved[z.cuda()].log_prob(x.cuda())
        assert actual.device.type == "cuda"
        assert_near(actual.cpu(), expected, self.tolerance(dtype))


def _double(x: Tensor) -> Tensor:
    """Rows in float64; integers as they are."""
    return x.double() if x.is_floating_point() else x


def table_of(guide: TruncatedPartition) -> Tensor:
    """The stored candidates (N, C') of a guide that has seen the rows."""
    assert guide.sets is not None
    return guide.sets.table


def neighbors_of(guide: TruncatedPartition) -> Tensor:
    """The neighbor graph (C, G) of a guide that has seen the rows."""
    assert guide.graph is not None
    return guide.graph.neighbors
