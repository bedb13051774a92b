"""k-means, of rows or of their directions."""

import torch
from torch import Tensor

from pyro_mixtures.data.exact import as_floating
from pyro_mixtures.distributions import Components, DirectionalNormals, UnitNormals
from pyro_mixtures.errors import DataError
from pyro_mixtures.models.bregman import MeanMixture
from pyro_mixtures.options import check_flag


class KMeans(MeanMixture):
    r"""Model rows as ``x ~ Normal(mean[z], 1)`` with equal weights: the objective of k-means.

    The weights are constant. The only param is ``mean`` (C, D). Under :class:`HardPartition` an EM
    step is an iteration of Lloyd's algorithm. The negative ELBO of N rows is half the inertia plus
    the constant N (log C + D / 2 log 2 pi).

    :param components: C.
    :param features: D.
    :param spherical: whether rows and means lie on the unit sphere. The program divides each row by
        its length; the negative ELBO is :math:`\sum_n (1 - \cos(x_n, m_{z_n}))` plus N log C.
    :raises OptionError: when an option has an impossible value. A spherical model raises
        :class:`DataError` for rows that are all zeros.

    Dhillon & Modha, "Concept decompositions for large sparse text data using clustering", Machine
    Learning 42 (2001).

    >>> import torch
    >>> from pyro_mixtures.guides import HardPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.init import Seeds
    >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    >>> model = KMeans(components=2, features=1)
    >>> model.start_at(Seeds(torch.tensor([0, 1]), x[:2], x.var(0)))
    >>> em = EM(model, HardPartition(model, components=2))
    >>> losses = [em.step(x) for _ in range(4)]
    >>> model.mean.flatten().tolist()
    [0.5, 9.5]
    """

    def __init__(self, *, components: int, features: int, spherical: bool = False):
        check_flag(spherical=spherical)
        family = DirectionalNormals if spherical else UnitNormals
        super().__init__(family, components=components, features=features, equal_weights=True)
        self.spherical = spherical

    def component_distributions(self) -> Components:
        """Return the C component distributions at the current params."""
        return self.family(self.mean)

    def _observed(self, x: Tensor) -> Tensor:
        if not self.spherical:
            return x
        x = x if x.is_floating_point() else as_floating(x, self.mean.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if bool((length == 0).any()):
            row = int((length == 0).nonzero()[0, 0])
            raise DataError.at_row(
                row,
                "row {row} is all zeros and has no direction: "
                "remove such rows, or use spherical=False",
            )
        return x / length
