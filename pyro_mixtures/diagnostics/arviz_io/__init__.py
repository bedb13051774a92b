"""Conversion of fits, restarts, bootstrap refits and MCMC samples to ArviZ data.

``to_arviz.py`` has the public function. It reads any source of draws into chains
(``sources.py``, ``chains.py``), aligns labels (``relabeling.py``), forms the groups
(``posterior.py``, ``groups.py``) and puts them into ArviZ's container (``container.py``).
"""

from pyro_mixtures.diagnostics.arviz_io.to_arviz import to_arviz

__all__ = ["to_arviz"]
