"""Products of small matrices with rows: the kernels against plain torch."""

import pytest
import torch

from pyro_mixtures.ops import use_backend
from pyro_mixtures.ops.small import inner, mix, residual, scaled_transpose

BACKENDS = ["auto", "torch"]
SHAPES = [(1, 1, 1, 1), (3, 2, 4, 7), (5, 6, 6, 33), (2, 0, 3, 5), (0, 2, 2, 4)]


def tensors(dtype, *shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("components", "wide", "deep", "features"), SHAPES)
def test_products_are_those_of_torch(components, wide, deep, features, dtype, backend):
    m, rows, others = tensors(
        dtype, (components, wide, deep), (components, deep, features), (components, wide, features)
    )
    with use_backend(backend):
        torch.testing.assert_close(mix(m, rows), m @ rows)
        torch.testing.assert_close(inner(rows, others), rows @ others.mT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residual_and_scaled_transpose_are_their_formulas(dtype, backend):
    gram, w, t, second, scale = tensors(dtype, (4, 3, 3), (4, 3, 9), (4, 3, 9), (4, 9), (4, 9))
    with use_backend(backend):
        found, turned = residual(gram, w, t, second), scaled_transpose(w.mT, scale)
    torch.testing.assert_close(found, second + ((gram @ w - 2 * t) * w).sum(1))
    torch.testing.assert_close(turned, w * scale.unsqueeze(1))
    assert turned.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_expanded_tensors_are_read_right(backend):
    m, rows = tensors(torch.float64, (4, 3, 2), (1, 5, 2))
    rows = rows.mT.expand(4, 2, 5)
    with use_backend(backend):
        torch.testing.assert_close(mix(m, rows), m @ rows)
        torch.testing.assert_close(mix(m.mT[:, :, 1:], m[:, 1:]), m.mT[:, :, 1:] @ m[:, 1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_flow_where_they_are_recorded(backend):
    m, rows = (t.requires_grad_() for t in tensors(torch.float64, (2, 3, 2), (2, 2, 4)))
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda m, rows: (mix(m, rows), inner(rows, rows)), (m, rows)
        )
