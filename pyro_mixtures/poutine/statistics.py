"""Sufficient statistics as an effect handler: what the closed-form M-step needs of each site."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.data.rows import numbered
from pyro_mixtures.distributions import RestrictedSupport, Selected
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.poutine.joint import CandidateMessenger, own_scale, scaled_like
from pyro_mixtures.poutine.params import ParamHandle, handle_of, leaf_of
from pyro_mixtures.poutine.posterior import Posterior
from pyro_mixtures.poutine.stock import StockParam, stock_family, stock_weights
from pyro_mixtures.poutine.structure import ProgramStructure


class SiteStatistics(NamedTuple):
    """Sums over the rows of one site, its family, and the params behind its arguments."""

    family: Any  # a Components, or the discrete site's ComponentWeights
    sums: Any  # the family's; finish() turns those of all rows into statistics
    params: dict[str, ParamHandle]  # by argument name; arguments without one are constants
    rows: Tensor | None  # the observed rows (B, *event), None at the discrete site


class StatisticsMessenger(Messenger):
    """Collects sufficient statistics, weighted by q(z), at the discrete and the observed sites.

    After a run ``sites`` holds the :class:`SiteStatistics` by site, and ``params`` the handles of
    all params of the program.

    :param structure: structure of the program.
    :param weight: (S, B) responsibilities times row weights, for the candidates of the run.
    :param all_components: stock distributions under z = 0, ..., C - 1, by site: see
        :mod:`pyro_mixtures.poutine.stock`.
    :param skip: sites to leave to a gradient step.
    :param before: statistics of earlier batches of rows under the same parameters; their sums are
        added to in place.
    :param bind_only: whether to find families and params only; ``sums`` are then None.
    :param index: (B,) numbers of the rows, for errors.
    :raises ClosedFormError: at a site without a closed form.
    """

    def __init__(
        self,
        structure: ProgramStructure,
        weight: Tensor,
        all_components: Mapping[str, Any],
        skip: frozenset[str],
        before: Mapping[str, SiteStatistics],
        bind_only: bool = False,
        index: Tensor | None = None,
    ):
        super().__init__()
        self.structure, self.weight, self.all_components = structure, weight, all_components
        self.skip, self.before, self.bind_only = skip, before, bind_only
        self.index = index

    def __enter__(self) -> "StatisticsMessenger":
        self.sites: dict[str, SiteStatistics] = {}
        self.params: dict[str, ParamHandle] = {}
        self._values: dict[str, Tensor] = {}
        self._z: Tensor | None = None
        self._scale: Tensor | float = 1.0
        super().__enter__()
        return self

    def _pyro_post_param(self, msg: Any) -> None:
        self.params[msg["name"]] = handle_of(msg)
        self._values[msg["name"]] = msg["value"]

    def _pyro_post_sample(self, msg: Any) -> None:
        name, structure = msg["name"], self.structure
        if name == structure.site:
            self._z, self._scale = msg["value"], own_scale(msg, structure)
            self.sites[name] = self._discrete(msg)
        elif name in structure.observed and name not in self.skip:
            self.sites[name] = self._observed(msg)

    def _discrete(self, msg: Any) -> SiteStatistics:
        fn, weight, _ = self._unmasked(msg)
        fn = fn.unrestricted if isinstance(fn, RestrictedSupport) else fn
        if isinstance(fn, ComponentWeights):
            family, params = fn, self._bind(msg["name"], fn.arguments)
        else:
            family, stock_params = stock_weights(msg["name"], fn, self._values)
            params = self._handles(stock_params)
        sums = None
        if not self.bind_only:
            with torch.no_grad():
                sums = family.statistics(msg["value"], weight, self._earlier_sums(msg["name"]))
        return SiteStatistics(family, sums, params, None)

    def _observed(self, msg: Any) -> SiteStatistics:
        name, value = msg["name"], msg["value"]
        self._check_plates(msg)
        assert self._z is not None
        fn, weight, mask = self._unmasked(msg)
        weight = scaled_like(weight, own_scale(msg, self.structure), self._scale)
        # Masked rows may hold NaN, so they become padding rather than rows of weight zero.
        z = self._z if mask is None else torch.where(mask, self._z, -1)
        if isinstance(fn, Selected):
            family, params = fn.family, self._bind(name, fn.family.arguments)
        else:
            stock = stock_family(
                name, self.all_components.get(name, fn), self.structure.components, self._values
            )
            params = self._handles(stock.params)
            family, value = stock.family, stock.rows(value)
        sums = None
        if not self.bind_only:
            with torch.no_grad(), numbered(self.index):
                sums = family[z].statistics(value, weight, self._earlier_sums(name))
        return SiteStatistics(family, sums, params, value)

    def _check_plates(self, msg: Any) -> None:
        nested = [
            frame.name
            for frame in msg["cond_indep_stack"]
            if frame.vectorized and frame.name != self.structure.plate
        ]
        if nested:
            raise ClosedFormError(
                f"site {msg['name']!r} lies in nested plates {nested}: no closed form; use SVI"
            )

    def _handles(self, stock_params: Mapping[str, StockParam]) -> dict[str, ParamHandle]:
        """Return handles, by argument, of the params behind a stock distribution."""
        return {
            argument: self.params[param.name]._replace(to_param=param.to_param)
            for argument, param in stock_params.items()
        }

    def _earlier_sums(self, site: str) -> Any:
        return self.before[site].sums if site in self.before else None

    def _unmasked(self, msg: Any) -> tuple[Any, Tensor, Tensor | None]:
        """Return a site's distribution without masks, masked weights (S, [1], B, [1]), the mask.

        The mask is that of ``poutine.mask`` and of ``fn.mask(...)`` together; None without any.
        """
        structure, fn = self.structure, msg["fn"]
        lead = (len(self.weight),) + (1,) * (structure.nesting + structure.dim)
        trail = (self.weight.shape[1],) + (1,) * (-1 - structure.dim)
        weight = self.weight.reshape(lead + trail)
        masks = [] if msg["mask"] is None else [msg["mask"]]
        if isinstance(fn, MaskedDistribution):
            masks.append(fn._mask)
            fn = fn.base_dist
        if not masks:
            return fn, weight, None
        mask = torch.stack(torch.broadcast_tensors(*map(self._as_mask, masks))).all(0)
        return fn, weight * mask, mask

    def _as_mask(self, mask: Tensor | bool) -> Tensor:
        return torch.as_tensor(mask, device=self.weight.device)

    def _bind(self, site: str, arguments: Mapping[str, Tensor]) -> dict[str, ParamHandle]:
        """Find the params behind a family's arguments by identity of the unconstrained tensors."""
        leaves = {id(handle.leaf): handle for handle in self.params.values()}
        bound = {}
        for argument, tensor in arguments.items():
            handle = leaves.get(id(leaf_of(tensor)))
            if handle is not None:
                bound[argument] = handle
            elif tensor.requires_grad:
                raise ClosedFormError(
                    f"argument {argument!r} of site {site!r} is computed from params: declare it "
                    "as one param with a constraint (such as constraint=constraints.positive), use "
                    "SVI, or pass gradient= to EM"
                )
        return bound


