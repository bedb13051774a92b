"""Pictures of rows that are images: component means as a sheet, before and after denoising."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from pyro_mixtures.diagnostics.plots.drawing import Array, figure, to_array, to_finite
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.options import check_number, check_whole

_CONTRASTS = ("shared", "each")
_NAMES = ("Noisy", "Denoised", "Clean")


def plot_image_sheet(
    images: Array,
    *,
    shape: tuple[int, ...] = (8, 8),
    order: Array | None = None,
    columns: int | None = None,
    count: int | None = None,
    contrast: str = "shared",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rows as a sheet of small images, left to right and top to bottom: component means of patches, say.

    :param images: (C, D), one flattened image a row.
    :param shape: (height, width) or (height, width, 3) of an image, D numbers.
    :param order: (C,) numbers, highest first: the components' weights, say. None keeps the order of
        the rows.
    :param columns: images in a line of the sheet; None makes it twice as wide as high, up to 20.
    :param count: show only so many.
    :param contrast: ``"shared"``, one scale for all (from the 1st to the 99th percentile), or
        ``"each"``, every image from its own darkest to its own brightest number.
    :raises DataError: when images, shape and order do not fit together, or hold NaN.
    :raises OptionError: for an unknown contrast, or what is no whole number above zero.

    >>> ax = plot_image_sheet(np.random.rand(50, 64), order=np.arange(50), columns=10)
    >>> ax.get_title()
    '50 component means'
    """
    if contrast not in _CONTRASTS:
        raise OptionError(f"unknown contrast={contrast!r}; choose one of {_CONTRASTS}")
    check_whole(
        **{
            name: value
            for name, value in {"columns": columns, "count": count}.items()
            if value is not None
        }
    )
    stack = _ordered(_stack(images, shape), order)
    shown = stack[: count or len(stack)]
    low, high = np.percentile(stack, [1, 99])
    sheet = _sheet(
        _stretched(shown) if contrast == "each" else shown,
        columns or min(20, math.ceil((2 * len(shown)) ** 0.5)),
    )
    if ax is None:
        ax = figure(
            (9, 8.4 * sheet.shape[0] / sheet.shape[1] + 0.4), layout="compressed"
        ).subplots()
    if contrast == "each":
        _show(ax, sheet, 0, 1)
    else:
        image = _show(ax, sheet, low, max(high, low + 1e-12))
        if sheet.ndim == 2:
            high_as = min(
                1.0, 0.6 * sheet.shape[1] / sheet.shape[0]
            )  # the sheet, unless that is very tall
            beside = ax.inset_axes((1.01, 1 - high_as, 0.015, high_as))
            ax.figure.colorbar(image, cax=beside, extend="both", label="Pixel value")
    number = f"{len(shown)}" if len(shown) == len(stack) else f"{len(shown)} of {len(stack)}"
    ax.set_title(f"{number} component means" if title is None else title, parse_math=False)
    return ax


