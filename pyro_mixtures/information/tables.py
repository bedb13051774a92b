"""Hypercontractivity coefficient of a finite joint distribution."""

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError
from pyro_mixtures.information.variables import Array
from pyro_mixtures.options import check_whole

# Divergences from p below this are dominated by rounding; the limit r -> p is computed separately.
_MIN_DIVERGENCE = 1e-6
_MAX_VERTICES = 32  # symbols of X from which ascents start
_VERTEX_MIXTURES = (1e-3, 0.1, 0.5)  # shares of p in the starts near a vertex
_BORDER_FRACTIONS = (0.03, 0.1, 0.3, 0.9)  # of the way from p to the border, on singular vectors
_STRIDES = (1.0, 10.0, 100.0, 1000.0)  # multiples of the basic step, which is slow on plateaus
_TINY = 1e-300  # keeps logarithms and quotients finite


def hypercontractivity_of_table(joint: Array, *, steps: int = 200, starts: int = 32) -> float:
    """Compute the hypercontractivity coefficient s(X; Y) of a table p(x, y).

    s(X; Y) is the supremum over r != p of D(r_Y || p_Y) / D(r || p), with p the distribution of X
    and r_Y = sum_x r(x) p(y | x). It is 0 for independent variables, 1 if X and Y have a common
    non-constant function, and asymmetric.

    Near r = p, with r = p (1 + e f), the ratio becomes E[E[f | Y]^2] / E[f^2]. Its maximum is the
    squared second singular value of p(x, y) / sqrt(p(x) p(y)), which is the squared maximal
    correlation. The supremum may also be attained elsewhere, inside the simplex or on its border.
    From each start r is moved by ::

        r <- p exp(g / s) / Z,   g(x) = sum_y p(y | x) log(r_Y(y) / p_Y(y)),
                                 s = D(r_Y || p_Y) / D(r || p)

    which maximizes <g, r> - s D(r || p). D(r_Y || p_Y) is convex with gradient g, so it lies above
    its tangent, and D(r_Y || p_Y) - s D(r || p) does not fall below its current value 0: the ratio
    never decreases, and no step size is needed. Longer steps in log r are also tried, and the best
    one is taken. The starts are the 32 symbols of X with the largest ratios, mixtures of these
    with p, points from p along singular vectors, and ``starts`` random distributions of a fixed
    seed. The run time is of order ``steps * a * b * (150 + starts)``.

    :param joint: (a, b) tensor, array or lists, non-negative; it is divided by its sum. Symbols of
        probability zero are left out.
    :param steps: number of ascent steps.
    :param starts: number of random starts.
    :returns: the coefficient, between 0 and 1.
    :raises DataError: for another shape, negative or non-finite entries, or an empty table.
    :raises OptionError: if ``steps`` or ``starts`` is not a positive whole number.

    Ahlswede & Gács, "Spreading of sets in product spaces and hypercontraction of the Markov
    operator", Ann. Probab. 4 (1976); Anantharam, Gohari, Kamath & Nair, "On maximal correlation,
    hypercontractivity, and the data processing inequality", arXiv:1304.6133 (2013). As a measure of
    dependence: Kim, Gao, Kannan, Oh & Viswanath, NeurIPS 2017.

    >>> flip = 0.1  # binary symmetric channel: (1 - 2 flip)^2
    >>> round(hypercontractivity_of_table([[1 - flip, flip], [flip, 1 - flip]]), 4)
    0.64
    """
    check_whole(steps=steps, starts=starts)
    p = _normalized_table(joint)
    if 1 in p.shape:
        return 0.0
    functions, correlations = _canonical_correlations(p)
    r = _starting_points(p, functions, starts)
    ratio = _ratio(p, r)
    for _ in range(steps):
        r, ratio = _ascend(p, r, ratio)
    limit_at_p = float(correlations[1].square())
    return min(1.0, max(limit_at_p, float(ratio.max())))


