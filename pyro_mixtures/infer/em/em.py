"""Expectation maximization over a Pyro program, with the interface of ``pyro.infer.SVI``."""

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_arguments
from pyro_mixtures.distributions.statistics import blend, scaled
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.infer.em.gradient_step import Call, gradient_step, sites_without_closed_form
from pyro_mixtures.infer.em.m_step import MStep
from pyro_mixtures.infer.em.reseed import Pauses, Reservoir, Split, choose_splits, copy_component
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.infer.searching_guide import SearchingGuide
from pyro_mixtures.options import check_number, check_whole
from pyro_mixtures.poutine import (
    Posterior,
    ProgramStructure,
    ReuseMessenger,
    StatisticsMessenger,
    collect_statistics,
)
from pyro_mixtures.poutine.params import ParamHandle
from pyro_mixtures.poutine.statistics import SiteStatistics

EMPTY = ("reseed", "drop", "keep")


class Update(NamedTuple):
    """What one M-step did."""

    live: int  # components with enough rows for their parameters
    reseeded: int  # empty components that were re-seeded
    dropped: int  # empty components whose weight was set to zero


class EM:
    """Maximize the (truncated) ELBO of a program by closed-form steps.

    The interface is that of ``pyro.infer.SVI``. EM works on any program whose weights and observed
    sites have a closed form: the families of :mod:`pyro_mixtures.distributions` selected by
    ``[z]``, or stock Normal, MultivariateNormal, LowRankMultivariateNormal, Categorical,
    OneHotCategorical, Multinomial, Bernoulli, Poisson, Exponential and Gamma (of known
    concentration) with arguments indexed by z. Arguments that are not params stay fixed.

    :param model: the Pyro program; its unknowns are params (``pyro.param``, ``PyroParam``).
    :param guide: a guide of z for the same program, such as ``TruncatedPartition`` or
        ``FullPartition``.
    :param step_size: None for exact steps. A function of the step number t = 1, 2, ... with values
        in (0, 1] makes :meth:`step` stepwise (online) EM on minibatches: statistics are
        ``(1 - s) old + s new``. Cappe & Moulines, "On-line expectation-maximization algorithm for
        latent data models", JRSS B 71 (2009), with s = t^-a, a in (1/2, 1].
    :param variance_floor: smallest variance, as a fraction of each feature's variance over the
        data.
    :param empty: what to do with empty components, which have too few rows for their parameters.
        ``"reseed"`` splits a large component. This can lower the ELBO by up to log 2 per row of the
        split component, and by what the few rows of the empty component lose. ``"drop"`` sets
        the weight to zero permanently. ``"keep"`` leaves the parameters unchanged and updates the
        weight.
    :param freeze: names of params to hold fixed.
    :param gradient: a Pyro optimizer for sites without a closed form: generalized EM.
    :param gradient_steps: steps of that optimizer in each M-step, all with the same q(z).
    :raises ModelError: when ``guide`` is not a guide of ``model``.
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

    # Chooses the rows at which empty components are re-seeded; None takes the first ones. Set when
    # a mixture grows.
    random_rows: torch.Generator | None = None

    def __init__(
        self,
        model: Callable[..., Any],
        guide: PartitionGuide,
        *,
        step_size: Callable[[int], float] | None = None,
        variance_floor: float = 1e-6,
        empty: str = "reseed",
        freeze: Iterable[str] = (),
        gradient: Any = None,
        gradient_steps: int = 1,
    ):
        _check_guide(model, guide)
        if empty not in EMPTY:
            raise OptionError(f"unknown empty={empty!r}; choose one of {EMPTY}")
        if step_size is not None and not callable(step_size):
            raise OptionError(
                f"step_size={step_size!r} must be a function of the step number, for example "
                "lambda t: t**-0.6"
            )
        check_number(variance_floor=variance_floor)
        _check_gradient(gradient, gradient_steps)
        self.model, self.guide = model, guide
        self.step_size = step_size
        self.variance_floor = variance_floor
        self.empty = empty
        self.freeze = _names(freeze)
        self.gradient, self.gradient_steps = gradient, gradient_steps
        self.steps = 0
        self.last_update: Update | None = None
        self._sites: dict[str, SiteStatistics] = {}  # accumulated since the last update
        self._online: dict[str, SiteStatistics] = {}  # of stepwise EM, over all steps
        self._params: dict[str, ParamHandle] = {}  # of the program, by name
        self._reservoir, self._pauses = Reservoir(), Pauses()
        self._bound = False  # whether the params behind the arguments were found and checked
        self._gradient_sites: frozenset[str] | None = None  # sites without a closed form
        self._calls: list[Call] = []  # for gradient steps, since the last update
        self._rows = self._size = self._weighted_rows = 0
        self._weight = 0.0

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Run one EM step on the rows in ``args``.

        :returns: the loss before the step, ``-ELBO`` scaled to the data set.
        """
        try:
            posterior = self._collect(args, kwargs)
            self.maximize()
        except BaseException:
            self.forget()
            raise
        return _scaled_loss(posterior)

    def accumulate(self, *args: Any, **kwargs: Any) -> float:
        """Run the E-step and add up the statistics of one minibatch, without an update.

        After all minibatches of a data set, :meth:`maximize` makes the same step as one
        :meth:`step` on all rows.

        :returns: the minibatch's share of the loss, not scaled to the data set.
        """
        return -float(self._collect(args, kwargs).free_energy())

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """Return ``-ELBO`` scaled to the data set.

        Parameters and the guide's state do not change.
        """
        args, kwargs = as_arguments(args, kwargs)
        training = self.guide.training
        self.guide.eval()
        try:
            return _scaled_loss(self.guide.posterior(*args, **kwargs))
        finally:
            self.guide.train(training)

    def forget(self) -> None:
        """Discard the statistics accumulated since the last update."""
        self._sites, self._calls, self._reservoir = {}, [], Reservoir()
        self._rows = self._weighted_rows = 0
        self._weight = 0.0
        self.guide.reuse = None

    def maximize(self) -> Update:
        """Run the M-step: set the params to the maximizers of the accumulated statistics.

        :returns: what the step did with empty components.
        :raises OptionError: when nothing was accumulated.
        :raises DataError: when all rows have weight zero.
        """
        if not self._sites:
            raise OptionError("nothing accumulated: call accumulate() or step() with data first")
        # A later minibatch of stepwise EM may consist of rows of weight zero.
        if not self._weighted_rows and not self._online:
            raise DataError(
                f"all {self._rows} rows have weight zero, or are masked: check the row weights"
            )
        self.steps += 1
        sites = self._sites if self.step_size is None else self._blend()
        with torch.no_grad(), self.guide.read().threads():
            update = self._update(sites)
        if self.gradient is not None:
            self._take_gradient_steps()
        self.forget()
        self.last_update = update
        return update

    # E-step and statistics.

    def _collect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Posterior:
        args, kwargs = as_arguments(args, kwargs)
        structure = self.guide.read(*args, **kwargs)
        _check_structure(structure)
        if self.guide.reuse is None:
            self.guide.reuse = ReuseMessenger()
        call = Call(self.guide.posterior(*args, **kwargs), args, kwargs)
        skip = self._sites_to_skip(structure, call)
        with structure.threads():
            collected = self._statistics(structure, call, skip)
        self._params = collected.params
        unknown = sorted(self.freeze - collected.params.keys())
        if unknown:
            raise OptionError(
                f"freeze={unknown}: the model has no such params; it has {sorted(collected.params)}"
            )
        self._check_bindings(collected.sites)
        self._sites = {name: site._replace(rows=None) for name, site in collected.sites.items()}
        self._count(call.posterior)
        if self.empty == "reseed":
            observed = {name: site.rows for name, site in collected.sites.items()}
            self._reservoir.add(call.posterior, observed)
        if skip:
            self._calls.append(call)
        return call.posterior

    def _count(self, posterior: Posterior) -> None:
        row_weight = posterior.row_weight
        self._rows += len(posterior.index)
        self._size = posterior.size
        self._weighted_rows += int((row_weight > 0).sum())
        self._weight += float(row_weight.sum(dtype=torch.float64))

    def _sites_to_skip(self, structure: ProgramStructure, call: Call) -> frozenset[str]:
        """Return the sites to leave to gradient steps.

        Without an optimizer there are none: the error of a site without a closed form then reaches
        the user.
        """
        if self.gradient is None:
            return frozenset()
        if self._gradient_sites is None:
            self._gradient_sites = sites_without_closed_form(self.model, structure, call)
        return self._gradient_sites

    def _statistics(
        self, structure: ProgramStructure, call: Call, skip: frozenset[str]
    ) -> StatisticsMessenger:
        """Return the statistics of one batch, added to those of the batches before it.

        This run shares what the E-step has computed, without gradients. But gradients tell computed
        arguments from constants: the first batch is therefore run once with gradients and without
        sums. Stock distributions are matched to params by their gradients in every run.
        """
        arguments: Any = (structure, *call)
        if structure.by_value:
            return collect_statistics(self.model, *arguments, skip=skip, before=self._sites)
        if not self._bound:
            bound = collect_statistics(self.model, *arguments, skip=skip, bind_only=True)
            self._params = bound.params
            self._check_bindings(bound.sites)
            self._bound = True
        assert self.guide.reuse is not None
        model = self.guide.reuse(self.model)
        with torch.no_grad():
            return collect_statistics(model, *arguments, skip=skip, before=self._sites)

    def _check_bindings(self, sites: Mapping[str, SiteStatistics]) -> None:
        """Refuse params that set two arguments, or that no step updates."""
        owners: dict[str, str] = {}
        for site, statistics in sites.items():
            for argument, handle in statistics.params.items():
                if handle.name in owners:
                    raise ClosedFormError(
                        f"param {handle.name!r} is used by {owners[handle.name]} and by "
                        f"{argument!r} of {site!r}: no closed form for both at once; use SVI"
                    )
                owners[handle.name] = f"{argument!r} of {site!r}"
        if self.gradient is not None:
            return
        without_step = [
            name
            for name, handle in self._params.items()
            if name not in owners and name not in self.freeze and handle.leaf.requires_grad
        ]
        if without_step:
            raise ClosedFormError(
                f"params {without_step} have no closed form: freeze= them, use SVI, or pass "
                "gradient= to EM"
            )

    # M-step.

    def _blend(self) -> dict[str, SiteStatistics]:
        """Return the statistics of stepwise EM, with those of the last minibatch."""
        assert self.step_size is not None
        rate = self.step_size(self.steps)
        if not isinstance(rate, Real | Tensor) or not 0 < rate <= 1:
            raise OptionError(f"step_size({self.steps}) = {rate} is outside (0, 1]")
        whole_data_set = self._size / self._rows
        for name, site in self._sites.items():
            new = scaled(site.family.finish(site.sums), whole_data_set)
            previous = self._online.get(name)
            sums = new if previous is None else blend(previous.sums, new, rate)
            self._online[name] = site._replace(sums=sums)
        return dict(self._online)

    def _update(self, sites: Mapping[str, SiteStatistics]) -> Update:
        """Write the maximizers of all sites into their params."""
        z, m_step = self.guide.site, MStep(self.freeze, self.variance_floor)
        counts = sites[z].sums.counts
        min_rows = max(site.family.min_rows for site in sites.values())
        rows = counts * self._rows_per_weight()
        empty = rows < min_rows
        splits = self._choose_splits(rows, min_rows, empty)
        dropped = empty if self.empty == "drop" and bool((counts[~empty] > 0).any()) else None
        m_step.update_weights(sites[z], splits, dropped)
        if dropped is not None:
            self.guide.drop_components(dropped)
        observed = {name: site for name, site in sites.items() if name != z}
        for name, site in observed.items():
            m_step.update_components(site, empty)
            self._split_components(name, site, m_step.free(site), splits)
        for split in splits:
            self.guide.reseed_component(split.component, split.like)
        statistics = {name: site.sums for name, site in observed.items()}
        learned_weights = bool(m_step.free(sites[z]))
        self.guide.record_statistics(statistics, learned_weights=learned_weights)
        number_empty = int(empty.sum())
        return Update(
            live=len(empty) - number_empty + len(splits),
            reseeded=len(splits),
            dropped=number_empty if self.empty == "drop" else 0,
        )

    def _rows_per_weight(self) -> float:
        """Return the factor from weighted counts to rows.

        A row of weight two counts as two rows. Weights of a small unit, such as 1 / N, must not
        make every component empty.
        """
        return max(1.0, self._weighted_rows / self._weight) if self._weighted_rows else 1.0

    def _choose_splits(self, rows: Tensor, min_rows: int, empty: Tensor) -> list[Split]:
        """Choose components to split, so that empty components are re-seeded."""
        ready = self._pauses.ready(empty.nonzero()[:, 0].tolist(), self.steps)
        if self.empty != "reseed" or not _new_components_win_rows(self.guide):
            return []
        splits = choose_splits(self._reservoir, rows, min_rows, ready, self.random_rows)
        self._pauses.record(splits)
        return splits

    def _split_components(
        self, name: str, site: SiteStatistics, free: frozenset[str], splits: list[Split]
    ) -> None:
        updated = {argument: h for argument, h in site.params.items() if argument in free}
        for split in splits:
            copy_component(name, site._replace(params=updated), split, self._reservoir)

    def _take_gradient_steps(self) -> None:
        closed_form = {
            handle.name for site in self._sites.values() for handle in site.params.values()
        }
        for _ in range(self.gradient_steps):
            gradient_step(
                self.model,
                self.guide.read(),
                self.gradient,
                self._calls,
                sites=self._gradient_sites or frozenset(),
                params=self._params,
                closed_form=closed_form,
                freeze=self.freeze,
            )


