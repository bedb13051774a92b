"""Base class of components of an outcome given covariates: regressions, classifiers, experts."""

from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.distributions.components import Components, match_dtype
from pyro_mixtures.errors import DataError
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.bilinear import pair_products


class ConditionalComponents(Components):
    """C distributions of an outcome given the ``covariates`` (B, P) of B rows, batch shape (C,).

    ``family[z]`` has the rows of ``z`` (..., B). A family lists the keywords that all components
    share, ``covariates`` among them, in ``option_names``.

    :param covariates: (B, P).
    :param batch_shape: (C,).
    :param event_shape: shape of one row's outcome.
    :raises DataError: when the covariates are not a matrix.
    """

    option_names: tuple[str, ...] = ("covariates",)
    covariates: Tensor

    def __init__(
        self,
        covariates: Tensor,
        batch_shape: torch.Size,
        event_shape: torch.Size,
        *,
        validate_args: bool | None = None,
    ):
        if covariates.dim() != 2:
            raise DataError(f"covariates must be (B, P), not {tuple(covariates.shape)}")
        self.covariates = covariates
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Any:
        raise self._unselected()

    def _all(self) -> Any:
        raise self._unselected()

    def _unselected(self) -> DataError:
        """Return the error that prevents broadcasting B rows against as many components."""
        return DataError(
            f"{type(self).__name__} describes {len(self.covariates)} rows: "
            "select each row's component first, family[z]"
        )

    def design(self, like: Tensor) -> Tensor:
        """Return the covariates and a column of ones, (B, P + 1), in the dtype of ``like``."""
        x = match_dtype(self.covariates, like)
        return torch.cat([x, x.new_ones(len(x), 1)], -1)

    def pairs(self, index: Tensor) -> Pairs:
        """Return the pairs of the rows with the components ``index`` (..., B)."""
        if index.shape[-1] != len(self.covariates):
            raise DataError(
                f"{index.shape[-1]} outcomes for {len(self.covariates)} rows of covariates"
            )
        return Pairs(index.reshape(index.shape[:-1].numel(), -1), self.components)

    def predictor(self, coefficients: Tensor, index: Tensor) -> Tensor:
        """Return ``coefficients`` (C, M, P + 1) times [x, 1], (*index.shape, M)."""
        eta = pair_products(self.design(coefficients), coefficients, self.pairs(index))
        return eta.reshape(*index.shape, coefficients.shape[1])


def nudge(gram: Tensor, deviation: Tensor) -> Tensor:
    """Draw random changes (M, Q) of coefficients, with torch's random numbers.

    All directions in which rows differ are equally likely, and the units of the covariates do not
    matter.

    :param gram: (Q, Q) mean of [x, 1] [x, 1]^T over the rows, in float64; penalties added to it
        shorten changes.
    :param deviation: (M,) root mean square of the changes in the predictors.
    """
    size = gram.diagonal().clamp_min(0).sqrt()
    unit = torch.where(size > 0, 1 / size, 0.0)
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * gram * unit)
    has_rows = values > 8 * len(gram) * torch.finfo(gram.dtype).eps * values[-1]
    random = torch.randn(len(deviation), len(gram), dtype=gram.dtype, device=gram.device)
    change = (random * torch.where(has_rows, values.clamp_min(0).rsqrt(), 0.0)) @ vectors.mT * unit
    size = ((change @ gram) * change).sum(-1).sqrt()
    return torch.where(size > 0, deviation / size, 0.0).unsqueeze(-1) * change


def nudge_centered(gram: Tensor, center: Tensor, deviation: Tensor) -> Tensor:
    """Draw changes (M, P + 1) of weights and biases like :func:`nudge`, for covariates anywhere.

    :param gram: (P + 1, P + 1) mean of [x - center, 1] [x - center, 1]^T, with penalties.
    :param center: (P,) mean of the covariates.
    :param deviation: (M,).
    """
    change = nudge(gram, deviation)
    weight, level = change[:, :-1], change[:, -1:]
    return torch.cat([weight, level - weight @ center.unsqueeze(-1)], -1)


def augmented(weight: Tensor, bias: Tensor, outputs: int) -> Tensor:
    """Join ``weight`` (C, [M,] P) and ``bias`` (C, [M]) to coefficients (C, M, P + 1)."""
    components, features = weight.shape[0], weight.shape[-1]
    return torch.cat(
        [weight.reshape(components, outputs, features), bias.reshape(components, outputs, 1)], -1
    )
