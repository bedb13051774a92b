"""Model-side truncation: enumerate z over each row's candidates only."""

from collections.abc import Callable

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import RestrictedSupport
from pyro_mixtures.errors import ModelError
from pyro_mixtures.poutine.visibility import VisibilityMessenger


class TruncateMessenger(Messenger):
    """Restricts the support of one discrete site to ``candidates`` (B, S); -1 pads. Marks it for enumeration.

    Under ``TraceEnum_ELBO`` with a guide that leaves the site alone, the loss is the truncated
    evidence ``-sum_n log sum_{c in K_n} p(c, x_n)``.

    >>> import pyro, torch
    >>> from pyro.infer import TraceEnum_ELBO
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", pyro.distributions.Categorical(torch.tensor([0.5, 0.25, 0.25])))
    ...         pyro.sample("x", pyro.distributions.Normal(torch.tensor([0.0, 1.0, 2.0])[z], 1.0), obs=x)
    >>> x, candidates = torch.zeros(2), torch.tensor([[0, 1], [0, 2]])
    >>> loss = TraceEnum_ELBO().loss(truncate(model, "z", candidates), lambda x: None, x)
    >>> round(loss, 4)
    2.8938
    """

    def __init__(self, site: str, candidates: Tensor):
        super().__init__()
        self.site, self.candidates = site, candidates

    def __enter__(self):
        self._seen = False
        return super().__enter__()

    def __exit__(self, *error):
        if not self._seen and error[0] is None:
            raise ModelError(f"truncate: the model has no visible sample site {self.site!r}")
        return super().__exit__(*error)

    def _pyro_sample(self, msg) -> None:
        if msg["name"] != self.site:
            return
        self._seen = True
        msg["fn"] = RestrictedSupport(msg["fn"], self.candidates, mask=msg["mask"])
        msg["infer"] = {**(msg["infer"] or {}), "enumerate": "parallel", "expand": True}


def truncate(model: Callable, site: str, candidates: Tensor) -> Callable:
    """``model`` with the support of ``site`` restricted to ``candidates`` (B, S): see :class:`TruncateMessenger`.

    :raises ModelError: when the site is absent, or a ``poutine.block`` outside hides it from the
        inference.
    """
    return VisibilityMessenger(site)(TruncateMessenger(site, candidates)(model))
