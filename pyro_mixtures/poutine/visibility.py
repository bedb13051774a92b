"""Handlers that only watch: which sites an outer ``poutine.block`` hides, which rows a plate has."""

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.errors import ModelError


class PlateMessenger(Messenger):
    """Notes the row numbers of the plate named ``plate``: ``index`` (B,), or None if it was not opened."""

    def __init__(self, plate: str):
        super().__init__()
        self.plate = plate

    def __enter__(self):
        self.index: Tensor | None = None
        return super().__enter__()

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] == self.plate and site_is_subsample(msg):
            self.index = msg["value"]


class VisibilityMessenger(Messenger):
    """Raises ModelError when ``site`` is blocked outside and another site of the same run is not.

    A strategy whose z never reaches the inference algorithm would be silently wrong. (Blocking
    everything is how Pyro itself makes dry runs, and is let pass.)
    """

    def __init__(self, site: str):
        super().__init__()
        self.site = site

    def __enter__(self):
        self._hidden, self._others_visible = False, False
        return super().__enter__()

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] == self.site:
            self._hidden = msg["stop"]
        elif not msg["stop"]:
            self._others_visible = True

    def __exit__(self, *error):
        if error[0] is None and self._hidden and self._others_visible:
            raise ModelError(
                f"a poutine.block outside hides the site {self.site!r} from the inference: expose it, or wrap the "
                "strategy around the block instead"
            )
        return super().__exit__(*error)
