"""The bilinear pair kernel and its moments against einsum, gradients included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops import Pairs, use_backend
from pyro_mixtures.ops.bilinear import centered_moments_of, pair_outer, pair_products

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
few = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=["auto", "torch"])
def backend(request):
    with use_backend(request.param):
        yield


def problem(rows, slots, components, outputs, features, dtype=torch.float64, seed=0):
    """Rows, weights, slots with padding, and numbers by slot."""
    draw = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape):
        wide = torch.randn(*shape, generator=draw, dtype=torch.float64, device="cpu")
        return wide.to(dtype)

    z = torch.randint(-1, components, (slots, rows), generator=draw, device="cpu")
    return (
        normal(rows, features),
        normal(components, outputs, features),
        z,
        normal(slots * rows, outputs),
    )


def dense_products(x, weight, z):
    every = torch.einsum("np,cmp->cnm", x, weight)
    picked = every[z.clamp_min(0), torch.arange(z.shape[1], device=x.device)]
    return picked * (z >= 0).unsqueeze(-1)


def one_hot(z, components, like):
    return (z.reshape(-1, 1) == torch.arange(components, device=z.device)).to(like)


@pytest.mark.meta
@pytest.mark.parametrize(
    "shape",
    [(70, 3, 5, 1, 4), (70, 1, 5, 3, 4), (200, 2, 2, 2, 1), (1, 1, 3, 1, 2), (40, 2, 90, 2, 3)],
)
def test_products_and_sums_equal_einsum(shape, dtype, backend):
    x, weight, z, values = problem(*shape, dtype)
    pairs = Pairs(z, shape[2])
    products = pair_products(x, weight, pairs)
    assert products.dtype == dtype
    torch.testing.assert_close(
        products, dense_products(x, weight, z), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    hot = one_hot(z, shape[2], values.double())
    sums = pair_outer(values, x, pairs)
    expected = torch.einsum("kc,km,kp->cmp", hot, values.double(), x.double().repeat(shape[1], 1))
    torch.testing.assert_close(sums, expected, rtol=1e-10, atol=1e-10)


@few
@given(
    rows=st.integers(0, 80),
    slots=st.integers(1, 3),
    components=st.integers(1, 6),
    outputs=st.integers(1, 3),
    features=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, slots, components, outputs, features, seed):
    x, weight, z, values = problem(rows, slots, components, outputs, features, seed=seed)
    pairs = Pairs(z, components)
    torch.testing.assert_close(pair_products(x, weight, pairs), dense_products(x, weight, z))
    hot, many = one_hot(z, components, values), x.repeat(slots, 1)
    torch.testing.assert_close(
        pair_outer(values, x, pairs), torch.einsum("kc,km,kp->cmp", hot, values, many)
    )
    q = values[:, 0].square()
    moments = centered_moments_of(x, q, pairs)
    count = torch.einsum("kc,k->c", hot, q)
    torch.testing.assert_close(moments.count, count)
    total = torch.einsum("kc,k,kp->cp", hot, q, many)
    torch.testing.assert_close(count.unsqueeze(-1) * moments.mean, total)
    difference = many - moments.mean.unsqueeze(1)  # (C, K, P)
    outer = torch.einsum("kc,k,ckp,ckr->cpr", hot, q, difference, difference)
    torch.testing.assert_close(moments.outer, outer)


@pytest.mark.meta
@pytest.mark.parametrize("all_components", [False, True])
def test_gradients_are_those_of_finite_differences(all_components, backend):
    x, weight, z, _ = problem(7, 3, 3, 2, 2)
    z = torch.arange(3, device="cpu").unsqueeze(-1).expand(3, 7) if all_components else z
    assert Pairs(z, 3).all_pairs == all_components
    x.requires_grad_(), weight.requires_grad_()
    with torch.device("cpu"):  # gradcheck makes its own tensors
        torch.autograd.gradcheck(lambda a, w: pair_products(a, w, Pairs(z, 3)), (x, weight))
        torch.autograd.gradcheck(lambda w: pair_products(x.detach(), w, Pairs(z, 3)), weight)
        torch.autograd.gradcheck(lambda a: pair_products(a, weight.detach(), Pairs(z, 3)), x)


@pytest.mark.meta
def test_all_pairs_take_one_matrix_product_with_the_same_result(dtype):
    x, weight, _, values = problem(50, 4, 4, 3, 5, dtype)
    z = torch.arange(4, device="cpu").unsqueeze(-1).expand(4, 50)
    short, plain = Pairs(z, 4), Pairs(z.contiguous(), 4)
    assert short.all_pairs
    assert not plain.all_pairs
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(
        pair_products(x, weight, short), pair_products(x, weight, plain), **tolerance
    )
    torch.testing.assert_close(pair_outer(values, x, short), pair_outer(values, x, plain))


def test_columns_may_stand_for_any_rows():
    """Column n of z may stand for any row, several columns for one."""
    x, weight, z, values = problem(6, 2, 3, 2, 2)
    rows = torch.tensor([5, 0, 0, 3, 2, 5])
    numbered, plain = Pairs(z, 3, rows), Pairs(z, 3)
    x.requires_grad_()
    torch.testing.assert_close(
        pair_products(x, weight, numbered), pair_products(x[rows], weight, plain)
    )
    torch.testing.assert_close(pair_outer(values, x, numbered), pair_outer(values, x[rows], plain))
    out = torch.randn(2, 6, 2, dtype=torch.float64)
    mine, theirs = (
        torch.autograd.grad((out * made).sum(), x)[0]
        for made in (pair_products(x, weight, numbered), pair_products(x[rows], weight, plain))
    )
    torch.testing.assert_close(mine, theirs)


def test_no_rows_give_no_products_and_zero_sums():
    x, weight = torch.zeros(0, 4), torch.ones(3, 2, 4, requires_grad=True)
    pairs = Pairs(torch.zeros(2, 0, dtype=torch.int64), 3)
    products = pair_products(x, weight, pairs)
    assert products.shape == (2, 0, 2)
    products.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(3, 2, 4))
    assert torch.equal(
        pair_outer(torch.zeros(0, 2), x, pairs), torch.zeros(3, 2, 4, dtype=torch.float64)
    )


def test_padding_keeps_invalid_rows_out_of_all_sums():
    x, weight, _, values = problem(5, 1, 2, 1, 3)
    x[2], values[2] = torch.nan, torch.nan
    pairs = Pairs(torch.tensor([[0, 1, -1, 1, 0]]), 2)
    weight.requires_grad_()
    products = pair_products(x, weight, pairs)
    products.sum().backward()
    for tensor in (
        products,
        weight.grad,
        pair_outer(values, x, pairs),
        centered_moments_of(x, values[:, 0], pairs).outer,
    ):
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("offset", [0.0, 1e3, 1.7e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_rows_far_from_zero(offset, dtype):
    """Two components far apart, in one float64 pass of numpy over the rounded rows."""
    x = (offset * torch.tensor([[-1.0], [1.0]]) + (1 + 1e-3 * offset) * torch.randn(2, 2500)).T
    x = x.to(dtype)
    q = torch.rand(5000, dtype=dtype)
    pairs = Pairs(torch.arange(2).repeat(2500)[None], 2, torch.arange(5000) // 2)
    moments = centered_moments_of(x, q, pairs)
    for c in range(2):
        expected = np.cov(x.double().numpy().T, aweights=q[c::2].double().numpy(), ddof=0)
        found = (moments.outer[c] / moments.count[c]).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * expected.max())


def test_constant_features_have_moments_of_zero():
    x = torch.cat([torch.full((5000, 1), 0.1), torch.randn(5000, 1)], -1).double()
    moments = centered_moments_of(
        x, torch.rand(5000), Pairs(torch.zeros(1, 5000, dtype=torch.int64), 1)
    )
    assert float(moments.mean[0, 0]) == float(x[0, 0])
    assert moments.outer[0, 0].tolist() == [0.0, 0.0]


def test_wide_products_keep_their_memory_bounded(monkeypatch):
    """Each tile makes one M x P product, which matters where M and P are large."""
    sizes, add = [], torch.Tensor.index_add_

    def watched(self, dim, index, source):
        sizes.append(source.numel())
        return add(self, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_add_", watched)
    z = torch.arange(150).unsqueeze(0)
    out = pair_outer(torch.ones(150, 300), torch.ones(150, 300), Pairs(z, 150))
    assert bool((out == 1).all())
    assert max(sizes) <= 1 << 23


def test_components_out_of_range_are_refused():
    x, weight, _, _ = problem(2, 1, 3, 1, 2)
    with pytest.raises(PartitionError, match=r"not in \[0, 3\)"):
        pair_products(x, weight, Pairs(torch.tensor([[0, 3]]), 3))
