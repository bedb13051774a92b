"""Expectation maximisation over a Pyro program, with SVI's protocol."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro
import torch

from pyro_mixtures.data.rows import as_arguments
from pyro_mixtures.distributions.statistics import blend, scaled
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.infer.em.m_step import MStep
from pyro_mixtures.infer.em.reseed import Pauses, Reservoir, choose_splits, copy_component
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.labelled_guide import LabelledGuide
from pyro_mixtures.infer.searching_guide import SearchingGuide
from pyro_mixtures.options import check_number, check_whole
from pyro_mixtures.poutine import (
    CandidateMessenger,
    Posterior,
    ProgramStructure,
    ReuseMessenger,
    StatisticsMessenger,
    collect_statistics,
)
from pyro_mixtures.poutine.joint import site_term
from pyro_mixtures.poutine.params import ParamHandle
from pyro_mixtures.poutine.statistics import SiteStatistics

EMPTY = ("reseed", "drop", "keep")


class Update(NamedTuple):
    """What one M-step did."""

    live: int  # components with rows enough for their parameters
    reseeded: int
    dropped: int


class EM:
    """Maximise the (truncated) free energy of ``model`` by closed-form steps; used like ``pyro.infer.SVI``.

    Works on any program whose discrete site's weights and observed sites' distributions have a
    closed form: families of :mod:`pyro_mixtures.distributions` selected by ``[z]``, or stock
    Normal, MultivariateNormal, LowRankMultivariateNormal and Categorical with arguments indexed by
    z. Arguments that are no params stay fixed.

    :param model: the Pyro program, its unknowns declared as params (``pyro.param``, ``PyroParam``).
    :param guide: a guide of z for the same program, such as ``TruncatedPartition`` or
        ``FullPartition``.
    :param step_size: None for exact steps. A function of the step number t = 1, 2, ... with values
        in (0, 1] makes
        :meth:`step` stepwise (online) EM on minibatches: statistics are ``(1 - s) old + s new``.
        Cappe & Moulines, "On-line expectation-maximization algorithm for latent data models", JRSS
        B 71 (2009), with s = t^-a, a in (1/2, 1].
    :param variance_floor: smallest variance, as a fraction of each feature's variance over the
        data.
    :param empty: what to do with components that keep too few rows for their parameters:
        ``"reseed"`` splits a large one, which may cost a step up to log 2 for each of its rows, and
        what the few rows of the dead one lose; ``"drop"`` sets their weight to zero for good;
        ``"keep"`` holds their parameters and updates their weight.
    :param freeze: names of params to hold fixed.
    :param gradient: a Pyro optimiser for sites without a closed form: generalised EM.
    :param gradient_steps: steps of that optimiser in each M-step, all with the q(z) of the E-step
        before.
    :raises ModelError: when the guide was made for another model.
    :raises OptionError: when an option has an impossible value.

    >>> import torch
    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=2, features=2)
    >>> em = EM(model, FullPartition(model, components=2))
    >>> first, second = em.step(x), em.step(x)
    >>> second <= first
    True
    """

    random_rows: torch.Generator | None = (
        None  # set by growth: dead components split others at random rows
    )

    def __init__(
        self,
        model: Callable,
        guide: PartitionGuide,
        *,
        step_size: Callable[[int], float] | None = None,
        variance_floor: float = 1e-6,
        empty: str = "reseed",
        freeze: Iterable[str] = (),
        gradient: Any = None,
        gradient_steps: int = 1,
    ):
        if not isinstance(guide, PartitionGuide):
            raise ModelError(
                f"guide={guide!r} has no E-step: pass a guide of pyro_mixtures.guides for this model"
            )
        if guide.model is not model:
            raise ModelError(
                "this guide was made for another model: build guide and EM from the same program"
            )
        if empty not in EMPTY:
            raise OptionError(f"unknown empty={empty!r}; choose one of {EMPTY}")
        if step_size is not None and not callable(step_size):
            raise OptionError(
                f"step_size={step_size!r} must be a function of the step number, lambda t: t**-0.6 say"
            )
        if gradient is not None and not callable(gradient):
            raise OptionError(
                f"gradient={gradient!r} must be a Pyro optimiser, pyro.optim.Adam({{'lr': 0.01}}) say"
            )
        if isinstance(freeze, str):
            raise OptionError(
                f"freeze={freeze!r} must list names of params: give freeze=[{freeze!r}]"
            )
        names = list(freeze) if isinstance(freeze, Iterable) else [freeze]
        if not isinstance(freeze, Iterable) or not all(isinstance(name, str) for name in names):
            raise OptionError(f"freeze={freeze!r} must list names of params, as freeze=['loc']")
        check_number(variance_floor=variance_floor)
        check_whole(gradient_steps=gradient_steps)
        if gradient is None and gradient_steps > 1:
            raise OptionError(
                f"gradient_steps={gradient_steps} without an optimiser: pass gradient="
            )
        self.model, self.guide, self.step_size = model, guide, step_size
        self.variance_floor, self.empty, self.freeze = variance_floor, empty, frozenset(names)
        self.gradient, self.gradient_steps = gradient, gradient_steps
        self.steps = 0
        self.last_update: Update | None = None
        self._sites: dict[str, SiteStatistics] = {}
        self._online: dict[str, SiteStatistics] = {}
        self._params: dict[str, ParamHandle] = {}
        self._reservoir, self._pauses = Reservoir(), Pauses()
        self._bound = False  # whether the params behind the arguments were found and checked
        self._no_closed_form: frozenset[str] | None = None
        self._calls: list[tuple[Posterior, tuple, dict[str, Any]]] = []
        self._rows = self._size = self._weighted_rows = 0
        self._weight = 0.0

    def step(self, *args, **kwargs) -> float:
        """One EM step on the rows in ``args``; returns the loss before it, ``-ELBO`` scaled to the data set."""
        try:
            posterior = self._collect(args, kwargs)
            self.maximize()
        except BaseException:
            self.forget()
            raise
        return _scaled_loss(posterior)

    def accumulate(self, *args, **kwargs) -> float:
        """E-step and statistics of one minibatch, no update; returns its share of the loss (not scaled up).

        After all minibatches of a data set :meth:`maximize` makes the same step as one full-batch
        :meth:`step`.
        """
        return -float(self._collect(args, kwargs).free_energy())

    def evaluate_loss(self, *args, **kwargs) -> float:
        """``-ELBO`` scaled to the data set; parameters and the guide's state stay as they are."""
        args, kwargs = as_arguments(args, kwargs)
        training = self.guide.training
        self.guide.eval()
        try:
            return _scaled_loss(self.guide.posterior(*args, **kwargs))
        finally:
            self.guide.train(training)

    def forget(self) -> None:
        """Throw away statistics accumulated since the last update (after an interruption, say)."""
        self._sites, self._calls, self._reservoir = {}, [], Reservoir()
        self._rows = self._weighted_rows = 0
        self._weight = 0.0
        self.guide.reuse = None

    def maximize(self) -> Update:
        """The M-step: set the params to the maximisers of what was accumulated."""
        if not self._sites:
            raise OptionError("nothing accumulated: call accumulate() or step() with data first")
        if (
            not self._weighted_rows and not self._online
        ):  # a later minibatch of stepwise EM may be of such rows
            raise DataError(
                f"all {self._rows} rows have weight zero, or are masked: check the row weights"
            )
        self.steps += 1
        sites = self._sites if self.step_size is None else self._blend()
        with torch.no_grad(), self.guide.read().threads():
            update = self._update(sites)
        if self.gradient is not None:
            for _ in range(self.gradient_steps):
                self._gradient_step()
        self.forget()
        self.last_update = update
        return update

    def _collect(self, args: tuple, kwargs: dict[str, Any]) -> Posterior:
        args, kwargs = as_arguments(args, kwargs)
        structure = self.guide.read(*args, **kwargs)
        if structure.latent:
            raise ClosedFormError(
                f"EM maximises params, but sites {list(structure.latent)} are latent: use SVI, with global_guide= in the "
                "guide"
            )
        if structure.outside:
            raise ClosedFormError(
                f"sites {list(structure.outside)} lie outside the data plate: EM maximises the likelihood alone and "
                "would ignore them; use SVI"
            )
        if self.guide.reuse is None:
            self.guide.reuse = ReuseMessenger()
        posterior = self.guide.posterior(*args, **kwargs)
        skip = self._sites_without_closed_form(structure, posterior, args, kwargs)
        with structure.threads():
            found = self._statistics(structure, posterior, args, kwargs, skip)
        self._params = found.params
        unknown = sorted(self.freeze - found.params.keys())
        if unknown:
            raise OptionError(
                f"freeze={unknown}: the model has no such params; it has {sorted(found.params)}"
            )
        self._check_bindings(found.sites)
        self._sites = {name: site._replace(rows=None) for name, site in found.sites.items()}
        self._rows, self._size = self._rows + len(posterior.index), posterior.size
        self._weighted_rows += int((posterior.row_weight > 0).sum())
        self._weight += float(posterior.row_weight.sum(dtype=torch.float64))
        if self.empty == "reseed":
            self._reservoir.add(posterior, {name: site.rows for name, site in found.sites.items()})
        if skip:
            self._calls.append((posterior, args, kwargs))
        return posterior

    def _statistics(
        self,
        d: ProgramStructure,
        posterior: Posterior,
        args: tuple,
        kwargs: dict[str, Any],
        skip: frozenset[str],
    ) -> StatisticsMessenger:
        """Statistics of one batch, added to those of the batches before it.

        They share what the E-step has computed, without gradients. By gradients, though, arguments
        that are computed from params are told from constants: so the first batch is looked at with
        them, once, without sums. (Stock distributions are matched to params by their gradients in
        every run.)
        """
        given: Any = (d, posterior, args, kwargs)
        if d.by_value:
            return collect_statistics(self.model, *given, skip=skip, before=self._sites)
        if not self._bound:
            found = collect_statistics(self.model, *given, skip=skip, bind_only=True)
            self._params = found.params
            self._check_bindings(found.sites)
            self._bound = True
        assert self.guide.reuse is not None
        with torch.no_grad():
            return collect_statistics(
                self.guide.reuse(self.model), *given, skip=skip, before=self._sites
            )

    def _sites_without_closed_form(
        self, d: ProgramStructure, posterior: Posterior, args, kwargs
    ) -> frozenset[str]:
        """Sites to leave to ``gradient`` (none without it: their error then reaches the user)."""
        if self.gradient is None:
            return frozenset()
        if self._no_closed_form is None:
            self._no_closed_form = frozenset(
                name
                for name in d.observed
                if not self._has_closed_form(name, d, posterior, args, kwargs)
            )
        return self._no_closed_form

    def _has_closed_form(
        self, name: str, d: ProgramStructure, posterior: Posterior, args, kwargs
    ) -> bool:
        others = frozenset(d.observed) - {name}
        try:
            collect_statistics(self.model, d, posterior, args, kwargs, skip=others)
        except ClosedFormError:
            return False
        return True

    def _check_bindings(self, sites: dict[str, SiteStatistics]) -> None:
        owners: dict[str, str] = {}
        for site, found in sites.items():
            for argument, handle in found.params.items():
                if handle.name in owners:
                    raise ClosedFormError(
                        f"param {handle.name!r} is used by {owners[handle.name]} and by {argument!r} of {site!r}: no "
                        "closed form for both at once; use SVI"
                    )
                owners[handle.name] = f"{argument!r} of {site!r}"
        left = [
            name
            for name, handle in self._params.items()
            if name not in owners and name not in self.freeze and handle.leaf.requires_grad
        ]
        if left and self.gradient is None:
            raise ClosedFormError(
                f"params {left} have no closed form: freeze= them, use SVI, or pass gradient= to EM"
            )

    def _blend(self) -> dict[str, SiteStatistics]:
        assert self.step_size is not None
        rate = self.step_size(self.steps)
        if not 0 < rate <= 1:
            raise OptionError(f"step_size({self.steps}) = {rate} is outside (0, 1]")
        grow = self._size / self._rows  # to the whole data set
        for name, site in self._sites.items():
            fresh = scaled(site.family.finish(site.sums), grow)
            known = self._online.get(name)
            mixed = fresh if known is None else blend(known.sums, fresh, rate)
            self._online[name] = site._replace(sums=mixed)
        return dict(self._online)

    def _update(self, sites: dict[str, SiteStatistics]) -> Update:
        """Write the maximisers of all sites into their params."""
        z, m_step = self.guide.site, MStep(self.freeze, self.variance_floor)
        count = sites[z].sums.counts
        least = max(site.family.min_rows for site in sites.values())
        # A row of weight two counts as two; but weights of a small unit (1 / N, say) do not make
        # every component dead.
        rows = count * (
            max(1.0, self._weighted_rows / self._weight) if self._weighted_rows else 1.0
        )
        empty = rows < least
        # Where rows only re-weigh the candidates they have, a new component could win none.
        reseed = self.empty == "reseed" and _can_split_components(self.guide)
        ready = self._pauses.ready(empty.nonzero()[:, 0].tolist(), self.steps)
        splits = (
            choose_splits(self._reservoir, rows, least, ready, self.random_rows) if reseed else []
        )
        self._pauses.record(splits)
        dropped = empty if self.empty == "drop" and bool((count[~empty] > 0).any()) else None
        m_step.update_weights(sites[z], splits, dropped)
        if dropped is not None:
            self.guide.drop_components(dropped)
        for name, site in sites.items():
            if name != z:
                m_step.update_components(site, empty)
                free = m_step.free(site)
                held = site._replace(
                    params={name: h for name, h in site.params.items() if name in free}
                )
                for split in splits:
                    copy_component(name, held, split, self._reservoir)
        for split in splits:
            self.guide.reseed_component(split.component, split.like)
        others = {name: site.sums for name, site in sites.items() if name != z}
        self.guide.record_statistics(others, learned_weights=bool(m_step.free(sites[z])))
        live = int((~empty).sum()) + len(splits)
        return Update(live, len(splits), int(empty.sum()) if self.empty == "drop" else 0)

    def _gradient_step(self) -> None:
        """One step of the gradient optimiser on the expected log density of the sites without a closed form."""
        skip = self._no_closed_form or frozenset()
        owned = {
            handle.name for site in self._sites.values() for handle in site.params.values()
        } - self.freeze
        free = [
            h.leaf
            for name, h in self._params.items()
            if name not in owned | self.freeze and h.leaf.requires_grad
        ]
        if not skip or not free:
            return
        for posterior, args, kwargs in self._calls:
            with pyro.poutine.block():
                propose = lambda *_, posterior=posterior: posterior.candidates  # noqa: E731
                d = self.guide.read(*args, **kwargs)
                messenger = CandidateMessenger(d, propose, index=posterior.index)
                nodes: Any = (
                    pyro.poutine.trace(messenger(self.model)).get_trace(*args, **kwargs).nodes
                )
            weight = posterior.probs * posterior.row_weight
            terms = [site_term(nodes[name], nodes[d.site], d) for name in skip]
            loss = -sum(torch.where(weight > 0, weight * term, 0.0).sum() for term in terms)
            self._refuse_shared(loss, owned)
            loss.backward()  # type: ignore[union-attr]
        self.gradient(free)
        # Those of frozen params too: they must not pile up until somebody trains them.
        pyro.infer.util.zero_grads([handle.leaf for handle in self._params.values()])

    def _refuse_shared(self, loss: Any, owned: set[str]) -> None:
        """A param of both kinds of sites has no update that raises the ELBO, by closed form or gradient alone."""
        leaves = {
            name: h.leaf
            for name, h in self._params.items()
            if name in owned and h.leaf.requires_grad
        }
        slopes = (
            torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
            if leaves
            else ()
        )
        shared = [name for name, slope in zip(leaves, slopes, strict=True) if slope is not None]
        if shared:
            raise ClosedFormError(
                f"params {shared} belong to a closed-form site and to one without a closed form: freeze= them, or use "
                "SVI"
            )


def _can_split_components(guide: PartitionGuide) -> bool:
    """Whether a component that is split off can win rows at the next E-step."""
    if isinstance(guide, SearchingGuide):
        return guide.search
    return not isinstance(guide, LabelledGuide)


def _scaled_loss(posterior: Posterior) -> float:
    return -float(posterior.free_energy()) * posterior.size / len(posterior.index)
