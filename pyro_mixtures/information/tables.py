"""Hypercontractivity coefficient of a finite joint distribution."""

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError
from pyro_mixtures.information.variables import Array
from pyro_mixtures.options import check_whole

_NEAR = 1e-6  # divergences from p below this are ratios of rounding errors; the limit r -> p covers them
_VERTICES = 32  # symbols of X, at most, that ascents start from
_MIX = (1e-3, 0.1, 0.5)  # of p in starts that begin near a vertex
_ALONG = (0.03, 0.1, 0.3, 0.9)  # of the way from p to the border, along singular vectors
_STRIDES = (
    1.0,
    10.0,
    100.0,
    1000.0,
)  # of the plain step, which is a slow one where the ratio is flat


def hypercontractivity_of_table(joint: Array, *, steps: int = 200, starts: int = 32) -> float:
    """s(X; Y) = sup over r != p of D(r_Y || p_Y) / D(r || p), r_Y = sum_x r(x) p(y | x), of a table p(x, y).

    It is 0 for independent variables, 1 where X and Y share a part, and asymmetric. Near r = p,
    with r = p (1 + e f), the ratio becomes E[E[f | Y]^2] / E[f^2], at most the squared second
    singular value of p(x, y) / sqrt(p(x) p(y)), which is the squared maximal correlation. Besides
    this limit the supremum may be attained inside or on the border of the simplex. From each start
    r is moved by ::

        r <- p exp(g / s) / Z,   g(x) = sum_y p(y | x) log(r_Y(y) / p_Y(y)),   s = D(r_Y || p_Y) /
        D(r || p)

    which maximises <g, r> - s D(r || p). As D(r_Y || p_Y) is convex with gradient g, it lies above
    its tangent, so D(r_Y || p_Y) - s D(r || p) does not fall below its present value 0: the ratio
    never decreases, without step size. Longer strides in log r are tried too, and the best is kept.
    Starts: the 32 symbols of X whose own ratio is largest, near them, from p along singular
    vectors, and ``starts`` random ones of a fixed seed. Time is of order ``steps`` a b (150 +
    ``starts``).

    :param joint: (a, b) tensor, array or lists, non-negative; it is divided by its sum. Symbols
        without mass do not count.
    :raises DataError: for another shape, negative or non-finite entries, or an empty table.
    :raises OptionError: for ``steps`` or ``starts`` that are not whole or below one.

    Ahlswede & Gács, "Spreading of sets in product spaces and hypercontraction of the Markov
    operator", Ann. Probab. 4 (1976); Anantharam, Gohari, Kamath & Nair, "On maximal correlation,
    hypercontractivity, and the data processing inequality", arXiv:1304.6133 (2013); as a measure of
    dependence, Kim, Gao, Kannan, Oh & Viswanath, NeurIPS 2017.

    >>> flip = 0.1  # binary symmetric channel: (1 - 2 flip)^2
    >>> round(hypercontractivity_of_table(torch.tensor([[1 - flip, flip], [flip, 1 - flip]], device="cpu")), 4)
    0.64
    """
    check_whole(steps=steps, starts=starts)
    p = _checked(joint)
    if 1 in p.shape:
        return 0.0
    vectors, values = _correlations(p)
    r = _first_guesses(p, vectors, starts)
    best = _ratio(p, r)
    for _ in range(steps):
        r, best = _better(p, r, best)
    return min(1.0, max(float(values[1].square()), float(best.max())))


def _checked(given: Array) -> Tensor:
    joint = as_rows(given).detach()
    if joint.dim() != 2 or not joint.numel() or joint.is_complex():
        raise DataError(
            f"a joint table is (a, b) real numbers, not {tuple(joint.shape)} {joint.dtype}"
        )
    p = joint.double()
    if not bool((p.isfinite() & (p >= 0)).all()) or not bool(p.sum() > 0):
        raise DataError(
            "a joint table holds probabilities or counts: finite, not negative, not all zero"
        )
    return (p / p.sum())[p.sum(1) > 0][:, p.sum(0) > 0]


def _correlations(p: Tensor) -> tuple[Tensor, Tensor]:
    """Functions f (a, m) of X with E[f^2] = 1, constant first, and their correlations (m,) with functions of Y."""
    root = p.sum(1, keepdim=True).sqrt()
    left, values, _ = torch.linalg.svd(p / root / p.sum(0).sqrt(), full_matrices=False)
    return left / root, values


def _first_guesses(joint: Tensor, vectors: Tensor, starts: int) -> Tensor:
    """Distributions (a, S) over X: some symbols and near them, from p along the first functions, random ones."""
    p = joint.sum(1)
    vertices, centre = _vertices(joint), p.unsqueeze(-1)
    near = [(1 - mix) * vertices + mix * centre for mix in _MIX]
    both = torch.cat([vectors[:, 1:4], -vectors[:, 1:4]], 1)
    along = [centre * (1 - t * both / both.amin(0)) for t in _ALONG]
    uniform = torch.rand(
        len(p), starts, dtype=p.dtype, device="cpu", generator=torch.Generator().manual_seed(0)
    )
    exponential = -_log(uniform).to(p.device)
    return torch.cat([vertices, *near, *along, exponential / exponential.sum(0)], 1)


def _vertices(p: Tensor) -> Tensor:
    """The symbols of X (a, S) whose own ratios D(p(y | x) || p_Y) / -log p(x) are largest."""
    p_x, p_y = p.sum(1), p.sum(0)
    ratio = _divergence((p / p_x.unsqueeze(-1)).mT, p_y) / -p_x.log()
    best = ratio.topk(min(len(p), _VERTICES)).indices.sort().values
    return torch.nn.functional.one_hot(best, len(p)).mT.to(p)


def _divergence(r: Tensor, p: Tensor) -> Tensor:
    """D(r || p) of columns, as a sum of non-negative terms: exact to rounding near p too."""
    return (torch.special.xlogy(r, r / p.unsqueeze(-1)) - r + p.unsqueeze(-1)).sum(0)


def _ratio(p: Tensor, r: Tensor) -> Tensor:
    """D(r_Y || p_Y) / D(r || p) (S,); 0 where r is too near p."""
    p_x, p_y = p.sum(1), p.sum(0)
    below = _divergence(r, p_x)
    ratio = _divergence((p / p_x.unsqueeze(-1)).mT @ r, p_y) / below
    return torch.where(below > _NEAR, ratio, 0.0)


def _better(p: Tensor, r: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The next r (a, S) and their ratios: the best stride of each start, or where it is if none is better."""
    p_x, p_y = p.sum(1), p.sum(0)
    given_x = p / p_x.unsqueeze(-1)
    log_ratio = _log((given_x.mT @ r) / p_y.unsqueeze(-1))
    step = p_x.log().unsqueeze(-1) + given_x @ log_ratio / s.clamp_min(1e-300) - _log(r)
    tried = [r] + [torch.softmax(_log(r) + stride * step, 0) for stride in _STRIDES]
    ratios = torch.stack([s] + [_ratio(p, there) for there in tried[1:]])
    best, at = ratios.max(0)
    return torch.stack(tried).gather(0, at.expand(1, *r.shape))[0], best


def _log(positive: Tensor) -> Tensor:
    return positive.clamp_min(1e-300).log()
