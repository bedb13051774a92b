"""Truncated q(z): every row keeps a few candidate components, found through the components' neighbour graph."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError, PartitionError
from pyro_mixtures.infer.searching_guide import SearchingGuide
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.search import divergence_sums, keep_best, search_space
from pyro_mixtures.partition import CandidateSets, NeighborGraph
from pyro_mixtures.poutine import Joint, Posterior, ReuseMessenger, log_joint, posterior_of


class TruncatedPartition(SearchingGuide):
    """Truncated variational q(z): each row's probability lies on C' candidates out of C components.

    One call searches, for each of its rows, the neighbourhoods of the row's candidates and
    ``explore`` random components, keeps the ``candidates`` best, and updates the neighbour graph
    from the densities it has evaluated: at most C' G + E evaluations a row, whatever C is. Salwig,
    Kahlke, Hirschberger, Forster, Luecke, "Sublinear Variational Optimization of Gaussian Mixture
    Models with Millions to Billions of Parameters", arXiv 2501.12299.

    :param components: C.
    :param candidates: C', components a row keeps.
    :param neighbors: G, size of a component's neighbourhood, itself included.
    :param explore: E, random components tried in addition.
    :param seed: of the guide's own random numbers; by default drawn from torch's global generator
        at the first call.
    :raises OptionError: when C' > C, G > C or a number is out of range.

    The state is allocated at the first call: it belongs to that data set of N rows. ``state_dict``
    holds it.

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
        model: Callable,
        *,
        components: int,
        candidates: int = 3,
        neighbors: int = 15,
        explore: int = 1,
        site: str = "z",
        global_guide: Callable | None = None,
        seed: int | None = None,
    ):
        super().__init__(model, components=components, site=site, global_guide=global_guide)
        if not 1 <= candidates <= components:
            raise OptionError(f"candidates={candidates} must lie in [1, components={components}]")
        if not 1 <= neighbors <= components:
            raise OptionError(f"neighbors={neighbors} must lie in [1, components={components}]")
        if explore < 0:
            raise OptionError(f"explore={explore} must not be negative")
        self.candidates, self.neighbors, self.explore, self.seed = (
            candidates,
            neighbors,
            explore,
            seed,
        )
        self.sets: CandidateSets | None = None
        self.graph: NeighborGraph | None = None
        self._generator: torch.Generator | None = None

    def _e_step(
        self, model: Callable, args: tuple, kwargs: Mapping[str, Any], given: Mapping[str, Tensor]
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
        *args,
        model: Callable | None = None,
        given: Mapping[str, Tensor] | None = None,
        rounds: int = 10,
        **kwargs,
    ) -> Posterior:
        """q(z) of rows without state: a survey of landmark components, then searches around the best.

        Stops when fewer than one set in a hundred changes. The evidence is that of the candidates
        found, a lower bound.

        :param rounds: at most so many searches.
        """
        self._read(args, kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        sets: CandidateSets | None = None
        posterior: Posterior | None = None
        evaluations = 0
        handled = ReuseMessenger()(model or self.model)
        # Its own random numbers: scoring rows must not change the fit that goes on afterwards.
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
            before, now = sets.read(posterior.index), posterior.candidates.T.to("cpu", torch.int32)
            changed = (before.sort(-1).values != now.sort(-1).values).any(-1)
            sets.write(posterior.index, now)
            if changed.float().mean() < 1e-2:
                break
        assert posterior is not None
        return posterior._replace(evaluations=evaluations)

    @property
    def evaluations_per_row(self) -> int:
        return self.candidates * self.neighbors + self.explore

    def row_order(self) -> Tensor | None:
        """Rows by their winning component, components so that neighbours in the graph follow each other."""
        if self.sets is None or self.graph is None:
            return None
        place = self.graph.component_order()
        return Pairs(place[self.sets.table[:, 0].long()].unsqueeze(0), self.components).sorted.order

    def add_candidates(self, index: Tensor, components: Tensor, *, size: int) -> None:
        """Tell the rows ``index`` (K,) of ``size`` that ``components`` (K,) are among their candidates (seeds, say)."""
        sets = self._sets_for(size)
        for name, numbers, bound in (
            ("index", index, size),
            ("components", components, self.components),
        ):
            if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= bound):
                raise PartitionError(f"{name} holds numbers outside [0, {bound})")
        known = sets.read(index)
        planted = components.to(known).unsqueeze(-1)
        missing = (known != planted).all(-1)
        known[missing, -1:] = planted[missing]
        sets.write(index, known)

    def drop_components(self, components: Tensor) -> None:
        """Give rows that have lost all their candidates a live one."""
        if self.sets is None:
            return
        gone = components.to("cpu")
        lost = gone[self.sets.table.long()].all(-1).nonzero()[:, 0]
        live = (~gone).nonzero()[:, 0]
        pick = torch.randint(
            len(live), (len(lost),), generator=self._random_numbers(), device="cpu"
        )
        self.sets.table[lost, 0] = live[pick].to(self.sets.table.dtype)

    def reseed_component(self, component: int, like: int) -> None:
        """Give a component that EM split off ``like`` its neighbourhood."""
        if self.graph is not None:
            self.graph.replace(component, like)

    def get_extra_state(self):
        if self.sets is None or self.graph is None:
            return None
        return {"candidates": self.sets.table, "neighbors": self.graph.neighbors}

    def set_extra_state(self, state) -> None:
        if state is None:
            self.sets = self.graph = None
            return
        table, neighbors = state["candidates"], state["neighbors"]
        expected = (self.candidates, self.components, self.neighbors)
        found = (table.shape[1], len(neighbors), neighbors.shape[1])
        if found != expected:
            raise PartitionError(f"saved state has (C', C, G) = {found}, this guide {expected}")
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
                f"this guide holds the state of {self.sets.rows} rows, but the data now have {size}: make a new guide, "
                "pass index= and size= for minibatches, or score new rows with pyro_mixtures.infer"
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
        """What to evaluate for rows of which nothing is known: landmarks of the graph beside the random ``known``."""
        marks = graph.landmarks(4 * self.candidates * self.neighbors).to(known.device)
        return search_space(
            known, graph.neighbors[:, :1].to(known.device), marks.expand(len(known), -1)
        )

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
        assert self.graph is not None
        density = joint.log_density.expand(joint.log_joint.shape)
        sums = divergence_sums(winner, joint.candidates, density, self.components)
        self.graph.observe(sums, rows=joint.rows, size=joint.size)
