"""Truncated q(z): every row keeps a few candidates, found along a graph of components."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError, PartitionError
from pyro_mixtures.infer.searching_guide import SearchingGuide
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.search import divergence_sums, keep_best, search_space
from pyro_mixtures.options import check_integer
from pyro_mixtures.partition import CandidateSets, NeighborGraph
from pyro_mixtures.poutine import Joint, Posterior, ReuseMessenger, log_joint, posterior_of

# A search for candidates of new rows stops when fewer than this share of the sets changes.
_FEW_CHANGES = 1e-2


class TruncatedPartition(SearchingGuide):
    """Truncated variational q(z): each row has C' candidates out of C components.

    For each of its rows, a call searches the neighborhoods of the row's candidates and ``explore``
    random components. It keeps the ``candidates`` best, and updates the neighbor graph from the
    densities that it evaluated. These are at most C' G + E per row, independently of C. Salwig,
    Kahlke, Hirschberger, Forster, Luecke, "Sublinear Variational Optimization of Gaussian Mixture
    Models with Millions to Billions of Parameters", arXiv 2501.12299.

    :param model: the Pyro program; its arguments are the guide's.
    :param components: C, the number of the model's components.
    :param candidates: C', the number of components that a row keeps.
    :param neighbors: G, the size of a component's neighborhood, which includes the component.
    :param explore: E, the number of random components that are evaluated in addition.
    :param site: name of the discrete site.
    :param global_guide: a guide over the model's other latent sites.
    :param seed: seed of the guide's own random numbers; None draws it from torch's global generator
        at the first call.
    :raises OptionError: when C' > C, G > C or a number is out of range.

    The first call allocates the state for its data set of N rows. It is part of ``state_dict``.

    >>> import pyro, torch
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=8, features=2)
    >>> guide = TruncatedPartition(model, components=8, candidates=2, neighbors=3)
    >>> guide.posterior(x).candidates.shape
    torch.Size([2, 100])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        components: int,
        candidates: int = 3,
        neighbors: int = 15,
        explore: int = 1,
        site: str = "z",
        global_guide: Callable[..., Any] | None = None,
        seed: int | None = None,
    ):
        super().__init__(model, components=components, site=site, global_guide=global_guide)
        check_integer(candidates=candidates, neighbors=neighbors, explore=explore)
        if seed is not None:
            check_integer(seed=seed)
        if not 1 <= candidates <= components:
            raise OptionError(f"candidates={candidates} must lie in [1, components={components}]")
        if not 1 <= neighbors <= components:
            raise OptionError(f"neighbors={neighbors} must lie in [1, components={components}]")
        if explore < 0:
            raise OptionError(f"explore={explore} must not be negative")
        self.candidates = candidates
        self.neighbors = neighbors
        self.explore = explore
        self.seed = None if seed is None else int(seed)
        self.sets: CandidateSets | None = None
        self.graph: NeighborGraph | None = None
        self._generator: torch.Generator | None = None

    def e_step(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Tensor],
    ) -> Posterior:
        searching = self.training and self.search

        def propose(index: Tensor, size: int, device: torch.device) -> Tensor:
            sets = self._sets_for(size)
            known = sets.read(index).to(device)
            if not searching:
                return known.T.long()
            return self._search(known, self._graph(), self.explore, self._random_numbers())

        joint = log_joint(model, self._known_structure(), propose, args, kwargs, given)
        posterior = self._best(joint)
        if self.training:
            self._sets_for(joint.size).write(joint.index, posterior.candidates.T)
        if searching:
            self._observe(joint, posterior.candidates[0])
        return posterior

    def posterior_of_new_rows(
        self,
        *args: Any,
        model: Callable[..., Any] | None = None,
        given: Mapping[str, Tensor] | None = None,
        rounds: int = 10,
        **kwargs: Any,
    ) -> Posterior:
        """Return q(z) of rows without state.

        The first round evaluates landmark components of the graph, later ones search around the
        best candidates. The search stops when fewer than one set in a hundred changes. The
        result has the truncated log evidence, a lower bound.

        :param rounds: maximum number of searches.
        """
        self._read(args, kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        sets: CandidateSets | None = None
        posterior: Posterior | None = None
        evaluations = 0
        handled = ReuseMessenger()(model or self.model)
        # A generator of its own: scoring rows must not change a fit that continues afterward.
        generator = torch.Generator("cpu").manual_seed(0 if self.seed is None else self.seed)
        graph = self.graph if self.graph is not None else self._new_graph(generator)

        def propose(index: Tensor, size: int, device: torch.device) -> Tensor:
            nonlocal sets
            if sets is None:
                sets = self._random_sets(size, generator)
                return self._survey(sets.read(index).to(device), graph)
            return self._search(
                sets.read(index).to(device), graph, max(self.explore, self.candidates), generator
            )

        for _ in range(rounds):
            same_rows = None if posterior is None else posterior.index
            joint = log_joint(
                handled, self._known_structure(), propose, args, kwargs, values, same_rows
            )
            posterior = self._best(joint)
            evaluations += posterior.evaluations
            assert sets is not None
            before = sets.read(posterior.index)
            after = posterior.candidates.T.to("cpu", torch.int32)
            changed = (before.sort(-1).values != after.sort(-1).values).any(-1)
            sets.write(posterior.index, after)
            if changed.float().mean() < _FEW_CHANGES:
                break
        assert posterior is not None
        return posterior._replace(evaluations=evaluations)

    @property
    def evaluations_per_row(self) -> int:
        """Largest number of components that an E-step evaluates for a row."""
        return self.candidates * self.neighbors + self.explore

    def row_order(self) -> Tensor | None:
        """Return row numbers (N,) sorted by component, neighboring components in succession."""
        if self.sets is None or self.graph is None:
            return None
        rank = self.graph.component_order()
        winners = self.sets.table[:, 0].long()
        return Pairs(rank[winners].unsqueeze(0), self.components).sorted.order

    def add_candidates(self, index: Tensor, components: Tensor, *, size: int) -> None:
        """Add ``components`` (K,) to the candidates of the rows ``index`` (K,), such as seeds.

        :param size: N, the number of rows of the data set.
        :raises PartitionError: for numbers out of range.
        """
        sets = self._sets_for(size)
        for name, numbers, bound in (
            ("index", index, size),
            ("components", components, self.components),
        ):
            if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= bound):
                raise PartitionError(f"{name} contains numbers outside [0, {bound})")
        known = sets.read(index)
        added = components.to(known).unsqueeze(-1)
        missing = (known != added).all(-1)
        known[missing, -1:] = added[missing]
        sets.write(index, known)

    def drop_components(self, components: Tensor) -> None:
        """Give rows whose candidates were all dropped another one, at random."""
        if self.sets is None:
            return
        dropped = components.to("cpu")
        rows = dropped[self.sets.table.long()].all(-1).nonzero()[:, 0]
        left = (~dropped).nonzero()[:, 0]
        generator = self._random_numbers()
        picked = torch.randint(len(left), (len(rows),), generator=generator, device="cpu")
        self.sets.table[rows, 0] = left[picked].to(self.sets.table.dtype)

    def reseed_component(self, component: int, like: int) -> None:
        """Give ``component``, which was re-seeded as a copy of ``like``, its neighborhood."""
        if self.graph is not None:
            self.graph.replace(component, like)

    def get_extra_state(self) -> dict[str, Tensor] | None:
        """Return the state that ``state_dict`` stores."""
        if self.sets is None or self.graph is None:
            return None
        return {"candidates": self.sets.table, "neighbors": self.graph.neighbors}

    def set_extra_state(self, state: Any) -> None:
        """Restore the state of ``state_dict``.

        :raises PartitionError: for a state of other numbers of components, candidates or neighbors.
        """
        if state is None:
            self.sets = self.graph = None
            return
        if not {"candidates", "neighbors"} <= set(state):
            raise PartitionError(
                f"this state holds {sorted(state)}: it is that of another guide, not of a "
                "TruncatedPartition"
            )
        table, neighbors = state["candidates"], state["neighbors"]
        expected = (self.candidates, self.components, self.neighbors)
        saved = (table.shape[1], len(neighbors), neighbors.shape[1])
        if saved != expected:
            raise PartitionError(
                f"the saved state has (C', C, G) = {saved}, but this guide has {expected}: make "
                "the guide with the numbers of the saved state"
            )
        sets, graph = self._random_sets(len(table), self._random_numbers()), self._graph()
        sets.table, graph.neighbors = table.clone(), neighbors.clone()
        sets.check()
        graph.check()
        self.sets = sets

    def _sets_for(self, size: int) -> CandidateSets:
        if self.sets is None:
            self._check_rows(size)
            self._start(size)
        assert self.sets is not None
        if self.sets.rows != size:
            raise PartitionError(
                f"this guide holds the state of {self.sets.rows} rows, but the data now have "
                f"{size}: make a new guide, pass index= and size= for minibatches, or score new "
                "rows with pyro_mixtures.infer"
            )
        return self.sets

    def _start(self, size: int) -> None:
        self.sets = self._random_sets(size, self._random_numbers())
        self._graph()

    def _random_sets(self, rows: int, generator: torch.Generator) -> CandidateSets:
        return CandidateSets(
            rows=rows, components=self.components, candidates=self.candidates, generator=generator
        )

    def _random_numbers(self) -> torch.Generator:
        if self._generator is None:
            seed = int(torch.randint(2**31, (), device="cpu")) if self.seed is None else self.seed
            self._generator = torch.Generator("cpu").manual_seed(seed)
        return self._generator

    def _survey(self, known: Tensor, graph: NeighborGraph) -> Tensor:
        """Return the search space of new rows: landmarks of the graph, and ``known`` ones."""
        landmarks = graph.landmarks(4 * self.candidates * self.neighbors).to(known.device)
        themselves = graph.neighbors[:, :1].to(known.device)
        return search_space(known, themselves, landmarks.expand(len(known), -1))

    def _search(
        self, known: Tensor, graph: NeighborGraph, explore: int, generator: torch.Generator
    ) -> Tensor:
        random = torch.randint(
            self.components,
            (len(known), explore),
            generator=generator,
            dtype=torch.int32,
            device="cpu",
        )
        return search_space(known, graph.neighbors.to(known.device), random.to(known.device))

    def _graph(self) -> NeighborGraph:
        if self.graph is None:
            self.graph = self._new_graph(self._random_numbers())
        return self.graph

    def _new_graph(self, generator: torch.Generator) -> NeighborGraph:
        return NeighborGraph(
            components=self.components, neighbors=self.neighbors, generator=generator
        )

    def _best(self, joint: Joint) -> Posterior:
        """Keep each row's C' best candidates."""
        best = keep_best(joint.candidates, joint.log_joint, self.candidates)
        return posterior_of(joint, *best, best_first=True)

    def _observe(self, joint: Joint, winner: Tensor) -> None:
        """Update the graph from the densities that were evaluated."""
        assert self.graph is not None
        density = joint.log_density.expand(joint.log_joint.shape)
        sums = divergence_sums(winner, joint.candidates, density, self.components)
        self.graph.observe(sums, rows=joint.rows, size=joint.size)
