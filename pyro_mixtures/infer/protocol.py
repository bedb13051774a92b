"""What strategies need of a guide; the guides themselves stand in a room above this one."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from pyro_mixtures.poutine import Declaration, Posterior, ReuseMessenger


class Guide(Protocol):
    """A guide of a mixture's z with its E-step: ``pyro_mixtures.guides.PartitionGuide`` is one."""

    components: int
    site: str
    training: bool
    searches: bool
    needs_all_rows: bool
    revives: bool
    objective: float
    moved: int
    revived: int
    search: bool
    evaluations: int
    wins: Tensor
    reuse: ReuseMessenger | None

    @property
    def model(self) -> Callable: ...

    @property
    def slots(self) -> int: ...

    def part_sizes(self) -> tuple[int, ...]: ...

    def row_order(self) -> Tensor | None: ...

    def read(self, *args: Any, **kwargs: Any) -> Declaration: ...

    def posterior(self, *args: Any, given: Mapping[str, Tensor] | None = None, **kwargs: Any) -> Posterior: ...

    def unseen(
        self, *args: Any, model: Callable | None = None, given: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> Posterior: ...

    def latent_values(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def reset_wins(self) -> None: ...

    @property
    def mean_weight(self) -> float: ...

    def dropped(self, components: Tensor) -> None: ...

    def reseeded(self, component: int, like: int) -> None: ...

    def fitted(self, statistics: Mapping[str, Any], *, learned_weights: bool) -> None: ...
