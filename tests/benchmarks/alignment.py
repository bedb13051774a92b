"""Alignment of the labels of many fits, compared with the dense Hungarian method.

Run ``python -m tests.benchmarks.alignment``. For each number of components it prints the seconds of
an alignment by responsibilities and by parameters, the share of components that received their
planted label, and the ratio of the seconds of the dense peer to ours.
"""

import argparse
import time

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from pyro_mixtures.diagnostics.alignment import align, overlap
from pyro_mixtures.infer import Responsibilities


def planted(fits: int, components: int, rows: int, candidates: int, seed: int):
    """Return the responsibilities of a reference and of permuted fits, and their orders."""
    generator = torch.Generator().manual_seed(seed)
    winner = torch.arange(rows).remainder(components).unsqueeze(1)
    others = (winner + 1 + torch.arange(candidates - 1)) % components
    probs = torch.rand(rows, candidates, generator=generator).sort(-1, descending=True).values
    reference = Responsibilities(
        torch.cat([winner, others], 1), probs / probs.sum(-1, keepdim=True)
    )
    orders = torch.stack([torch.randperm(components, generator=generator) for _ in range(fits)])
    return (
        reference,
        [reference._replace(components=order[reference.components]) for order in orders],
        orders,
    )


def dense(fits, reference, components: int) -> np.ndarray:
    """Align by the peer: a dense overlap matrix, filled by numpy, and scipy's Hungarian method."""
    orders = []
    for fit in fits:
        table = np.zeros((components, components))
        for s in range(fit.probs.shape[1]):
            for t in range(fit.probs.shape[1]):
                where = (reference.components[:, s].numpy(), fit.components[:, t].numpy())
                np.add.at(table, where, (reference.probs[:, s] * fit.probs[:, t]).numpy())
        orders.append(linear_sum_assignment(table, maximize=True)[1])
    return np.stack(orders)


def timed(work):
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def main() -> None:
    """Print seconds, their ratio, and the share of components with their planted label."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=50)
    parser.add_argument("--components", type=int, nargs="+", default=[500, 2000, 5000])
    parser.add_argument("--rows-per-component", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument(
        "--peer-fits",
        type=int,
        default=3,
        help="number of fits that the dense peer aligns; its time is scaled up (3)",
    )
    options = parser.parse_args()
    print("components  responsibilities s  right  dense peer s  ratio   parameters s  right")
    for components in options.components:
        rows = components * options.rows_per_component
        reference, fits, orders = planted(options.fits, components, rows, options.candidates, 0)
        overlap(fits[0], reference, components)  # warm up
        aligned, seconds = timed(lambda: align(fits, reference, components=components))  # noqa: B023
        peer_fits = fits[: options.peer_fits]
        _, peer = timed(lambda: dense(peer_fits, reference, components))  # noqa: B023
        peer *= options.fits / len(peer_fits)
        loc = torch.randn(components, 16, generator=torch.Generator().manual_seed(1))
        shuffled = [loc[order.argsort()] for order in orders]
        by_loc, loc_seconds = timed(lambda: align(shuffled, loc))  # noqa: B023
        right = [float((p == orders).double().mean()) for p in (aligned, by_loc)]
        print(
            f"{components:10d}  {seconds:18.2f}  {right[0]:5.3f}  {peer:12.2f}  "
            f"{peer / seconds:5.1f}  "
            f"{loc_seconds:12.2f}  {right[1]:6.3f}"
        )


if __name__ == "__main__":
    main()
