"""The public conversion of fitted mixtures to ArviZ data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyro.infer import MCMC

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, LatentValues
from pyro_mixtures.diagnostics.arviz_io.container import Coords, Dims, to_container
from pyro_mixtures.diagnostics.arviz_io.dimensions import CONTRAST, default_dims
from pyro_mixtures.diagnostics.arviz_io.groups import (
    data_groups,
    history_group,
    log_likelihood_group,
    merge_groups,
    predictive_group,
    prior_group,
    row_dim,
    sampler_stats,
)
from pyro_mixtures.diagnostics.arviz_io.log_likelihood import LogLikelihood, compute_log_likelihood
from pyro_mixtures.diagnostics.arviz_io.posterior import Relabeling, Source, posterior_groups
from pyro_mixtures.diagnostics.arviz_io.predictive import predictive_numbers
from pyro_mixtures.diagnostics.arviz_io.program import Program, read_program
from pyro_mixtures.diagnostics.arviz_io.relabeling import align_draws, find_component_variables
from pyro_mixtures.diagnostics.arviz_io.sources import read_chains
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer import Fit, StoredFit
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.uncertainty.bootstrap import Bootstrap
from pyro_mixtures.options import check_flag


def to_arviz(
    fit: Fit | StoredFit | PartitionGuide | Sequence[Any] | Bootstrap | MCMC,
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
    """Convert fits of a mixture to ``arviz.InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).

    ========================  =================================================================
    group                     contents
    ========================  =================================================================
    ``posterior``             (chain, draw, ...): draws of the model's latent sites other than
                              z. Without such sites the model's params: the point estimate, one
                              draw, or those of the bootstrap refits
    ``constant_data``         the params, if ``posterior`` has draws of latent sites; arguments
                              of the program that it does not observe, such as covariates
    ``log_likelihood``        (chain, draw, row), in nats: the log evidence of each row, z
                              summed out, times its weight. It is named after the observed
                              site. Several sites under one z have one log evidence, and their
                              names joined by "_"; with ``by_site`` each site has its own. The
                              name is "log_evidence" if there is only a ``pyro.factor``. Masked
                              rows and rows of weight zero are left out
    ``sample_stats``          ``lp`` (chain, draw): the log likelihood of all rows plus the log
                              prior of the draw. For an MCMC also ``diverging`` (chain, draw)
                              and ``mean_acceptance_rate`` (chain,), from four draws on; for a
                              bootstrap ``elbo`` and ``converged``
    ``posterior_predictive``  (chain, draw, row, ...): new values of the observed sites, one
                              data set per draw
    ``prior``                 (chain=1, draw, ...): the latent sites drawn from the program
    ``prior_predictive``      the observed sites drawn with them
    ``observed_data``         values of the observed sites
    ``fit_history``           (epoch,), or (chain, epoch) for several fits, the shorter ones
                              padded with NaN or "": the columns of
                              :class:`~pyro_mixtures.infer.History`, ``elbo`` in nats per row
    ========================  =================================================================

    Params and latent sites that are passed unchanged to our component families and to the mixture
    weights have the dims "component", "feature", "factor_index" and "label", and "contrast"
    (1, ..., C - 1) if they are differences from the first component. Dimensions of plates have the
    names of the plates. Other dimensions have ArviZ's default names. With several observed sites
    under one z "feature", "factor_index" and "label" become "x_feature" and so on. Rows have the
    dim "row".

    :param fit: the source of the draws.

        - The result of :func:`~pyro_mixtures.infer.em.fit`, or a guide of
          :mod:`pyro_mixtures.guides`, which knows its model: one chain, of draws from the guide's
          ``global_guide`` or of one point estimate. For a model that was fitted by other means,
          pass ``FullPartition(model, components=C, global_guide=autoguide)``. A guide that was
          never fitted shows the current params.
        - A list of these, for example restarts: one chain each. Modules hold their own params.
          Params of functions are kept in Pyro's store by name, so pass fits of a function as pairs
          (fit, state), with the state of the ``pyro.get_param_store().scope()`` in which each was
          made, or as :class:`~pyro_mixtures.infer.StoredFit`. A single fit may also be one.
        - A :class:`~pyro_mixtures.infer.uncertainty.bootstrap.Bootstrap`: its refits as draws.
        - A Pyro ``MCMC`` that has run, with its model before the rows:
          ``to_arviz(mcmc, model, x)``.
    :param rows: the model's tensor arguments, N rows each. They need not be the rows of the fit.
    :param draws: number of draws from ``global_guide``, 100 by default; of an MCMC's draws, evenly
        spaced, all by default. Random numbers are Pyro's.
    :param prior: number of draws from the prior, none by default.
    :param posterior_predictive: number of new data sets per chain, from evenly spaced draws or all
        from the point estimate; none by default. All of them are held in memory.
    :param log_likelihood: whether to compute the groups ``log_likelihood`` and ``lp``.
    :param by_site: for several observed sites, whether to compute the log evidence of each site
        separately, with z summed out again, instead of their joint one.
    :param observed_data: whether to include the data.
    :param align: give the labels of several fits, of bootstrap refits and of MCMC draws a common
        order: that of the draw with the largest ``lp`` (of the fit, for a bootstrap), by the rows'
        responsibilities (:func:`~pyro_mixtures.diagnostics.alignment.align`). Restarts have one
        order per chain. Relabeled are variables with a dimension "component", differences from a
        reference ("contrast"), for which the reference changes, and variables numbered from 0 to
        C - 1 (``experts.0.weight``). Dimensions without a name are tried, and the model is checked
        to be unchanged. The other groups do not depend on labels.
    :param truncated: sum over the candidates that the guide finds for each row instead of all C
        components: a lower bound, and cheaper for a large C. In both cases the log likelihood takes
        memory for draws x N numbers.
    :param site: the discrete site of an MCMC's model; guides know theirs.
    :param chunk: number of rows evaluated at once.
    :param dims: names of dimensions by variable, without chain and draw, in place of those above.
    :param coords: labels by dimension; 0, 1, ... by default.
    :returns: the container of the installed version of ArviZ.
    :raises OptionError: for impossible ``draws``, ``dims`` or ``coords``, or a prior of a model
        without latent sites other than z.
    :raises ModelError: if a site other than z has no value, or is latent in every row; if fits
        share params, or the params of a fit are no longer in Pyro's store; if labels are to be
        aligned, but no relabeling leaves the model unchanged, because components have constants,
        penalties or priors of their own (pass ``align=False`` to keep the labels).

    A point estimate has no spread: ``az.summary`` returns NaN for it with a RuntimeWarning, and
    ``az.loo`` needs several draws. ``az.loo`` treats the draws as draws from the posterior. Draws
    from a variational guide are approximate, mostly too narrow, and so is the result: see
    Magnusson, Andersen, Jonasson & Vehtari, "Bayesian leave-one-out cross-validation for large
    data", ICML 2019. Bootstrap refits and restarts are not draws from the posterior.

    A row of weight w stands for w rows. Its pointwise value is the log density of all of them, so
    the values add up to the log likelihood of the fit. ``az.loo`` then leaves all w rows out at
    once, which demands more of the draws than leaving out one. For single rows, divide by the
    weights (``constant_data`` has them if the program takes them), and weight the result. Pyro's
    own MCMC interprets ``poutine.scale`` of a site z as w rows that share their component, so its
    potential differs from minus ``lp`` where components overlap.

    A Pareto k above 0.7 (Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed importance
    sampling", JMLR 25, 2024) means that for some rows the draws, weighted by 1 / p(row), represent
    the posterior without the row poorly. In mixtures it is most often a row that almost alone
    supports a component, whose parameters would return to their prior without it; more draws do
    not help. Such rows have a large ``pareto_k`` in ``az.loo(..., pointwise=True)``. Leave each of
    them out, fit again, and use the log evidence of the row under that fit as its term; or consider
    whether the component is needed. Draws that are too narrow, as above, also increase k.

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
    _check_mappings(dims=dims, coords=coords)
    chains = read_chains(fit, rows, draws=draws, site=site)
    source = _source(chains, dims or {})
    aligns = align and chains.labels_of is not None
    likelihood, relabeling = None, None
    if log_likelihood or aligns:
        likelihood = compute_log_likelihood(
            chains, source.program.observed, by_site=by_site, truncated=truncated, chunk=chunk
        )
        if aligns:
            relabeling = _relabeling(source, likelihood, truncated=truncated, chunk=chunk)
    coords = _with_contrasts(source, coords or {})
    groups = merge_groups(
        posterior_groups(source, relabeling),
        {}
        if likelihood is None or not log_likelihood
        else log_likelihood_group(source, likelihood),
        {"sample_stats": sampler_stats(chains)},
        {} if posterior_predictive is None else predictive_group(source, posterior_predictive),
        {} if prior is None else prior_group(source, prior),
        data_groups(source) if observed_data else {},
        {"fit_history": history_group(chains.histories, chains.structure.components)},
    )
    all_counted = likelihood is None or bool(likelihood.counted.all())
    return to_container(
        groups,
        coords=coords,
        sample_coords=_sample_coords(chains, posterior_predictive, coords),
        masks=None
        if likelihood is None or all_counted
        else {"log_likelihood": {row_dim(source): likelihood.counted}},
    )


def _check_mappings(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and not isinstance(value, Mapping):
            raise OptionError(f"{name}={value!r} must be a mapping, {{name: [...]}}")


def _source(chains: Chains, dims: Dims) -> Source:
    first = chains.all[0]
    program = read_program(first.model, chains.structure, chains.rows, first.latents)
    return Source(chains, program, _all_dims(program, first.latents, dims))


def _all_dims(program: Program, latents: LatentValues, chosen: Dims) -> dict[str, tuple[str, ...]]:
    """Dims of every variable without chain and draw: the user's, the program's, or ArviZ's."""
    variables = {**program.params, **latents, **program.observed}
    unknown = sorted(set(chosen) - set(variables))
    if unknown:
        raise OptionError(f"dims= names {unknown}, but the variables are {sorted(variables)}")
    for name, names in chosen.items():
        _check_dims(name, names, tuple(variables[name].shape))
    defaults = {name: default_dims(name, value.shape) for name, value in variables.items()}
    return defaults | program.dims | {name: tuple(names) for name, names in chosen.items()}


def _check_dims(name: str, dims: Any, shape: tuple[int, ...]) -> None:
    is_list = isinstance(dims, Sequence) and not isinstance(dims, str)
    if not is_list or not all(isinstance(dim, str) for dim in dims):
        raise OptionError(
            f"dims= has {dims!r} for {name!r}: pass a list of names, one for each dimension"
        )
    if len(dims) != len(shape):
        raise OptionError(
            f"dims= has {tuple(dims)} for {name!r}, whose shape is {shape}: pass one name for each "
            "dimension other than chain and draw"
        )


def _relabeling(
    source: Source, likelihood: LogLikelihood, *, truncated: bool, chunk: int | None
) -> Relabeling:
    chains = source.chains
    reference = likelihood.best(chains) if chains.reference is None else chains.reference
    variables = find_component_variables(chains, source.program, reference, source.dims)
    permutations = align_draws(chains, reference, truncated=truncated, chunk=chunk)
    return Relabeling(permutations, variables)


def _with_contrasts(source: Source, coords: Coords) -> Coords:
    """Add the numbers 1, ..., C - 1 of the components to differences from the first one."""
    components = source.chains.structure.components
    variables = {**source.program.params, **source.chains.all[0].latents}
    sizes = {
        size
        for name, value in variables.items()
        for dim, size in zip(source.dims[name], value.shape, strict=True)
        if dim == CONTRAST
    }
    return {CONTRAST: np.arange(1, components), **coords} if sizes == {components - 1} else coords


def _sample_coords(chains: Chains, predictives: int | None, coords: Coords) -> dict[str, Coords]:
    """Labels of draws by group, if draws are numbered with gaps or the user labels them.

    New data sets of a point estimate are numbered from 0.
    """
    draws = chains.shape[1]
    numbers = np.arange(draws) if chains.draw_numbers is None else chains.draw_numbers
    labels = np.asarray(coords.get("draw", numbers))
    if len(labels) != draws:
        return {}
    sample_coords: dict[str, Coords] = {
        name: {"draw": labels} for name in ("posterior", "log_likelihood", "sample_stats")
    }
    if predictives is not None and draws > 1:
        selected = labels[predictive_numbers(chains, predictives)]
        sample_coords["posterior_predictive"] = {"draw": selected}
    return sample_coords
