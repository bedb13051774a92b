"""Assignment of rows to parts of bounded size, of least total cost."""

from torch import Tensor

METHODS = ("optimal", "greedy")


def assign(cost: Tensor, *, most: int | None = None, least: int = 0, method: str = "optimal") -> Tensor:
    """Component (N,) of each row at ``cost`` (N, C), parts having between ``least`` and ``most`` rows."""
    raise NotImplementedError
