"""Base class of guides for the discrete site of a mixture: E-step, and sampling of the site."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_mixtures.distributions import CandidateCategorical
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.options import check_integer
from pyro_mixtures.poutine import (
    PlateMessenger,
    Posterior,
    ProgramStructure,
    ReuseMessenger,
    VisibilityMessenger,
    read_structure,
)


class PartitionGuide(PyroModule):
    """Guide of the discrete site z of a mixture, with the optimal q(z) given the params.

    A subclass implements the E-step in ``e_step`` and :meth:`posterior_of_new_rows`. Guides that
    can do more subclass :class:`~pyro_mixtures.guides.LabeledGuide` or
    :class:`~pyro_mixtures.guides.SearchingGuide`.

    :param model: the Pyro program; its arguments are the guide's.
    :param components: C, the number of the model's components.
    :param site: name of the discrete site.
    :param global_guide: a guide over the model's other latent sites. It runs first, and z is
        conditioned on its values. For example ``AutoNormal(poutine.block(model, hide=["z"]))``.
    :raises OptionError: when ``components`` is not positive.

    ``train()`` and ``eval()`` set whether a call may change the guide's state (candidate sets,
    graph, labels). ``evaluations`` counts the joint densities evaluated so far. ``rows_won`` (C,)
    counts the rows of which each component was the most probable, since :meth:`reset_counts`.
    """

    # Set by EM while params do not change: E-steps then share factorizations.
    reuse: ReuseMessenger | None = None

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        components: int,
        site: str = "z",
        global_guide: Callable[..., Any] | None = None,
    ):
        super().__init__()
        check_integer(components=components)
        if components < 1:
            raise OptionError(f"components={components}: a mixture has at least one component")
        self._model = (model,)  # in a tuple: the model's parameters are not the guide's
        self.components, self.site = components, site
        self.global_guide = global_guide
        self.structure: ProgramStructure | None = None
        self.evaluations = 0
        self.reset_counts()

    @property
    def model(self) -> Callable[..., Any]:
        """The program that this guide belongs to."""
        return self._model[0]

    @abstractmethod
    def e_step(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Tensor],
    ) -> Posterior:
        """Return q(z) of the rows in ``args``; in training mode, update the guide's state.

        :param model: the guide's program, or one that shares factorizations with other steps.
        :param args: its positional arguments.
        :param kwargs: its keyword arguments.
        :param given: values of the model's other latent sites.
        :returns: the posterior. The sum of its ``log_evidence`` is the ELBO that EM reports.
        """
        raise self._does_not_implement("e_step")

    @abstractmethod
    def posterior_of_new_rows(
        self,
        *args: Any,
        model: Callable[..., Any] | None = None,
        given: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """Return q(z) of rows that the guide has no state for; change nothing.

        :param model: the guide's program under effect handlers; None for the program itself.
        :param given: values of the model's other latent sites; None draws them from
            ``global_guide``.
        """
        raise self._does_not_implement("posterior_of_new_rows")

    def _does_not_implement(self, method: str) -> ModelError:
        """Return the error for a missing method: Pyro's modules do not refuse abstract classes."""
        return ModelError(
            f"{type(self).__name__} does not implement {method}(): define it in the class, or use "
            "a guide of pyro_mixtures.guides"
        )

    def posterior(
        self, *args: Any, given: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> Posterior:
        """Run the E-step: return the responsibilities of the rows in ``args``.

        :param given: values of the model's other latent sites; None draws them from
            ``global_guide``.
        """
        self._read(args, kwargs)
        values = self.latent_values(*args, **kwargs) if given is None else given
        model = self.model if self.reuse is None else self.reuse(self.model)
        with self._known_structure().threads():
            posterior = self.e_step(model, args, kwargs, values)
        self.evaluations += posterior.evaluations
        if self.training:
            winner = posterior.winner.to("cpu")
            self.rows_won += torch.bincount(winner, minlength=self.components)
            self._weight += float(posterior.row_weight.sum(dtype=torch.float64))
        return posterior

    def latent_values(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw the model's other latent sites from ``global_guide``; empty without one."""
        if self.global_guide is None:
            return {}
        values = self.global_guide(*args, **kwargs)
        if not isinstance(values, dict):
            raise ModelError(
                f"global_guide returned {type(values).__name__}: it must return a dict of its "
                "sites' values, as Pyro's autoguides do"
            )
        return values

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latent sites; ``TraceEnum_ELBO`` enumerates z over its candidates.

        :returns: the sampled values by site.
        """
        self._read(args, kwargs)
        with VisibilityMessenger(self._known_structure().site):
            return self._sample(args, kwargs)

    def _sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        structure = self._known_structure()
        with PlateMessenger(structure.plate) as opened:
            values = self.latent_values(*args, **kwargs)
        detached = {name: value.detach() for name, value in values.items()}
        posterior = self.posterior(*args, given=detached, **kwargs)
        q, per_row = self._distribution(posterior)
        infer: Any = {"enumerate": "parallel", "expand": per_row}
        scale = posterior.scale
        if isinstance(scale, Tensor):
            scale = self._in_plate(scale)
        with self._plate(posterior, opened.index), pyro.poutine.scale(scale=scale):
            # A mask of True changes nothing.
            mask: Any = True if posterior.mask is None else self._in_plate(posterior.mask)
            with pyro.poutine.mask(mask=mask):
                z = pyro.sample(structure.site, q, infer=infer)
        return {**values, structure.site: z}

    def _plate(self, posterior: Posterior, opened: Tensor | None) -> pyro.plate:
        """Return the data plate with the rows of the E-step.

        :param opened: rows of the plate if ``global_guide`` has opened it.
        """
        structure = self._known_structure()
        if opened is not None and not torch.equal(opened, posterior.index):
            raise ModelError(
                f"global_guide draws its own rows of plate {structure.plate!r}: give it "
                "create_plates=, a function that returns the model's plate"
            )
        # A second statement of the same plate would be a second site of its name.
        with pyro.poutine.block(hide=[] if opened is None else [structure.plate]):
            return pyro.plate(
                structure.plate, posterior.size, subsample=posterior.index, dim=structure.dim
            )

    def _distribution(self, posterior: Posterior) -> tuple[CandidateCategorical, bool]:
        """Return q(z) in the shape of the data plate, and whether rows have own candidates."""
        logits = self._in_plate(posterior.log_prob.T)
        if posterior.candidates.shape[1] == 1 and posterior.log_prob.shape[1] != 1:
            return CandidateCategorical(posterior.candidates[:, 0], logits), False
        return CandidateCategorical(self._in_plate(posterior.candidates.T), logits), True

    def _in_plate(self, rows: Tensor) -> Tensor:
        """Reshape (B, ...) to (B, 1, ..., 1, ...), with B at the dimension of the data plate."""
        dim = self._known_structure().dim
        return rows.reshape(rows.shape[:1] + (1,) * (-1 - dim) + rows.shape[1:])

    def reset_counts(self) -> None:
        """Reset the counts at the start of an epoch."""
        self.rows_won = torch.zeros(self.components, dtype=torch.int64, device="cpu")
        self._weight = 0.0

    @property
    def mean_weight(self) -> float:
        """Mean weight of the rows seen since :meth:`reset_counts`; 1 if none has any."""
        return self._weight / int(self.rows_won.sum()) if self._weight else 1.0

    @property
    def needs_all_rows(self) -> bool:
        """Whether an E-step needs all rows in one call, rather than batches."""
        return False

    def epoch_details(self) -> Mapping[str, Any]:
        """Return what a fit's history stores of an epoch besides the fields of ``Epoch``.

        :returns: plain numbers, strings or tuples by name, with the same names in every epoch.
        """
        return {}

    # EM calls the following methods after an update. Subclasses override those that they need.

    def drop_components(self, components: Tensor) -> None:
        """Note that the components marked True (C,) have weight zero from now on."""

    def reseed_component(self, component: int, like: int) -> None:
        """Note that ``component`` was re-seeded as a copy of ``like``."""

    def record_statistics(self, statistics: Mapping[str, Any], *, learned_weights: bool) -> None:
        """Note the sufficient statistics, by site, that the params now fit.

        :param learned_weights: whether the weights of the components are params.
        """

    def read(self, *args: Any, **kwargs: Any) -> ProgramStructure:
        """Return the structure of the program, which the first call reads with its arguments."""
        self._read(args, kwargs)
        return self._known_structure()

    def _read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.structure is None:
            structure = read_structure(self.model, self.site, args, dict(kwargs))
            if structure.components != self.components:
                raise OptionError(
                    f"the model's site {self.site!r} has {structure.components} components, but "
                    f"the guide was given components={self.components}"
                )
            self.structure = structure

    def _known_structure(self) -> ProgramStructure:
        assert self.structure is not None
        return self.structure

    def _check_rows(self, size: int) -> None:
        if self.components > size:
            raise DataError(
                f"{self.components} components for {size} rows: pass more rows, or fewer components"
            )
