"""The conformance suite for component families, including families of other packages.

Subclass :class:`FamilyConformance` in a test module, say how to build the family, give a
brute-force oracle, and inherit the tests: densities and their gradients, Pyro's protocol, log
evidence and its truncations, sufficient statistics, EM, stored state.

>>> import torch
>>> from pyro import distributions as dist
>>> from pyro_mixtures.distributions import DiagonalNormals
>>> from pyro_mixtures.testing import FamilyConformance
>>> class TestDiagonalNormals(FamilyConformance):
...     family = DiagonalNormals
...
...     def arguments(self, components, lead=()):
...         shape = (*lead, components, 3)
...         return {"loc": torch.randn(shape).double(), "scale": 0.5 + torch.rand(shape).double()}
...
...     def oracle(self, loc, scale):
...         return dist.Normal(loc, scale).to_event(1)
...
...     def maximizer(self, x, q, loc, scale):
...         loc = q @ x / q.sum()
...         return loc, (q @ (x - loc) ** 2 / q.sum()).sqrt()

:class:`NormalConformance` adds tests of covariances and of recovery to the suite,
:class:`DiscreteConformance` adds tests of frequencies, for families over a finite set of outcomes.

This package needs pytest, and ``import pyro_mixtures`` does not import it. Tests on the GPU are
marked ``cuda``; tests that also pass when the default device is "meta" (which finds tensors created
without a device) are marked ``meta``. Register both markers in the configuration of pytest.
"""

import pytest

pytest.register_assert_rewrite(
    "pyro_mixtures.testing.families",
    "pyro_mixtures.testing.normals",
    "pyro_mixtures.testing.discrete",
)

from pyro_mixtures.testing.discrete import DiscreteConformance  # noqa: E402
from pyro_mixtures.testing.families import FamilyConformance, FamilyMixture  # noqa: E402
from pyro_mixtures.testing.normals import NormalConformance  # noqa: E402
from pyro_mixtures.testing.tools import (  # noqa: E402
    TOLERANCE,
    assert_near,
    exact_loss,
    normal_rows,
    one_thread,
)

__all__ = [
    "TOLERANCE",
    "DiscreteConformance",
    "FamilyConformance",
    "FamilyMixture",
    "NormalConformance",
    "assert_near",
    "exact_loss",
    "normal_rows",
    "one_thread",
]
