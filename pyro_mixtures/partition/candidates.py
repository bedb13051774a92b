"""Row state of q(z): the candidates of every row, one integer tensor (N, C') on the CPU."""

import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError


class CandidateSets:
    """Candidates of all rows: distinct components, the same number for each row.

    The state is one int32 tensor (N, C') on the CPU, for computations on any device. Batches of it
    are read and written by row number. It starts from random candidates.

    :param rows: N.
    :param components: C.
    :param candidates: C', number of candidates per row.
    :param generator: source of randomness, on the CPU.

    >>> generator = torch.Generator().manual_seed(0)
    >>> sets = CandidateSets(rows=100, components=20, candidates=3, generator=generator)
    >>> sets.read(torch.tensor([5, 7])).shape
    torch.Size([2, 3])
    """

    def __init__(self, *, rows: int, components: int, candidates: int, generator: torch.Generator):
        self.components = components
        self.table = random_sets(rows, components, candidates, generator)

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return len(self.table)

    def read(self, index: Tensor) -> Tensor:
        """Return the candidates (B, C') int32 of the rows ``index`` (B,), on the CPU."""
        return self.table[index.to(self.table.device)]

    def write(self, index: Tensor, sets: Tensor) -> None:
        """Replace the candidates of the rows ``index`` (B,) by ``sets`` (B, C')."""
        self.table[index.to(self.table.device)] = sets.to(self.table)

    def check(self) -> None:
        """Check the state.

        :raises PartitionError: when a candidate is out of range or listed twice.
        """
        ordered = self.table.sort(-1).values
        if bool((ordered < 0).any()) or bool((ordered >= self.components).any()):
            raise PartitionError(
                f"candidate sets contain components outside [0, {self.components})"
            )
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
        if bool(repeated.any()):
            row = int(repeated.nonzero()[0])
            raise PartitionError(
                f"the candidate set of row {row} lists a component twice: "
                f"{self.table[row].tolist()}"
            )


def random_sets(rows: int, components: int, candidates: int, generator: torch.Generator) -> Tensor:
    """Draw ``rows`` sets of ``candidates`` distinct numbers below ``components``.

    The sets are distinct without rejection: 0, 1, ..., C' - 1 is added to a sorted draw of numbers
    below C - C' + 1. They are not exactly uniform.

    :returns: (rows, candidates) int32, on the CPU.
    """
    limit = components - candidates + 1
    draws = torch.randint(
        limit, (rows, candidates), generator=generator, dtype=torch.int32, device="cpu"
    )
    return draws.sort(-1).values + torch.arange(candidates, dtype=torch.int32, device="cpu")
