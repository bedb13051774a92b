"""Model-side truncation: enumerate z over each row's candidates only."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import RestrictedSupport
from pyro_mixtures.errors import ModelError
from pyro_mixtures.poutine.visibility import VisibilityMessenger


class TruncateMessenger(Messenger):
    """Restricts the support of a discrete site to candidates, and marks it for enumeration.

    Under ``TraceEnum_ELBO``, with a guide that leaves the site out, the loss is the negative
    truncated log evidence ``-sum_n log sum_{c in K_n} p(c, x_n)``.

    :param site: name of the discrete site.
    :param candidates: (B, S) component numbers; -1 pads.
    :raises ModelError: at the end of a run without the site.

    >>> import pyro, torch
    >>> from pyro import distributions as dist
    >>> from pyro.infer import TraceEnum_ELBO
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.25, 0.25])))
    ...         pyro.sample("x", dist.Normal(torch.tensor([0.0, 1.0, 2.0])[z], 1.0), obs=x)
    >>> x, candidates = torch.zeros(2), torch.tensor([[0, 1], [0, 2]])
    >>> loss = TraceEnum_ELBO().loss(truncate(model, "z", candidates), lambda x: None, x)
    >>> round(loss, 4)
    2.8938
    """

    def __init__(self, site: str, candidates: Tensor):
        super().__init__()
        self.site, self.candidates = site, candidates

    def __enter__(self) -> "TruncateMessenger":
        self._found = False
        super().__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._found and exc_type is None:
            raise ModelError(f"truncate: the model has no visible sample site {self.site!r}")
        super().__exit__(exc_type, exc_value, traceback)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site:
            return
        self._found = True
        msg["fn"] = RestrictedSupport(msg["fn"], self.candidates, mask=msg["mask"])
        msg["infer"] = {**(msg["infer"] or {}), "enumerate": "parallel", "expand": True}


def truncate(model: Callable[..., Any], site: str, candidates: Tensor) -> Callable[..., Any]:
    """Restrict the support of a discrete site to candidates: see :class:`TruncateMessenger`.

    :param model: the Pyro program.
    :param site: name of its discrete site.
    :param candidates: (B, S) component numbers; -1 pads.
    :returns: the program with the restricted site, marked for enumeration.
    :raises ModelError: in a run, when the site is absent, or when an outer ``poutine.block`` hides
        it from the inference.
    """
    wrapped: Callable[..., Any] = VisibilityMessenger(site)(
        TruncateMessenger(site, candidates)(model)
    )
    return wrapped
