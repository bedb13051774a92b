"""Fitted mixtures as ArviZ data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyro.infer import MCMC

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Values, read_chains
from pyro_mixtures.diagnostics.arviz_io.datasets import Coords, Dims, to_container
from pyro_mixtures.diagnostics.arviz_io.draws import Scores, predictive_numbers, score
from pyro_mixtures.diagnostics.arviz_io.groups import (
    Labels,
    Source,
    data_groups,
    evidence_group,
    histories,
    merged,
    posterior,
    predictive_group,
    prior_group,
    row_dim,
    sampler_stats,
)
from pyro_mixtures.diagnostics.arviz_io.program import CONTRAST, Program, default_dims, read_program
from pyro_mixtures.diagnostics.arviz_io.relabeling import owned_by_components, permutations
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer import Fit
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.uncertainty.bootstrap import Bootstrap
from pyro_mixtures.options import check_flag


def to_arviz(
    fit: Fit | PartitionGuide | Sequence[Any] | Bootstrap | MCMC,
    *rows: Any,
    draws: int | None = None,
    prior: int | None = None,
    posterior_predictive: int | None = None,
    log_likelihood: bool = True,
    by_site: bool = False,
    observed_data: bool = True,
    align: bool = True,
    truncated: bool = False,
    site: str = "z",
    chunk: int | None = None,
    dims: Dims | None = None,
    coords: Coords | None = None,
) -> Any:
    """Fits of a mixture in ArviZ's container: ``arviz.InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).

    ========================  =====================================================================================
    group                     holds
    ========================  =====================================================================================
    ``posterior``             (chain, draw, ...): draws of the model's other latent sites. Without such sites the
                              model's params: the point estimate, one draw, or the bootstrap's
    ``constant_data``         the params, where ``posterior`` has draws of latent sites; arguments of the program
                              that it does not observe, covariates
    ``log_likelihood``        (chain, draw, row), in nats: each row's log evidence, z summed out, times the row's
                              weight. Named after the observed site; several sites under one z have one evidence, and
                              their names joined by "_", or with ``by_site`` each its own. "evidence" where there is
                              none, but a ``pyro.factor``. Rows of weight zero, and masked ones, are left out
    ``sample_stats``          ``lp`` (chain, draw): the log likelihood of all rows plus the log prior of the draw. Of
                              an MCMC ``diverging`` (chain, draw), ``mean_acceptance_rate`` (chain,), from four draws
                              on; of a bootstrap ``elbo``, ``converged``
    ``posterior_predictive``  (chain, draw, row, ...): new values of the observed sites, a data set a draw
    ``prior``                 (chain=1, draw, ...): the latent sites drawn from the program itself, and in
    ``prior_predictive``      the observed sites, drawn with them
    ``observed_data``         values of the observed sites
    ``fit_history``           (epoch,), or (chain, epoch) for several fits, the shorter ones filled up with NaN or "":
                              the columns of :class:`~pyro_mixtures.infer.History`, ``elbo`` in nats per row
    ========================  =====================================================================================

    Params and latent sites that are passed on as they are to our component families and to the
    mixture's weights have the dims "component", "feature", "factor_index" and "label", and
    "contrast" (1, ..., C - 1) where they are differences from the first component; dimensions of
    plates have the plates' names; others ArviZ's default names. With several observed sites under
    one z "feature", "factor_index" and "label" are "x_feature" and so on. Rows have the dim "row".

    :param fit: where draws come from.

        - The outcome of :func:`~pyro_mixtures.infer.em.fit`, or a guide of
          :mod:`pyro_mixtures.guides`, which knows its model: one chain, of the draws of the guide
          ``global_guide`` or of one point. ``FullPartition(model, components=C,
          global_guide=autoguide)`` makes a guide for a fit by other means. A guide alone may be one
          that nothing was fitted with: it shows the params as they are.
        - A list of these, restarts for example: as many chains. Modules hold their params. Those of
          functions live in Pyro's store, by name, so fits of a function are given as (fit, state),
          with the state of the ``pyro.get_param_store().scope()`` each was made in; so is one that
          was made in such a scope.
        - A :class:`~pyro_mixtures.infer.uncertainty.bootstrap.Bootstrap`: its refits as draws.
        - A Pyro ``MCMC`` that has run, its model before the rows: ``to_arviz(mcmc, model, x)``.
    :param rows: the model's tensor arguments, N rows each. They need not be those of the fit.
    :param draws: number of draws from ``global_guide``, 100 by default; of an MCMC's, evenly
        spread, all by default. Random numbers here are Pyro's.
    :param prior: number of draws from the prior, by default none.
    :param posterior_predictive: number of new data sets a chain, from draws evenly spread, or as
        many of the one point; by default none. Memory is that of so many data sets.
    :param by_site: for several observed sites the evidence of each by itself, z summed out anew, in
        place of their joint one.
    :param align: give the labels of several fits, of a bootstrap's refits and of an MCMC's draws a
        common order: that of the draw of the largest ``lp`` (of the fit that was bootstrapped), by
        the rows' responsibilities (:func:`~pyro_mixtures.diagnostics.alignment.align`). Restarts
        have one order a chain. Relabelled are variables with a dimension "component", differences
        from a reference ("contrast"), which becomes another component, and variables numbered from
        0 to C - 1 (``experts.0.weight``); dimensions that nobody has named are tried. The model
        tells whether that is all. The other groups do not depend on labels.
    :param truncated: sum over the candidates that the guide finds for each row, not over all C
        components: a lower bound, cheaper when C is large. Memory for the log likelihood is draws x
        N numbers in either case.
    :param site: the discrete site of an MCMC's model; guides know theirs.
    :param chunk: rows evaluated at once.
    :param dims: names of dimensions by variable, without chain and draw; they replace the names
        above.
    :param coords: labels by dimension; the default is 0, 1, ...
    :raises OptionError: for impossible draws, dims or coords, or priors of a model without them.
    :raises ModelError: when a site besides z has no value, or is latent in every row; when fits
        share params, or a fit's have left Pyro's store; when labels are to be aligned, but no
        relabelling leaves the model as it is, because components have constants, penalties or
        priors of their own: ``align=False`` leaves the labels.

    A point estimate has no spread: ``az.summary`` gives NaN for it, with a RuntimeWarning, and
    ``az.loo`` needs draws. ``az.loo`` takes the draws for draws from the posterior. Those of a
    variational guide are approximate, mostly too narrow, and so is what it says: see Magnusson,
    Andersen, Jonasson & Vehtari, "Bayesian leave-one-out cross-validation for large data", ICML
    2019. Neither are a bootstrap's or restarts.

    A row of weight w stands for w rows. Its pointwise value is the log density of them all, so
    values add up to the log likelihood of the fit, and ``az.loo`` leaves all w out at once, which
    asks more of the draws than leaving out one. For the rows one by one divide by the weights
    (``constant_data`` has them, of programs that take them), and weigh what comes out. (Pyro's own
    MCMC takes ``poutine.scale`` of a site z for w rows that share their component: its potential is
    another than minus ``lp`` where components overlap.)

    Its warning of a Pareto k above 0.7 (Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed
    importance sampling", JMLR 25, 2024) says that for some rows the draws, weighted by 1 / p(row),
    are too few of the right ones: the posterior without the row is another. In mixtures it is most
    often a row that holds a component up nearly alone, whose parameters would go back to their
    prior without it; more draws do not help. The rows are those with a large ``pareto_k`` in
    ``az.loo(..., pointwise=True)``: leave each out, fit again, and take the evidence of the row
    under that fit for its term; or ask whether the component should be there. Draws too narrow, as
    above, also raise k.

    >>> import torch
    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> guide = FullPartition(GaussianMixture(components=3, features=2), components=3)
    >>> data = to_arviz(guide, torch.randn(5, 2), posterior_predictive=4)
    >>> dict(data.posterior["loc"].sizes)
    {'chain': 1, 'draw': 1, 'component': 3, 'feature': 2}
    >>> dict(data.log_likelihood["x"].sizes)
    {'chain': 1, 'draw': 1, 'row': 5}
    >>> dict(data.posterior_predictive["x"].sizes)
    {'chain': 1, 'draw': 4, 'row': 5, 'feature': 2}
    """
    check_flag(log_likelihood=log_likelihood, by_site=by_site, observed_data=observed_data)
    check_flag(align=align, truncated=truncated)
    for option, given in (("dims", dims), ("coords", coords)):
        if given is not None and not isinstance(given, Mapping):
            raise OptionError(f"{option}={given!r} must be a mapping, {{name: [...]}}")
    chains = read_chains(fit, rows, draws=draws, site=site)
    source = _source(chains, dims or {})
    options: Any = {"truncated": truncated, "chunk": chunk}
    aligns = align and chains.labels is not None
    scores = (
        score(chains, source.program.observed, by_site=by_site, **options)
        if log_likelihood or aligns
        else None
    )
    labels = _labels(source, scores, **options) if aligns and scores is not None else None
    coords = _with_contrasts(source, coords or {})
    return to_container(
        merged(
            posterior(source, labels),
            evidence_group(source, scores) if log_likelihood and scores is not None else {},
            {"sample_stats": sampler_stats(chains)},
            {} if posterior_predictive is None else predictive_group(source, posterior_predictive),
            {} if prior is None else prior_group(source, prior),
            data_groups(source) if observed_data else {},
            {"fit_history": histories(chains.histories)},
        ),
        coords=coords,
        own=_numbers(chains, posterior_predictive, coords),
        parts={}
        if scores is None or scores.counted.all()
        else {"log_likelihood": {row_dim(source): scores.counted}},
    )


def _source(chains: Chains, dims: Dims) -> Source:
    first = chains.all[0]
    program = read_program(first.model, chains.structure, chains.rows, first.given)
    return Source(chains, program, _checked_dims(program, first.given, dims))


def _checked_dims(program: Program, given: Values, chosen: Dims) -> dict[str, tuple[str, ...]]:
    """Dims of every variable but for chain and draw: the user's, else what the program tells, else ArviZ's default."""
    variables = {**program.params, **given, **program.observed}
    unknown = sorted(set(chosen) - set(variables))
    if unknown:
        raise OptionError(f"dims= names {unknown}, but the variables are {sorted(variables)}")
    for name, names in chosen.items():
        if (
            isinstance(names, str)
            or not isinstance(names, Sequence)
            or not all(isinstance(n, str) for n in names)
        ):
            raise OptionError(
                f"dims= has {names!r} for {name!r}: give a list of names, one for each dimension"
            )
        if len(names) != variables[name].dim():
            raise OptionError(
                f"dims= has {tuple(names)} for {name!r}, whose shape is {tuple(variables[name].shape)}: give one name "
                "for each dimension besides chain and draw"
            )
    known = {
        name: default_dims(name, value.shape) for name, value in variables.items()
    } | program.dims
    return known | {name: tuple(names) for name, names in chosen.items()}


def _labels(source: Source, scores: Scores, *, truncated: bool, chunk: int | None) -> Labels:
    chains = source.chains
    reference = chains.reference if chains.reference is not None else scores.best(chains)
    owned = owned_by_components(chains, source.program, reference, source.dims)
    return Labels(permutations(chains, reference, truncated=truncated, chunk=chunk), owned)


def _with_contrasts(source: Source, coords: Coords) -> Coords:
    """Differences from a first component have the numbers of the others."""
    components = source.chains.structure.components
    shapes = {**source.program.params, **source.chains.all[0].given}
    sizes = {
        size
        for name, value in shapes.items()
        for dim, size in zip(source.dims[name], value.shape, strict=True)
        if dim == CONTRAST
    }
    return {CONTRAST: np.arange(1, components), **coords} if sizes == {components - 1} else coords


def _numbers(chains: Chains, predictives: int | None, coords: Coords) -> dict[str, Coords]:
    """The numbers of a chain's draws, where some were left out; a point estimate's new data sets are counted anew."""
    kept = np.arange(chains.shape[1]) if chains.numbers is None else chains.numbers
    kept = np.asarray(coords.get("draw", kept))
    own = {name: {"draw": kept} for name in ("posterior", "log_likelihood", "sample_stats")}
    if predictives is not None and chains.shape[1] > 1:
        own["posterior_predictive"] = {"draw": kept[predictive_numbers(chains, predictives)]}
    return {**own} if len(kept) == chains.shape[1] else {}
