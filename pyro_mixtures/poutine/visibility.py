"""Handlers that only observe a run: which sites are hidden, and which rows a plate has."""

from types import TracebackType
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.errors import ModelError


class PlateMessenger(Messenger):
    """Records the row numbers of a plate.

    After a run, ``index`` (B,) holds them, or None if the plate was not opened.

    :param plate: name of the plate.

    >>> import pyro
    >>> with PlateMessenger("data") as opened:
    ...     with pyro.plate("data", 3):
    ...         pass
    >>> opened.index
    tensor([0, 1, 2])
    """

    def __init__(self, plate: str):
        super().__init__()
        self.plate = plate

    def __enter__(self) -> "PlateMessenger":
        self.index: Tensor | None = None
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and site_is_subsample(msg):
            self.index = msg["value"]


class VisibilityMessenger(Messenger):
    """Raises an error if an outer ``poutine.block`` hides a site, but not the others of the run.

    A strategy whose z does not reach the inference algorithm would be wrong without notice.
    Pyro itself hides all sites in dry runs, which is allowed.

    :param site: name of the site.
    :raises ModelError: at the end of such a run.

    >>> import pyro, torch
    >>> def model():
    ...     z = pyro.sample("z", pyro.distributions.Bernoulli(0.5))
    ...     pyro.sample("x", pyro.distributions.Normal(z, 1.0))
    >>> with pyro.poutine.block(hide=["z"]), VisibilityMessenger("z"):
    ...     model()
    Traceback (most recent call last):
    ...
    pyro_mixtures.errors.ModelError: a poutine.block outside hides the site 'z' ...
    """

    def __init__(self, site: str):
        super().__init__()
        self.site = site

    def __enter__(self) -> "VisibilityMessenger":
        self._hidden, self._others_visible = False, False
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            self._hidden = msg["stop"]
        elif not msg["stop"]:
            self._others_visible = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None and self._hidden and self._others_visible:
            raise ModelError(
                f"a poutine.block outside hides the site {self.site!r} from the inference: "
                "expose it, or wrap the strategy around the block instead"
            )
        super().__exit__(exc_type, exc_value, traceback)