def _normalized_table(values: Array) -> Tensor:
    joint = as_rows(values).detach()
    if joint.dim() != 2 or not joint.numel() or joint.is_complex():
        raise DataError(
            f"a joint table must be (a, b) real numbers, not {tuple(joint.shape)} {joint.dtype}"
        )
    p = joint.double()
    if not bool((p.isfinite() & (p >= 0)).all()) or not bool(p.sum() > 0):
        raise DataError(
            "a joint table must hold probabilities or counts: finite, not negative, not all zero"
        )
    return (p / p.sum())[p.sum(1) > 0][:, p.sum(0) > 0]


def _canonical_correlations(p: Tensor) -> tuple[Tensor, Tensor]:
    """Functions f (a, m) of X with E[f^2] = 1, and their correlations (m,) with functions of Y.

    The first function is constant.
    """
    root = p.sum(1, keepdim=True).sqrt()
    left, values, _ = torch.linalg.svd(p / root / p.sum(0).sqrt(), full_matrices=False)
    return left / root, values


def _starting_points(joint: Tensor, functions: Tensor, starts: int) -> Tensor:
    """Distributions (a, S) over X: vertices, points near them, along functions, and random ones."""
    p = joint.sum(1)
    vertices, center = _best_vertices(joint), p.unsqueeze(-1)
    near_vertices = [(1 - share) * vertices + share * center for share in _VERTEX_MIXTURES]
    directions = torch.cat([functions[:, 1:4], -functions[:, 1:4]], 1)
    to_border = directions / directions.amin(0)
    along_functions = [center * (1 - fraction * to_border) for fraction in _BORDER_FRACTIONS]
    fixed = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(p), starts, dtype=p.dtype, device="cpu", generator=fixed)
    exponential = -_log(uniform).to(p.device)
    random = exponential / exponential.sum(0)
    return torch.cat([vertices, *near_vertices, *along_functions, random], 1)


def _best_vertices(p: Tensor) -> Tensor:
    """The symbols of X (a, S) with the largest ratios D(p(y | x) || p_Y) / -log p(x), one-hot."""
    p_x, p_y = p.sum(1), p.sum(0)
    ratio = _divergence((p / p_x.unsqueeze(-1)).mT, p_y) / -p_x.log()
    best = ratio.topk(min(len(p), _MAX_VERTICES)).indices.sort().values
    return torch.nn.functional.one_hot(best, len(p)).mT.to(p)


def _divergence(r: Tensor, p: Tensor) -> Tensor:
    """D(r || p) of columns, as a sum of non-negative terms: accurate to rounding near p too."""
    return (torch.special.xlogy(r, r / p.unsqueeze(-1)) - r + p.unsqueeze(-1)).sum(0)


def _ratio(p: Tensor, r: Tensor) -> Tensor:
    """D(r_Y || p_Y) / D(r || p) (S,); 0 if r is too close to p."""
    p_x, p_y = p.sum(1), p.sum(0)
    input_divergence = _divergence(r, p_x)
    output_divergence = _divergence((p / p_x.unsqueeze(-1)).mT @ r, p_y)
    return torch.where(
        input_divergence > _MIN_DIVERGENCE, output_divergence / input_divergence, 0.0
    )


def _ascend(p: Tensor, r: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """The next r (a, S) and their ratios: the best step of each start, or none if none improves."""
    p_x, p_y = p.sum(1), p.sum(0)
    conditional = p / p_x.unsqueeze(-1)
    gradient = conditional @ _log((conditional.mT @ r) / p_y.unsqueeze(-1))
    step = p_x.log().unsqueeze(-1) + gradient / ratio.clamp_min(_TINY) - _log(r)
    moved = [torch.softmax(_log(r) + stride * step, 0) for stride in _STRIDES]
    ratios = torch.stack([ratio] + [_ratio(p, candidate) for candidate in moved])
    best_ratio, choice = ratios.max(0)
    best = torch.stack([r, *moved]).gather(0, choice.expand(1, *r.shape))[0]
    return best, best_ratio


def _log(positive: Tensor) -> Tensor:
    return positive.clamp_min(_TINY).log()
