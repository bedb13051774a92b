"""JIT: candidates must be arguments, and guides with state are refused."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import JitTraceEnum_ELBO
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import MixtureError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.poutine import truncate
from tests.sharp_edges.program import (
    ELBO,
    LOC,
    C,
    N,
    draw_rows,
    exact_loss,
    mixture_params,
    no_guide,
)

SETS = [torch.tensor(pair, device="cpu").repeat(N, 1) for pair in ([0, 1], [3, 4], [2, -1])]


def jit_program(weights, select):
    def program(x):
        probs, loc, scale = mixture_params()
        with pyro.plate("data", len(x), device=x.device):
            z = pyro.sample("z", weights(probs))
            pyro.sample("x", select(loc, scale, z), obs=x)

    return program


def stock_select(loc, scale, z):
    return dist.Normal(loc[z], scale[z]).to_event(1)


def lazy_select(loc, scale, z):
    return DiagonalNormals(loc, scale)[z]


def jit_loss(elbo, model, *args):
    return elbo.differentiable_loss(model, no_guide, *args)


@pytest.mark.parametrize("weights", [dist.Categorical, MixtureWeights])
@pytest.mark.parametrize("select", [stock_select, lazy_select])
def test_jit_takes_new_candidates_from_its_arguments(weights, select):
    program, x = jit_program(weights, select), draw_rows()
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)

    def model(x, sets):
        return truncate(program, "z", sets)(x)

    losses = []
    for sets in SETS:
        found = jit_loss(jit, model, x, sets)
        losses.append(ELBO.loss(model, no_guide, x, sets))
        assert_close(float(found.detach()), losses[-1], rtol=1e-5, atol=0)
    assert len(set(losses)) == len(SETS)
    found.backward()
    from_jit = pyro.param("loc").grad.clone()
    pyro.param("loc").grad = None
    ELBO.loss_and_grads(model, no_guide, x, SETS[-1])
    assert_close(from_jit, pyro.param("loc").grad)


def test_jit_keeps_candidates_that_are_not_arguments():
    program, x, attribute = (
        jit_program(MixtureWeights, stock_select),
        draw_rows(),
        {"sets": SETS[0]},
    )
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)

    def model(x):
        return truncate(program, "z", attribute["sets"])(x)

    first = float(jit_loss(jit, model, x).detach())
    attribute["sets"] = SETS[1]
    assert_close(float(jit_loss(jit, model, x).detach()), first)
    assert abs(ELBO.loss(model, no_guide, x) - first) > 0.1


def test_exact_guide_works_under_jit():
    program, x = jit_program(MixtureWeights, stock_select), draw_rows()
    guide = FullPartition(program, components=C)
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    for rows, shift in ((x, 0.0), (2 * x, 0.0), (x, 0.3)):
        with torch.no_grad():
            mixture_params()[1].add_(shift)
        found = jit.differentiable_loss(program, guide, rows)
        assert_close(float(found.detach()), exact_loss(rows, loc=LOC + shift), rtol=1e-5, atol=0)


def test_truncated_guide_is_refused_under_jit():
    """A trace would freeze its candidate sets, or read them before they are written."""
    program, x = jit_program(MixtureWeights, stock_select), draw_rows()
    guide = TruncatedPartition(program, components=C, candidates=2, neighbors=3, seed=0)
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    with pytest.raises(MixtureError, match=r"[Jj]it"):
        jit.differentiable_loss(program, guide, x)
