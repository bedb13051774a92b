"""Programs that are not mixtures, or have no closed form: typed errors name reason and remedy."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import constraints

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import ClosedFormError, ModelError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, assign, log_evidence, responsibilities
from pyro_mixtures.poutine import data_plate
from tests.bad_input.inputs import STRATEGIES, C, D, N, draw_rows, gaussian, guide_of, svi


def program(*, site="z", observed=None, plate=True, fn=None, twice=False, outer=None):
    """Programs that are not mixtures, for different reasons."""
    fn = MixtureWeights(torch.full((C,), 1 / C)) if fn is None else fn

    def body(x):
        z = pyro.sample(site, fn, obs=observed)
        if twice:
            pyro.sample(site, fn)
        pyro.sample("x", dist.Normal(torch.zeros(C, D)[z.long()], 1.0).to_event(1), obs=x)

    def model(x):
        if not plate:
            return body(x)
        with data_plate(x) if outer is None else outer():
            if outer is None:
                return body(x)
            with pyro.plate("data", len(x), dim=-1):
                return body(x)

    return model


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (program(site="k"), r"no sample site 'z'; it has \['k', 'x'\]. Pass site="),
        (program(twice=True), "two sites have the same name.*'z'.*give each site its own name"),
        (
            program(observed=torch.zeros(N, dtype=torch.long)),
            "'z' is observed: nothing is left to infer",
        ),
        (
            program(plate=False),
            r"'z' must lie in exactly one vectorized plate, the data plate; it lies in \[\]",
        ),
        (program(fn=dist.Uniform(0.0, 3.0)), "'z' is Uniform: a mixture's z must be discrete"),
        (
            program(outer=lambda: pyro.plate("groups", 3, dim=-2)),
            r"exactly one vectorized plate, the data plate; it lies in \['groups', 'data'\]",
        ),
    ],
    ids=["no site", "two sites", "observed", "no plate", "continuous", "two plates"],
)
def test_programs_that_are_not_mixtures_are_refused_with_the_reason(strategy, model, message):
    with pytest.raises(ModelError, match=f"(?s){message}"):
        guide_of(strategy, model).posterior(draw_rows())


def test_scoring_refuses_programs_that_are_not_mixtures():
    for use in (log_evidence, responsibilities, assign):
        with pytest.raises(ModelError, match="no sample site 'z'"):
            use(program(site="k"), draw_rows())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_em_refuses_a_guide_of_another_program(strategy):
    with pytest.raises(
        ModelError, match="made for another model: build guide and EM from the same program"
    ):
        EM(gaussian(), guide_of(strategy, gaussian()))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("components", [C - 1, C + 2])
def test_guide_of_another_number_of_components_is_refused(strategy, components):
    guide = guide_of(strategy, gaussian(), components=components)
    with pytest.raises(
        OptionError,
        match=f"site 'z' has {C} components, but the guide was given components={components}",
    ):
        guide.posterior(draw_rows())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_program_that_changes_its_number_of_components_is_refused(strategy):
    sizes = iter([C, C + 1, C + 1])

    def model(x):
        components = next(sizes)
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.full((components,), 1 / components)))
            pyro.sample("x", DiagonalNormals(torch.zeros(components, D), torch.ones(D))[z], obs=x)

    with pytest.raises(
        ModelError, match=f"'z' now has {C + 1} components; the guide was made for {C}"
    ):
        guide_of(strategy, model).posterior(draw_rows())


def with_prior(x, index=None, size=None):
    with pyro.plate("components", C, device=x.device):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(D), 3.0).to_event(1))
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(torch.full((C,), 1 / C)))
        pyro.sample("x", DiagonalNormals(loc, torch.ones(D))[z], obs=x)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_guide_names_latent_sites_without_a_value(strategy):
    message = (
        r"latent site 'loc' is not 'z' and has no value: "
        r"pass global_guide= to the guide.*AutoNormal\(poutine\.block"
    )
    with pytest.raises(ModelError, match=message):
        guide_of(strategy, with_prior).posterior(draw_rows())
    with pytest.raises(ModelError, match=message):
        svi(with_prior, guide_of(strategy, with_prior)).step(draw_rows())
    with pytest.raises(ModelError, match="latent site 'loc'"):
        log_evidence(with_prior, draw_rows())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("global_guide", [None, AutoNormal, AutoDelta])
def test_em_refuses_latent_sites_and_points_to_svi(strategy, global_guide):
    guide = guide_of(
        strategy,
        with_prior,
        global_guide=global_guide and global_guide(poutine.block(with_prior, hide=["z"])),
    )
    with pytest.raises(ClosedFormError, match=r"sites \['loc'\] are latent: use SVI"):
        EM(with_prior, guide).step(draw_rows())


def test_global_guide_must_return_its_values():
    guide = FullPartition(with_prior, components=C, global_guide=lambda x: None)
    with pytest.raises(ModelError, match="global_guide returned NoneType: it must return a dict"):
        guide.posterior(draw_rows())


# ---------------------------------------------------------------- closed forms


def in_params(build):
    """A mixture over rows whose observed site is built from params by ``build(z)``."""

    def model(x):
        weights = pyro.param("weights", torch.full((C,), 1 / C), constraint=constraints.simplex)
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", build(z), obs=x)

    return model


def loc_param():
    return pyro.param("loc", lambda: torch.randn(C, D))


def log_scale_param():
    return pyro.param("log_scale", lambda: torch.zeros(C, D) + 0.1 * torch.rand(C, D))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda z: DiagonalNormals(loc_param(), log_scale_param().exp())[z],
            "'scale' of site 'x' is computed from params",
        ),
        (
            lambda z: dist.Normal(loc_param()[z], log_scale_param().exp()[z]).to_event(1),
            "'scale' of site 'x' is computed from params",
        ),
        (
            lambda z: dist.StudentT(3.0, loc_param()[z], 1.0).to_event(1),
            r"site 'x' \(StudentT, 1 event dimensions\) has no closed-form M-step",
        ),
        (
            lambda z: dist.Laplace(loc_param()[z], 1.0).to_event(1),
            r"site 'x' \(Laplace.* has no closed-form M-step",
        ),
    ],
    ids=["log_scale.exp()", "stock log_scale.exp()", "StudentT", "Laplace"],
)
def test_em_names_what_has_no_closed_form_and_the_remedies(strategy, build, message):
    model = in_params(build)
    with pytest.raises(ClosedFormError, match=message) as found:
        EM(model, guide_of(strategy, model)).step(draw_rows())
    for remedy in ("use SVI", "gradient= to EM"):
        assert remedy in str(found.value)


def test_em_names_params_that_no_site_of_closed_form_owns():
    def model(x):
        pyro.param("stray", torch.zeros(3))
        gaussian_like(x)

    gaussian_like = in_params(lambda z: DiagonalNormals(loc_param(), torch.ones(D))[z])
    with pytest.raises(
        ClosedFormError,
        match=r"params \['stray'\] have no closed form: freeze= them, use SVI, or pass",
    ):
        EM(model, FullPartition(model, components=C)).step(draw_rows())


def test_em_names_means_that_components_share():
    model = in_params(
        lambda z: DiagonalNormals(pyro.param("loc", torch.zeros(D)), torch.ones(C, D))[z]
    )
    with pytest.raises(
        ClosedFormError, match=r"loc of shape \(2,\) is shared by 4 components: give each its own"
    ):
        EM(model, FullPartition(model, components=C)).step(draw_rows())


def test_refused_em_step_leaves_the_params_alone():
    model = in_params(lambda z: DiagonalNormals(loc_param(), log_scale_param().exp())[z])
    strategy = EM(model, FullPartition(model, components=C))
    for _ in range(2):
        with pytest.raises(ClosedFormError):
            strategy.step(draw_rows())
    assert torch.equal(pyro.param("weights"), torch.full((C,), 1 / C))
    assert torch.equal(pyro.param("loc").detach(), loc_param().detach())