def _check_guide(model: Callable[..., Any], guide: Any) -> None:
    if not isinstance(guide, PartitionGuide):
        raise ModelError(
            f"guide={guide!r} has no E-step: pass a guide of pyro_mixtures.guides for this model"
        )
    if guide.model is not model:
        raise ModelError(
            "this guide was made for another model: build guide and EM from the same program"
        )


def _check_gradient(gradient: Any, gradient_steps: int) -> None:
    if gradient is not None and not callable(gradient):
        raise OptionError(
            f"gradient={gradient!r} must be a Pyro optimizer, for example "
            "pyro.optim.Adam({'lr': 0.01})"
        )
    check_whole(gradient_steps=gradient_steps)
    if gradient is None and gradient_steps > 1:
        raise OptionError(f"gradient_steps={gradient_steps} without an optimizer: pass gradient=")


def _names(freeze: Any) -> frozenset[str]:
    if isinstance(freeze, str):
        raise OptionError(f"freeze={freeze!r} must list names of params: pass freeze=[{freeze!r}]")
    names = list(freeze) if isinstance(freeze, Iterable) else [freeze]
    if not isinstance(freeze, Iterable) or not all(isinstance(name, str) for name in names):
        raise OptionError(f"freeze={freeze!r} must list names of params, as freeze=['loc']")
    return frozenset(names)


def _check_structure(structure: ProgramStructure) -> None:
    if structure.latent:
        raise ClosedFormError(
            f"EM maximizes over params, but sites {list(structure.latent)} are latent: use SVI, "
            "with global_guide= in the guide"
        )
    if structure.outside:
        raise ClosedFormError(
            f"sites {list(structure.outside)} lie outside the data plate: EM maximizes the "
            "likelihood only and would ignore them; use SVI"
        )


def _new_components_win_rows(guide: PartitionGuide) -> bool:
    """Whether a component that is split off can win rows at the next E-step.

    It wins none where rows keep their labels, or where E-steps only update responsibilities.
    """
    if isinstance(guide, SearchingGuide):
        return guide.search
    return not isinstance(guide, LabeledGuide)


def _scaled_loss(posterior: Posterior) -> float:
    return -float(posterior.free_energy()) * posterior.size / len(posterior.index)
