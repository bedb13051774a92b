"""Effect handlers that exclude observed sites from the likelihood, or set latent sites."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor


class IgnoreSitesMessenger(Messenger):
    """Exclude observed sites from the likelihood."""

    def __init__(self, sites: frozenset[str]):
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["mask"] = False


class SetLatentsMessenger(Messenger):
    """Set the values of latent sites without observing them."""

    def __init__(self, values: Mapping[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
