"""The closed-form M-step as an effect: sites give their sufficient statistics, and take back their maximisers."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import RestrictedSupport, Selected
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.poutine.joint import CandidateMessenger, own_scale, scaled_like
from pyro_mixtures.poutine.params import ParamHandle, handle_of, leaf_of
from pyro_mixtures.poutine.posterior import Posterior
from pyro_mixtures.poutine.stock import StockParam, stock_family, stock_weights
from pyro_mixtures.poutine.structure import ProgramStructure


class SiteStatistics(NamedTuple):
    """Sums of one site, the family that made them, and the params behind its arguments."""

    family: Any  # a Components, or the discrete site's ComponentWeights
    sums: Any  # the family's, to be finished once all rows are in
    params: dict[str, ParamHandle]  # by argument name; arguments without one are constants
    rows: Tensor | None  # the observed rows (B, *event), None at the discrete site


class StatisticsMessenger(Messenger):
    """Collects, at the discrete site and every observed site under it, sufficient statistics weighted by q(z).

    :param weight: (S, B) responsibilities times row weights, S and B as the model's z has them.
    :param all_components: stock distributions under z = 0, ..., C - 1, by site: see
        :mod:`pyro_mixtures.poutine.stock`.
    :param skip: sites to leave to a gradient step.
    :param bind_only: find the families and their params, add nothing up (``sums`` are None).
    :param before: what earlier batches of rows gave under the same parameters; overwritten with the
        new sums.

    After the run ``sites`` holds a :class:`SiteStatistics` by name and ``params`` all params of the
    program. A site without a closed form raises :class:`ClosedFormError`.
    """

    def __init__(
        self,
        structure: ProgramStructure,
        weight: Tensor,
        all_components: Mapping[str, Any],
        skip: frozenset[str],
        before: Mapping[str, SiteStatistics],
        bind_only: bool = False,
    ):
        super().__init__()
        self.before, self.bind_only = before, bind_only
        self.structure, self.weight, self.all_components, self.skip = (
            structure,
            weight,
            all_components,
            skip,
        )

    def __enter__(self):
        self.sites: dict[str, SiteStatistics] = {}
        self.params: dict[str, ParamHandle] = {}
        self._values: dict[str, Tensor] = {}
        self._z: Tensor | None = None
        self._scale: Tensor | float = 1.0
        return super().__enter__()

    def _pyro_post_param(self, msg) -> None:
        self.params[msg["name"]] = handle_of(msg)
        self._values[msg["name"]] = msg["value"]

    def _pyro_post_sample(self, msg) -> None:
        name, d = msg["name"], self.structure
        if name == d.site:
            self._z, self._scale = msg["value"], own_scale(msg, d)
            self.sites[name] = self._discrete(msg)
        elif name in d.observed and name not in self.skip:
            self.sites[name] = self._observed(msg)

    def _discrete(self, msg) -> SiteStatistics:
        fn, weight = self._unmasked(msg)
        fn = fn.unrestricted if isinstance(fn, RestrictedSupport) else fn
        if isinstance(fn, ComponentWeights):
            family, params = fn, self._bind(msg["name"], fn.arguments)
        else:
            family, stock_params = stock_weights(msg["name"], fn, self._values)
            params = self._handles(stock_params)
        with torch.no_grad():
            sums = (
                None
                if self.bind_only
                else family.statistics(msg["value"], weight, self._sums(msg["name"]))
            )
        return SiteStatistics(family, sums, params, None)

    def _observed(self, msg) -> SiteStatistics:
        name, value = msg["name"], msg["value"]
        nested = [
            f.name
            for f in msg["cond_indep_stack"]
            if f.vectorized and f.name != self.structure.plate
        ]
        if nested:
            raise ClosedFormError(
                f"site {name!r} lies in nested plates {nested}: no closed form; use SVI"
            )
        assert self._z is not None
        fn, weight = self._unmasked(msg)
        weight = scaled_like(weight, own_scale(msg, self.structure), self._scale)
        # Masked rows may hold anything, NaN included: they become padding rather than rows of
        # weight zero.
        z = (
            self._z
            if msg["mask"] is None
            else torch.where(torch.as_tensor(msg["mask"], device=self._z.device), self._z, -1)
        )
        if isinstance(fn, Selected):
            family, params = fn.family, self._bind(name, fn.family.arguments)
        else:
            stock = stock_family(
                name, self.all_components.get(name, fn), self.structure.components, self._values
            )
            params = self._handles(stock.params)
            family, value = stock.family, stock.rows(value)
        with torch.no_grad():
            sums = None if self.bind_only else family[z].statistics(value, weight, self._sums(name))
        return SiteStatistics(family, sums, params, value)

    def _handles(self, stock_params: Mapping[str, StockParam]) -> dict[str, ParamHandle]:
        return {
            argument: self.params[param.name]._replace(to_param=param.to_param)
            for argument, param in stock_params.items()
        }

    def _sums(self, site: str) -> Any:
        return self.before[site].sums if site in self.before else None

    def _unmasked(self, msg) -> tuple[Any, Tensor]:
        """The site's distribution without masks, and the weights (S, [1], B, [1]) with them."""
        d, fn = self.structure, msg["fn"]
        lead = (len(self.weight),) + (1,) * (d.nesting + d.dim)
        weight = self.weight.reshape(lead + (self.weight.shape[1],) + (1,) * (-1 - d.dim))
        if isinstance(fn, MaskedDistribution):
            weight, fn = weight * fn._mask, fn.base_dist
        return fn, weight if msg["mask"] is None else weight * msg["mask"]

    def _bind(self, site: str, arguments: Mapping[str, Tensor]) -> dict[str, ParamHandle]:
        leaves = {id(handle.leaf): handle for handle in self.params.values()}
        bound = {}
        for argument, tensor in arguments.items():
            handle = leaves.get(id(leaf_of(tensor)))
            if handle is not None:
                bound[argument] = handle
            elif tensor.requires_grad:
                raise ClosedFormError(
                    f"argument {argument!r} of site {site!r} is computed from params: declare it as one param with a "
                    "constraint (constraint=constraints.positive, say), use SVI, or pass gradient= to EM"
                )
        return bound


