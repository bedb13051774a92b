"""Assignment of rows to parts of bounded size, of least total cost or greedily."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.ops.kernels import numba_transport

METHODS = ("optimal", "greedy")


def assign(cost: Tensor, *, most: int | None = None, least: int = 0, method: str = "optimal") -> Tensor:
    r"""Component (N,) int64, on the CPU, of each row at ``cost`` (N, C); each has ``least`` to ``most`` rows.

    :param cost: float; +inf forbids a pair of row and component.
    :param most: most rows of a component; None for no limit. ``least``: fewest.
    :param method: ``"optimal"`` for the least total cost, ``"greedy"`` to accept the pairs in the order of their cost
        as long as there is room. A greedy pair is refused when its component is full, or has ``least`` rows while the
        rows left are only just enough for those that have fewer.
    :raises OptionError: when an option has an impossible value.
    :raises DataError: when the cost is NaN or -inf, when N rows do not fit the bounds, or when no assignment of finite
        cost does; ``"greedy"`` also when it has used up the components that a row may have, though others may be left.

    Without bounds, and wherever they hold by themselves, each row has its cheapest component, the first among equals.
    Otherwise the optimum is that of a transportation problem, which is found by successive shortest paths (Ahuja,
    Magnanti and Orlin, Network Flows, 1993, section 9.7): from the cheapest components, rows too many or too few are
    passed on one by one in the graph of the C components, whose edge :math:`k \to j` costs
    :math:`\min_{i \in k} c_{ij} - c_{ik}`, kept in a heap. Only rows that must move cost time, about C² + C log N each,
    where a linear program has N C unknowns and duplicated columns make an N x N matrix; if many must, prices of the
    components found on every fourth row leave few. Memory is that of one more cost matrix, in int32. The optimum is
    exact up to the rounding of float64. Equal input has equal output.

    >>> cost = torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0]])
    >>> assign(cost, most=2)
    tensor([0, 1, 0])
    >>> assign(cost, least=1, most=2, method="greedy")
    tensor([0, 0, 1])
    """
    rows, components = _check(cost, most, least, method)
    most = rows if most is None else min(most, rows)
    # Components first: the kernels run along rows.
    table = cost.detach().to("cpu").T.contiguous()
    table = table if table.dtype in (torch.float32, torch.float64) else table.float()
    labels = _cheapest(table)
    sizes = torch.bincount(labels, minlength=components)
    if int(sizes.min()) >= least and int(sizes.max()) <= most:
        return labels
    if method == "greedy":
        return _greedy(table, most, least)
    return _optimal(table, most, least)


def _check(cost: Tensor, most: int | None, least: int, method: str) -> tuple[int, int]:
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    if least < 0 or (most is not None and most < max(1, least)):
        raise OptionError(f"most={most} and least={least}: give 0 <= least <= most, and room for one row")
    if cost.dim() != 2 or not cost.shape[1] or not cost.is_floating_point():
        raise DataError(f"cost must be floating-point numbers (N, C), not {cost.dtype} {tuple(cost.shape)}")
    rows, components = cost.shape
    if most is not None and most * components < rows:
        raise DataError(f"{components} components of at most most={most} rows hold {most * components}, not {rows}")
    if least * components > rows:
        raise DataError(f"{components} components of at least least={least} rows need {least * components}, not {rows}")
    return rows, components


def _cheapest(table: Tensor) -> Tensor:
    """First component (N,) of least cost in each column of ``table`` (C, N)."""
    least, labels = table.min(0)
    if bool(least.isfinite().all()):
        return labels
    row = int((~least.isfinite()).nonzero()[0])
    given = table[:, row]
    if bool(given.isnan().any()):
        raise DataError(f"the cost of row {row} is NaN in component {int(given.isnan().nonzero()[0])}")
    if float(least[row]) < 0:
        raise DataError(f"the cost of row {row} is -inf in component {int(labels[row])}; only +inf may be infinite")
    raise DataError(f"the cost of row {row} is +inf in every component: leave the row out, or allow it one")


def _optimal(table: Tensor, most: int, least: int) -> Tensor:
    price = _prices(table, most, least)
    labels, flow, balance = _start(table, most, least, price)
    reached = np.zeros(len(price), np.bool_)
    if not numba_transport.transport(table.numpy(), most, least, price, labels, flow, balance, reached):
        raise _infeasible(labels, reached, most, least)
    return torch.from_numpy(labels)


def _prices(table: Tensor, most: int, least: int) -> np.ndarray:
    """Prices (C + 1,) to start from: those of every fourth row's optimum, where many rows have to move."""
    components, rows = table.shape
    sizes = np.bincount(table.min(0).indices.numpy(), minlength=components)
    excess = max(np.maximum(sizes - most, 0).sum(), np.maximum(least - sizes, 0).sum())
    # Prices of a sample leave about sqrt(N C) rows to move.
    if excess**2 <= 4 * rows * components:
        return np.zeros(components + 1)
    sample = table[:, ::4].contiguous()
    share = sample.shape[1] / rows
    most, least = math.ceil(most * share), math.floor(least * share)
    price = _prices(sample, most, least)
    labels, flow, balance = _start(sample, most, least, price)
    # Where the sample has no solution, the prices reached are as good as any to start from.
    numba_transport.transport(sample.numpy(), most, least, price, labels, flow, balance, np.zeros(len(price), np.bool_))
    # Rounding must not make a component look full that is not.
    low, high = np.where(flow < most, price[-1], -np.inf), np.where(flow > least, price[-1], np.inf)
    return np.append(price[:-1].clip(low, high), price[-1])


def _start(table: Tensor, most: int, least: int, price: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of the rows at the prices, whatever the sizes; the flow that fits the prices; the nodes' balance."""
    labels = np.zeros(table.shape[1], np.int64)
    numba_transport.choose(table.numpy(), price, labels)
    sizes, outside = np.bincount(labels, minlength=len(table)), price[-1]
    flow = sizes.clip(np.where(price[:-1] < outside, most, least), np.where(price[:-1] > outside, least, most))
    return labels, flow, np.append(sizes - flow, flow.sum() - len(labels))


def _infeasible(labels: np.ndarray, reached: np.ndarray, most: int, least: int) -> DataError:
    """What forbids every assignment: the nodes ``reached`` (C + 1,) have rows too many, but no edge leaves them."""
    inside, sizes = reached[:-1], np.bincount(labels, minlength=len(reached) - 1)
    if reached[-1]:
        short, held = np.flatnonzero(~inside).tolist(), sizes[~inside].sum()
        return DataError(
            f"components {short} need {least * len(short)} rows, least={least} each, but at most {held} rows can have "
            "finite costs there: lower least, or allow them more rows"
        )
    closed, held = np.flatnonzero(inside).tolist(), sizes[inside].sum()
    return DataError(
        f"{held} rows have finite costs in components {closed} only, which hold {most * len(closed)} rows, most={most} "
        "each: raise most, or allow these rows others"
    )


def _greedy(table: Tensor, most: int, least: int) -> Tensor:
    # Row after row, so that equal costs are met in the order of rows, then of components.
    order = table.T.reshape(-1).argsort(stable=True)
    labels = torch.full((table.shape[1],), -1, dtype=torch.int64, device="cpu")
    numba_transport.fill(table.numpy(), order.numpy(), most, least, labels.numpy())
    left = int((labels < 0).sum())
    if left:
        raise DataError(
            f"greedy filling (least={least}, most={most}) leaves {left} of {len(labels)} rows without a component of "
            'finite cost: method="optimal" finds places for them if there are any'
        )
    return labels
