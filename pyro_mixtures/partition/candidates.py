"""Row state of q(z): the candidate set of every row, one integer tensor (N, C') on the CPU."""

import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError


class CandidateSets:
    """Candidate sets K_n of ``rows`` rows: ``candidates`` distinct components of ``components`` each.

    The state is one int32 tensor (N, C') on the CPU whatever the device of the computation; batches
    of it are read and written by row number. Starts from random sets.

    >>> sets = CandidateSets(rows=100, components=20, candidates=3, generator=torch.Generator().manual_seed(0))
    >>> sets.read(torch.tensor([5, 7])).shape
    torch.Size([2, 3])
    """

    def __init__(self, *, rows: int, components: int, candidates: int, generator: torch.Generator):
        self.components = components
        self.table = random_sets(rows, components, candidates, generator)

    @property
    def rows(self) -> int:
        """N."""
        return len(self.table)

    def read(self, index: Tensor) -> Tensor:
        """Candidate sets (B, C') int32 of the rows ``index``, on the CPU."""
        return self.table[index.to(self.table.device)]

    def write(self, index: Tensor, sets: Tensor) -> None:
        """Replace the sets of the rows ``index`` by ``sets`` (B, C'), each of distinct components."""
        self.table[index.to(self.table.device)] = sets.to(self.table)

    def check(self) -> None:
        """:raises PartitionError: when a stored set is out of range or lists a component twice."""
        ordered = self.table.sort(-1).values
        if bool((ordered < 0).any()) or bool((ordered >= self.components).any()):
            raise PartitionError(f"candidate sets hold components outside [0, {self.components})")
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
        if bool(repeated.any()):
            row = int(repeated.nonzero()[0])
            raise PartitionError(
                f"the candidate set of row {row} lists a component twice: {self.table[row].tolist()}"
            )


def random_sets(rows: int, components: int, candidates: int, generator: torch.Generator) -> Tensor:
    """``rows`` sets of ``candidates`` distinct numbers below ``components``, int32 on the CPU, as good as random.

    A sorted draw of numbers below C - C' + 1 plus 0, 1, ..., C' - 1 is distinct and needs no
    rejection.
    """
    top = components - candidates + 1
    draws = torch.randint(
        top, (rows, candidates), generator=generator, dtype=torch.int32, device="cpu"
    )
    return draws.sort(-1).values + torch.arange(candidates, dtype=torch.int32, device="cpu")