def collect_statistics(
    model: Callable,
    structure: ProgramStructure,
    posterior: Posterior,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    skip: frozenset[str] = frozenset(),
    before: Mapping[str, SiteStatistics] | None = None,
    bind_only: bool = False,
) -> StatisticsMessenger:
    """Run the model with z := the posterior's candidates and return the messenger that collected the statistics.

    ``before`` holds the sites of earlier batches of rows, whose sums are added to in place.
    """
    weight, candidates = posterior.probs * posterior.row_weight, posterior.candidates
    if posterior.mask is not None:
        # Masked rows may hold anything, NaN included: they become padding rather than rows of
        # weight zero.
        candidates = candidates.expand(weight.shape).masked_fill(~posterior.mask, -1)
        weight = torch.where(posterior.mask, weight, 0.0)
    lost = posterior.log_prob < _lost_in_rounding(posterior.log_prob.dtype)
    if bool(lost.any()):
        candidates = candidates.expand(weight.shape).masked_fill(lost, -1)
    all_components = _stock_sites(model, structure, skip, args, kwargs, posterior.index)
    messenger = StatisticsMessenger(
        structure, weight, all_components, skip, before or {}, bind_only
    )

    def same(index: Tensor, size: int, device: torch.device) -> Tensor:
        return candidates

    with pyro.poutine.block():
        CandidateMessenger(structure, same, index=posterior.index)(messenger(model))(
            *args, **kwargs
        )
    return messenger


def _lost_in_rounding(dtype: torch.dtype) -> float:
    """Log of the responsibilities that add nothing to a sum over rows: most of them, where features are many."""
    return math.log(1e-2 * torch.finfo(dtype).eps)


def _stock_sites(
    model: Callable,
    d: ProgramStructure,
    skip: frozenset[str],
    args: tuple,
    kwargs: Mapping[str, Any],
    index: Tensor,
) -> dict[str, Any]:
    """Stock distributions at observed sites, with all C components along their leftmost batch dimension."""
    stock = d.stock - skip
    if not stock:
        return {}

    def all_components(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(d.components, device=device).unsqueeze(-1)

    with pyro.poutine.block():
        trace = pyro.poutine.trace(
            CandidateMessenger(d, all_components, index=index)(model)
        ).get_trace(*args, **kwargs)
    return {name: trace.nodes[name]["fn"] for name in stock}