def collect_statistics(
    model: Callable[..., Any],
    structure: ProgramStructure,
    posterior: Posterior,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    skip: frozenset[str] = frozenset(),
    before: Mapping[str, SiteStatistics] | None = None,
    bind_only: bool = False,
) -> StatisticsMessenger:
    """Run the model with z set to the posterior's candidates, and collect its statistics.

    :param model: the Pyro program; its run is hidden from the caller's handlers.
    :param structure: its structure.
    :param posterior: responsibilities of the rows.
    :param args: the model's positional arguments.
    :param kwargs: its keyword arguments.
    :param skip: sites to leave to a gradient step.
    :param before: statistics of earlier batches of rows; their sums are added to in place.
    :param bind_only: whether to find families and params only, without sums.
    :returns: the messenger after the run, with ``sites`` and ``params``.
    :raises ClosedFormError: when a site has no closed form.
    """
    weight, candidates = posterior.probs * posterior.row_weight, posterior.candidates
    if posterior.mask is not None:
        # Masked rows may hold NaN, so they become padding rather than rows of weight zero.
        candidates = candidates.expand(weight.shape).masked_fill(~posterior.mask, -1)
        weight = torch.where(posterior.mask, weight, 0.0)
    negligible = posterior.log_prob < _negligible_log_prob(posterior.log_prob.dtype)
    if bool(negligible.any()):
        candidates = candidates.expand(weight.shape).masked_fill(negligible, -1)
    all_components = _stock_sites(model, structure, skip, args, kwargs, posterior.index)
    messenger = StatisticsMessenger(
        structure, weight, all_components, skip, before or {}, bind_only, posterior.index
    )

    def same_candidates(index: Tensor, size: int, device: torch.device) -> Tensor:
        return candidates

    with pyro.poutine.block():
        CandidateMessenger(structure, same_candidates, index=posterior.index)(messenger(model))(
            *args, **kwargs
        )
    return messenger


def _negligible_log_prob(dtype: torch.dtype) -> float:
    """Return the log responsibility below which rounding hides a row's contribution to a sum.

    With many features, most responsibilities are below it.
    """
    return math.log(1e-2 * torch.finfo(dtype).eps)


def _stock_sites(
    model: Callable[..., Any],
    structure: ProgramStructure,
    skip: frozenset[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    index: Tensor,
) -> dict[str, Any]:
    """Return the stock distributions at observed sites, by site.

    All C components lie along their leftmost batch dimension.
    """
    stock = structure.stock - skip
    if not stock:
        return {}

    def all_components(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(structure.components, device=device).unsqueeze(-1)

    with pyro.poutine.block():
        trace = pyro.poutine.trace(
            CandidateMessenger(structure, all_components, index=index)(model)
        ).get_trace(*args, **kwargs)
    return {name: trace.nodes[name]["fn"] for name in stock}