def plot_denoised(
    noisy: Array,
    denoised: Array,
    clean: Array | None = None,
    *,
    titles: Sequence[str] | None = None,
    peak: float = 1.0,
    crop: tuple[int, int, int] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Images before and after denoising side by side; with ``clean``, also that one and everybody's PSNR.

    :param noisy, denoised, clean: (H, W) or (H, W, 3), black at 0 and white at ``peak``.
    :param titles: instead of "Noisy", "Denoised", "Clean".
    :param peak: the value of white, in the image and in the PSNR, ``10 log10(peak^2 / mean squared
        error)`` in dB.
    :param crop: (top, left, size) of a square to show enlarged, in a second line.
    :param axes: as many axes as there are images, twice as many with ``crop``; None makes a figure.
    :returns: the axes, (1, images) or (2, images).
    :raises DataError: when the images differ in shape, or are much brighter than ``peak``.
    :raises OptionError: when titles, crop or axes do not fit.

    >>> clean = np.full((16, 16), 0.5)
    >>> axes = plot_denoised(clean + 0.1, clean + 0.01, clean)
    >>> [ax.get_title() for ax in axes[0]]
    ['Noisy\\nPSNR 20.0 dB', 'Denoised\\nPSNR 40.0 dB', 'Clean']
    """
    check_number(positive=True, peak=peak)
    images = [to_array(image) for image in (noisy, denoised, clean) if image is not None]
    _check_images(images, peak)
    titles = _NAMES[: len(images)] if titles is None else titles
    if len(titles) != len(images):
        raise OptionError(f"titles={list(titles)} for {len(images)} images")
    axes = _panel(images, 1 if crop is None else 2, axes)
    scored = 0 if clean is None else 2
    for place, (ax, image, title) in enumerate(zip(axes[0], images, titles, strict=True)):
        _show(ax, image, 0, peak)
        score = f"\nPSNR {_psnr(image, images[-1], peak):.1f} dB" if place < scored else ""
        ax.set_title(f"{title}{score}", parse_math=False)
    if crop is not None:
        _show_crops(axes, images, crop, peak)
    return axes


def _stack(images: Array, shape: tuple[int, ...]) -> np.ndarray:
    flat = to_finite("images", images)
    colour = len(shape) == 3 and shape[-1] == 3
    if (
        not (len(shape) == 2 or colour)
        or flat.ndim != 2
        or not len(flat)
        or flat.shape[1] != math.prod(shape)
    ):
        raise DataError(
            f"images of shape {flat.shape} are not rows of {shape} images: (C, height * width [* 3]) are"
        )
    return flat.reshape(-1, *shape)


def _ordered(stack: np.ndarray, order: Array | None) -> np.ndarray:
    if order is None:
        return stack
    keys = to_array(order)
    if keys.shape != (len(stack),):
        raise DataError(f"order has shape {keys.shape}; {len(stack)} images need ({len(stack)},)")
    if np.isnan(keys).any():
        raise DataError(
            f"order holds NaN at {int(np.isnan(keys).argmax())}: give a number for each image"
        )
    return stack[np.argsort(-keys, kind="stable")]


def _stretched(stack: np.ndarray) -> np.ndarray:
    """Each image from 0 to 1."""
    axes = tuple(range(1, stack.ndim))
    low, high = stack.min(axes, keepdims=True), stack.max(axes, keepdims=True)
    return (stack - low) / np.maximum(high - low, 1e-12)


def _sheet(stack: np.ndarray, columns: int) -> np.ndarray:
    """One image of all, with NaN lines of one pixel between them."""
    columns = min(columns, len(stack))
    lines = math.ceil(len(stack) / columns)
    height, width = stack.shape[1:3]
    sheet = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1, *stack.shape[3:]), np.nan)
    for i, image in enumerate(stack):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _show(ax: Axes, image: np.ndarray, low: float, high: float) -> Any:
    """Draw an image in grey, or in colour; NaN is white."""
    ax.set_axis_off()
    if image.ndim == 3:
        return ax.imshow(
            np.nan_to_num((image - low) / (high - low), nan=1.0).clip(0, 1), interpolation="nearest"
        )
    return ax.imshow(image, cmap="gray", norm=Normalize(low, high), interpolation="nearest")


def _check_images(images: list[np.ndarray], peak: float) -> None:
    first = images[0].shape
    if len(first) not in (2, 3) or (len(first) == 3 and first[2] != 3):
        raise DataError(f"an image is (H, W) or (H, W, 3), not {first}")
    if any(image.shape != first for image in images):
        raise DataError(f"the images differ in shape: {[image.shape for image in images]}")
    typical = float(np.median(np.abs(images[-1])))
    if typical > peak:
        raise DataError(
            f"most of the image is brighter than peak={peak}: its median is {typical:.4g}; pass peak=255, say"
        )


def _psnr(image: np.ndarray, clean: np.ndarray, peak: float) -> float:
    error = float(np.square(image - clean).mean())
    return math.inf if error == 0 else 20 * math.log10(peak) - 10 * math.log10(error)


def _panel(images: list[np.ndarray], lines: int, axes: Any) -> np.ndarray:
    if axes is not None:
        given = np.asarray(axes)
        if given.size != lines * len(images):
            raise OptionError(f"{given.size} axes for {lines} x {len(images)} pictures")
        return given.reshape(lines, len(images))
    height, width = images[0].shape[:2]
    drawn = figure(
        (3.4 * len(images), 3.4 * (height / width + lines - 1) + 0.7), layout="compressed"
    )
    ratios = [height / width, 1.0][:lines]
    return drawn.subplots(lines, len(images), squeeze=False, height_ratios=ratios)


def _show_crops(
    axes: np.ndarray, images: list[np.ndarray], crop: tuple[int, int, int], peak: float
) -> None:
    if not isinstance(crop, Sequence) or len(crop) != 3:
        raise OptionError(f"crop={crop!r} must be (top, left, size)")
    top, left, size = crop
    for number in crop:
        check_whole(minimum=0, crop=number)
    height, width = images[0].shape[:2]
    if size < 1 or top + size > height or left + size > width:
        raise OptionError(
            f"crop={crop}, (top, left, size), does not lie in an image of {height} x {width}"
        )
    frame: dict[str, Any] = {"edgecolor": "#E69F00", "facecolor": "none", "linewidth": 1.5}
    for above, below, image in zip(*axes, images, strict=True):
        above.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, **frame))
        _show(below, image[top : top + size, left : left + size], 0, peak)
        below.add_patch(Rectangle((0, 0), 1, 1, transform=below.transAxes, clip_on=False, **frame))
