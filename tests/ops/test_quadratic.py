"""The quadratic pair kernel and its moments: numba and torch against dense brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.ops import Pairs, Quadratic, pair_log_density, pair_moments, tiles, use_backend

BACKENDS = ["auto", "torch"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
few = settings(max_examples=30, deadline=None, derandomize=True)
shapes = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 70),
        "components": st.integers(1, 6),
        "features": st.sampled_from([1, 3, 8, 16, 21]),  # below, at and past whole vectors
        "rank": st.sampled_from([0, 1, 2, 4, 5, 6, 11]),
        "slots": st.integers(1, 3),
        "padding": st.sampled_from([0.0, 0.5, 1.0]),
    }
)


def problem(rows, components, features, rank, slots, padding, dtype=torch.float64):
    """Rows, kernel, and (S, B) components of which some are padding."""
    generator = torch.Generator().manual_seed(rows + 71 * components)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    args = (
        randn(components, features),
        randn(components, features).exp(),
        randn(components, rank, features),
    )
    z = torch.randint(components, (slots, rows), generator=generator)
    z[torch.rand(z.shape, generator=generator) < padding] = -1
    return randn(rows, features), Quadratic(*args, randn(components), 1.0 if rows % 2 else -1.0), z


def dense_log_density(x, kernel, z):
    diff = x.unsqueeze(1) - kernel.loc
    along = (diff.unsqueeze(-2) @ kernel.projection.mT).squeeze(-2)  # (N, C, R)
    total = (
        kernel.offset
        + (kernel.precision * diff.square()).sum(-1)
        + kernel.sign * along.square().sum(-1)
    )
    found = (-0.5 * total).gather(1, z.clamp_min(0).T).T
    return torch.where(z < 0, -torch.inf, found).reshape(-1)


def dense_moments(x, loc, projection, q, z):
    weight = torch.zeros(len(x), len(loc) + 1, dtype=torch.float64)
    weight.scatter_add_(
        1, z.T.remainder(len(loc) + 1), q.reshape(z.shape).double().T
    )  # padding goes last
    weight, diff = weight[:, :-1], (x.unsqueeze(1) - loc).double()
    first = torch.einsum("nc,ncd->cd", weight, diff)
    second = torch.einsum("nc,ncd->cd", weight, diff.square())
    projected = torch.einsum("nc,ncd,crd,nce->cre", weight, diff, projection.double(), diff)
    return weight.sum(0), first, second, projected


def assert_close(actual, expected, tolerance):
    size = (
        float(expected[expected.isfinite()].abs().max()) if bool(expected.isfinite().any()) else 1.0
    )
    torch.testing.assert_close(actual, expected.to(actual), rtol=tolerance, atol=tolerance * size)


@few
@given(shapes, st.sampled_from(BACKENDS), st.sampled_from([*TOLERANCE]))
def test_density_equals_dense_brute_force(shape, backend, dtype):
    x, kernel, z = problem(**shape, dtype=dtype)
    with use_backend(backend):
        pairs = Pairs(z, len(kernel.loc))
        found = pair_log_density(x, kernel, pairs).reshape(-1)
    wide = Quadratic(*(part.double() for part in kernel[:4]), kernel.sign)
    assert_close(found, dense_log_density(x.double(), wide, z), TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_be_bytes(backend):
    x, kernel, z = problem(70, 3, 21, 2, 2, 0.1, dtype=torch.float32)
    x, q = torch.randint(256, x.shape, dtype=torch.uint8), torch.rand(z.numel())
    with use_backend(backend):
        found = pair_log_density(x, kernel, Pairs(z, 3))
        moments = pair_moments(x, kernel.loc, kernel.projection, q, Pairs(z, 3))
        expected = pair_log_density(x.float(), kernel, Pairs(z, 3))
        wanted = pair_moments(x.float(), kernel.loc, kernel.projection, q, Pairs(z, 3))
    for mine, theirs in zip((found, *moments), (expected, *wanted), strict=True):
        assert_close(mine, theirs, 1e-5)


def test_moments_add_to_those_of_earlier_batches():
    x, kernel, z = problem(40, 3, 5, 2, 2, 0.1)
    q = torch.rand(z.shape, dtype=torch.float64)
    whole = pair_moments(x, kernel.loc, kernel.projection, q.reshape(-1), Pairs(z, 3))
    parts = None
    for some in (slice(0, 25), slice(25, 40)):
        weight = q[:, some].reshape(-1)
        parts = pair_moments(
            x[some], kernel.loc, kernel.projection, weight, Pairs(z[:, some], 3), parts
        )
    for mine, theirs in zip(parts, whole, strict=True):
        assert_close(mine, theirs, 1e-12)


@few
@given(shapes, st.sampled_from(BACKENDS), st.sampled_from([*TOLERANCE]))
def test_moments_equal_dense_brute_force(shape, backend, dtype):
    x, kernel, z = problem(**shape, dtype=dtype)
    q = torch.randn(z.numel(), dtype=dtype)  # a gradient's weights may be negative
    with use_backend(backend):
        pairs = Pairs(z, len(kernel.loc))
        found = pair_moments(x, kernel.loc, kernel.projection, q, pairs)
    for mine, theirs in zip(
        found, dense_moments(x, kernel.loc, kernel.projection, q, z), strict=True
    ):
        assert_close(mine, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("rows", [1, 6])
def test_gradients_pass_gradcheck(backend, rank, rows):
    x, kernel, z = problem(rows, 4, 3, rank, 2, 0.3)  # some component has no pair
    pairs, valid = Pairs(z, 4), z.reshape(-1) >= 0
    args = tuple(part.requires_grad_() for part in (x, *kernel[:4]))

    def density(x, *parts):
        return pair_log_density(x, Quadratic(*parts, kernel.sign), pairs).reshape(-1)[valid]

    with use_backend(backend):
        torch.autograd.gradcheck(density, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_gives_and_receives_no_gradient(backend):
    x, kernel, z = problem(9, 3, 2, 1, 3, 0.5)
    loc = kernel.loc.requires_grad_()
    with use_backend(backend):
        pairs = Pairs(z, 3)
        found = pair_log_density(x, kernel, pairs).reshape(-1)
        found.sum().backward()  # -inf, but its slots pass nothing on
    assert bool(loc.grad.isfinite().all())
    expected = loc.detach().clone().requires_grad_()
    dense_log_density(x, kernel._replace(loc=expected), z)[z.reshape(-1) >= 0].sum().backward()
    assert_close(loc.grad, expected.grad, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_rows_of_one_component_are_all_counted(backend, monkeypatch):
    """More rows than any block: 4 per pass, 32 per tile, 256 per flush, several tile batches."""
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 1 << 9)
    x, kernel, z = problem(1099, 3, 2, 2, 1, 0.0)
    z[0, 5:] = 1
    q = torch.rand(1099, dtype=torch.float64)
    with use_backend(backend):
        pairs = Pairs(z, 3)
        assert_close(
            pair_log_density(x, kernel, pairs).reshape(-1), dense_log_density(x, kernel, z), 1e-12
        )
        found = pair_moments(x, kernel.loc, kernel.projection, q, pairs)
    for mine, theirs in zip(
        found, dense_moments(x, kernel.loc, kernel.projection, q, z), strict=True
    ):
        assert_close(mine, theirs, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_moments_of_many_rows_keep_their_digits(backend):
    n = 60_000
    x, z, q = torch.rand(n, 1), torch.zeros(1, n, dtype=torch.int64), torch.ones(n)
    with use_backend(backend):
        found = pair_moments(x, torch.zeros(1, 1), torch.ones(1, 1, 1), q, Pairs(z, 1))
    wide = x.double()
    expected = torch.tensor(
        [n, wide.sum(), wide.square().sum(), wide.square().sum()], dtype=torch.float64
    )
    torch.testing.assert_close(
        torch.cat([part.reshape(-1) for part in found]).double(), expected, rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_expanded_tensors_are_read_right(backend):
    x, kernel, z = problem(20, 3, 4, 2, 1, 0.0)
    x = torch.cat([x, x], 1)[::2, ::2]
    kernel = kernel._replace(
        loc=kernel.loc[:1].expand(3, 4), precision=kernel.precision.T.contiguous().T
    )
    z = z[:, ::2]
    with use_backend(backend):
        pairs = Pairs(z, 3)
        assert_close(
            pair_log_density(x, kernel, pairs).reshape(-1), dense_log_density(x, kernel, z), 1e-12
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_invalid_rows_affect_their_own_densities_only(backend, bad):
    x, kernel, z = problem(9, 2, 3, 1, 1, 0.0)
    x[4, 1] = bad
    with use_backend(backend):
        found = pair_log_density(x, kernel._replace(sign=1.0), Pairs(z, 2)).reshape(-1)
    assert found.isfinite().tolist() == [n != 4 for n in range(9)]


def test_results_do_not_depend_on_the_number_of_threads():
    x, kernel, z = problem(400, 6, 4, 2, 3, 0.1)
    q, before, found = torch.rand(z.numel(), dtype=torch.float64), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        pairs = Pairs(z, 6)
        moments = pair_moments(x, kernel.loc, kernel.projection, q, pairs)
        found.append((*pairs.sorted, pair_log_density(x, kernel, pairs).reshape(-1), *moments))
    torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.meta
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_lie_on_the_device_of_the_rows(backend):
    with torch.device("cpu"):
        x, kernel, z = problem(9, 3, 2, 1, 2, 0.3)
        q = torch.rand(z.numel(), dtype=torch.float64)
    x.requires_grad_()
    with use_backend(backend):
        pairs = Pairs(z, 3)
        found = pair_log_density(x, kernel, pairs).reshape(-1)
        found[found.isfinite()].sum().backward()
        moments = pair_moments(x.detach(), kernel.loc, kernel.projection, q, pairs)
    assert {part.device.type for part in (*pairs.sorted, found, x.grad, *moments)} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("shift", range(4))
def test_rows_may_begin_anywhere_within_a_cache_line(shift, dtype):
    """Rows in many pairs are copied to whole lines first."""
    x, kernel, _ = problem(
        130, 40, 21, 5, 1, 0.0, torch.float64 if dtype == torch.float64 else torch.float32
    )
    x = (10 * x.abs()).to(dtype)
    z = torch.stack([torch.randperm(40)[:20] for _ in range(130)], 1)
    memory = torch.empty(x.numel() + shift, dtype=dtype)
    elsewhere = memory[shift:].view(x.shape).copy_(x)
    found = pair_log_density(elsewhere, kernel, Pairs(z, 40))
    with use_backend("torch"):
        expected = pair_log_density(x.to(kernel.loc.dtype), kernel, Pairs(z, 40))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
