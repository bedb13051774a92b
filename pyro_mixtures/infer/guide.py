"""What all guides of a mixture's z share: reading the model, E-step, and the site in the data plate."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_mixtures.distributions import CandidateCategorical
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.poutine import (
    PlateMessenger,
    Posterior,
    ProgramStructure,
    ReuseMessenger,
    VisibilityMessenger,
    read_structure,
)


class PartitionGuide(PyroModule):
    """Guide of the discrete site of a mixture, with its optimal q(z) in closed form given the model's parameters.

    :param model: the Pyro program; its arguments are the guide's.
    :param components: C, as the model has it.
    :param site: name of the discrete site.
    :param global_guide: a guide over the model's other latent sites, run first; its values are what
        z is conditioned on. For example ``AutoNormal(poutine.block(model, hide=["z"]))``.

    ``train()`` and ``eval()`` decide whether a call may change the guide's own state (candidate
    sets, graph). ``evaluations`` counts joint densities over the guide's life, ``rows_won`` (C,)
    the rows that each component won since
    :meth:`reset_counts`.
    """

    reuse: ReuseMessenger | None = (
        None  # set by EM while params stay as they are: E-steps share factorisations
    )

    def __init__(
        self,
        model: Callable,
        *,
        components: int,
        site: str = "z",
        global_guide: Callable | None = None,
    ):
        super().__init__()
        if components < 1:
            raise OptionError(f"components={components}: a mixture has at least one")
        self._model = (model,)  # in a tuple: the model's parameters are not the guide's
        self.components, self.site = components, site
        self.global_guide = global_guide
        self.structure: ProgramStructure | None = None
        self.evaluations = 0
        self.reset_counts()

    @property
    def model(self) -> Callable:
        """The program that this guide belongs to."""
        return self._model[0]

    @abstractmethod
    def _e_step(
        self, model: Callable, args: tuple, kwargs: Mapping[str, Any], given: Mapping[str, Tensor]
    ) -> Posterior:
        """q(z) of the rows in ``args``; may change the guide's state when in training mode."""

    @abstractmethod
    def posterior_of_new_rows(
        self,
        *args,
        model: Callable | None = None,
        given: Mapping[str, Tensor] | None = None,
        **kwargs,
    ):
        """q(z) of rows that the guide has no state for; changes nothing. ``model`` may be a handled version of it."""

    def posterior(self, *args, given: Mapping[str, Tensor] | None = None, **kwargs) -> Posterior:
        """The E-step: responsibilities of the rows in ``args`` over their candidates.

        :param given: values of the model's other latent sites; by default a draw from the guide
            ``global_guide``.
        """
        self._read(args, kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        model = self.model if self.reuse is None else self.reuse(self.model)
        with self._known_structure().threads():
            posterior = self._e_step(model, args, kwargs, values)
        self.evaluations += posterior.evaluations
        if self.training:
            winner = posterior.winner.to("cpu")
            self.rows_won += torch.bincount(winner, minlength=self.components)
            self._weight += float(posterior.row_weight.sum(dtype=torch.float64))
        return posterior

    def latent_values(self, *args, **kwargs) -> dict[str, Tensor]:
        """A draw of the model's other latent sites from the guide beside (empty without one)."""
        if self.global_guide is None:
            return {}
        values = self.global_guide(*args, **kwargs)
        if not isinstance(values, dict):
            raise ModelError(
                "the guide beside must return a dict of its sites' values, as Pyro's autoguides do"
            )
        return values

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Sample the latent sites, z enumerated over its candidates under ``TraceEnum_ELBO``."""
        self._read(args, kwargs)
        with VisibilityMessenger(self._known_structure().site):
            return self._sample(args, kwargs)

    def _sample(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        d = self._known_structure()
        with PlateMessenger(d.plate) as opened:
            values = self.latent_values(*args, **kwargs)
        detached = {name: value.detach() for name, value in values.items()}
        posterior = self.posterior(*args, given=detached, **kwargs)
        q, per_row = self._distribution(posterior)
        infer: Any = {"enumerate": "parallel", "expand": per_row}
        scale = (
            self._in_plate(posterior.scale)
            if isinstance(posterior.scale, Tensor)
            else posterior.scale
        )
        with self._plate(posterior, opened.index), pyro.poutine.scale(scale=scale):
            # A mask of True leaves everything as it is.
            mask: Any = True if posterior.mask is None else self._in_plate(posterior.mask)
            with pyro.poutine.mask(mask=mask):
                z = pyro.sample(d.site, q, infer=infer)
        return {**values, d.site: z}

    def _plate(self, posterior: Posterior, opened: Tensor | None) -> pyro.plate:
        """The data plate with the rows of the E-step; ``opened`` are its rows if the guide beside has opened it."""
        d = self._known_structure()
        if opened is not None and not torch.equal(opened, posterior.index):
            raise ModelError(
                f"the guide beside draws its own rows of plate {d.plate!r}: give it create_plates=, a function that "
                "returns the model's plate"
            )
        # A second statement of the same plate would be a second site of its name.
        with pyro.poutine.block(hide=[] if opened is None else [d.plate]):
            return pyro.plate(d.plate, posterior.size, subsample=posterior.index, dim=d.dim)

    def _distribution(self, posterior: Posterior) -> tuple[CandidateCategorical, bool]:
        """q(z) in the shape of the data plate, and whether every row has candidates of its own."""
        logits = self._in_plate(posterior.log_prob.T)
        if posterior.candidates.shape[1] == 1 and posterior.log_prob.shape[1] != 1:
            return CandidateCategorical(posterior.candidates[:, 0], logits), False
        return CandidateCategorical(self._in_plate(posterior.candidates.T), logits), True

    def _in_plate(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (B, 1, ..., 1, ...) with B at the data plate's dimension."""
        d = self._known_structure()
        return rows.reshape(rows.shape[:1] + (1,) * (-1 - d.dim) + rows.shape[1:])

    def reset_counts(self) -> None:
        """Start counting anew which components win rows."""
        self.rows_won = torch.zeros(self.components, dtype=torch.int64, device="cpu")
        self._weight = 0.0

    @property
    def mean_weight(self) -> float:
        """Weight of a row, on average over those seen since :meth:`reset_counts`; 1 where none has any."""
        return self._weight / int(self.rows_won.sum()) if self._weight else 1.0

    @property
    def needs_all_rows(self) -> bool:
        """Whether an E-step needs all rows in one call, rather than batches."""
        return False

    def epoch_details(self) -> Mapping[str, Any]:
        """Plain numbers, strings or tuples by name, that a fit's history stores for each epoch."""
        return {}

    def drop_components(self, components: Tensor) -> None:
        """Told by EM that the components marked True (C,) have weight zero for good."""

    def reseed_component(self, component: int, like: int) -> None:
        """Told by EM that ``component`` was split off ``like``: nothing to do without a neighbour graph."""

    def record_statistics(self, statistics: Mapping[str, Any], *, learned_weights: bool) -> None:
        """Told by EM, site by site, the statistics that the params now fit: only hard partitions make use of them."""

    def read(self, *args, **kwargs) -> ProgramStructure:
        """What kind of mixture the model is, found at the first call with its arguments."""
        self._read(args, kwargs)
        return self._known_structure()

    def _read(self, args: tuple, kwargs: Mapping[str, Any]) -> None:
        if self.structure is None:
            structure = read_structure(self.model, self.site, args, dict(kwargs))
            if structure.components != self.components:
                raise OptionError(
                    f"the model's site {self.site!r} has {structure.components} components, but the guide was given "
                    f"components={self.components}"
                )
            self.structure = structure

    def _known_structure(self) -> ProgramStructure:
        assert self.structure is not None
        return self.structure

    def _check_rows(self, size: int) -> None:
        if self.components > size:
            raise DataError(
                f"{self.components} components for {size} rows: give more rows, or fewer components"
            )
