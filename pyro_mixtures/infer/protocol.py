"""What strategies need of a guide; the guides themselves stand in a room above this one."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from pyro_mixtures.poutine import Posterior, ProgramStructure, ReuseMessenger


class Guide(Protocol):
    """A guide of a mixture's z with its E-step: ``pyro_mixtures.guides.PartitionGuide`` is one."""

    components: int
    site: str
    training: bool
    searches: bool
    needs_all_rows: bool
    reseeds: bool
    objective: float
    moved: int
    reseeded: int
    search: bool
    evaluations: int
    rows_won: Tensor
    reuse: ReuseMessenger | None

    @property
    def model(self) -> Callable: ...

    @property
    def evaluations_per_row(self) -> int: ...

    def cluster_sizes(self) -> tuple[int, ...]: ...

    def row_order(self) -> Tensor | None: ...

    def read(self, *args: Any, **kwargs: Any) -> ProgramStructure: ...

    def posterior(
        self, *args: Any, given: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> Posterior: ...

    def posterior_of_new_rows(
        self,
        *args: Any,
        model: Callable | None = None,
        given: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Posterior: ...

    def latent_values(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def reset_counts(self) -> None: ...

    @property
    def mean_weight(self) -> float: ...

    def drop_components(self, components: Tensor) -> None: ...

    def reseed_component(self, component: int, like: int) -> None: ...

    def record_statistics(
        self, statistics: Mapping[str, Any], *, learned_weights: bool
    ) -> None: ...
