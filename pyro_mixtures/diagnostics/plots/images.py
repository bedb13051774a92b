"""Plots of rows that are images: component means as a sheet, and denoised images."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from pyro_mixtures.diagnostics.plots.drawing import Array, figure, to_array, to_finite
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.options import check_number, check_whole

_CONTRASTS = ("shared", "each")
_TITLES = ("Noisy", "Denoised", "Clean")
_MAX_COLUMNS = 20  # of a sheet by default
_MIN_RANGE = 1e-12  # of pixel values, avoids divisions by zero


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
    """Draw rows as a sheet of small images, for example the component means of image patches.

    Images are arranged from left to right and from top to bottom.

    :param images: (C, D), one flattened image per row.
    :param shape: (height, width) or (height, width, 3) of an image, D numbers.
    :param order: (C,) numbers by which images are sorted, the highest first, for example the
        weights of the components. None keeps the order of the rows.
    :param columns: number of images in a line of the sheet. By default the sheet is twice as wide
        as high, with at most 20 columns.
    :param count: maximum number of images to show.
    :param contrast: ``"shared"`` for one scale (from the 1st to the 99th percentile), or ``"each"``
        to scale every image from its minimum to its maximum.
    :param title: by default the number of component means.
    :param ax: axes to draw in; None creates a figure.
    :returns: the axes.
    :raises DataError: if images, shape and order do not match, or hold NaN.
    :raises OptionError: for an unknown contrast, or a number that is not a positive whole number.

    >>> ax = plot_image_sheet(np.random.rand(50, 64), order=np.arange(50), columns=10)
    >>> ax.get_title()
    '50 component means'
    """
    if contrast not in _CONTRASTS:
        raise OptionError(f"unknown contrast={contrast!r}: choose one of {_CONTRASTS}")
    for name, value in (("columns", columns), ("count", count)):
        if value is not None:
            check_whole(**{name: value})
    stack = _sort(_stack(images, shape), order)
    shown = stack[: count or len(stack)]
    default_columns = min(_MAX_COLUMNS, math.ceil((2 * len(shown)) ** 0.5))
    sheet = _arrange(_stretch(shown) if contrast == "each" else shown, columns or default_columns)
    height_ratio = sheet.shape[0] / sheet.shape[1]
    if ax is None:
        ax = figure((9, 8.4 * height_ratio + 0.4), layout="compressed").subplots()
    if contrast == "each":
        _show(ax, sheet, 0, 1)
    else:
        low, high = np.percentile(stack, [1, 99])
        image = _show(ax, sheet, low, max(high, low + _MIN_RANGE))
        if sheet.ndim == 2:
            _add_color_bar(ax, image, height_ratio)
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
    """Draw images before and after denoising side by side; with ``clean``, also it and the PSNRs.

    :param noisy: (H, W) or (H, W, 3), black at 0 and white at ``peak``.
    :param denoised: of the same shape.
    :param clean: of the same shape, or None.
    :param titles: in place of "Noisy", "Denoised", "Clean".
    :param peak: the value of white, in the images and in the PSNR, ``10 log10(peak^2 / mean squared
        error)`` in dB.
    :param crop: (top, left, size) of a square to enlarge in a second line.
    :param axes: as many axes as there are images, twice as many with ``crop``; None creates a
        figure.
    :returns: the axes, (1, images) or (2, images).
    :raises DataError: if the images differ in shape, or are much brighter than ``peak``.
    :raises OptionError: if titles, crop or axes do not match the images.

    >>> clean = np.full((16, 16), 0.5)
    >>> axes = plot_denoised(clean + 0.1, clean + 0.01, clean)
    >>> [ax.get_title() for ax in axes[0]]
    ['Noisy\\nPSNR 20.0 dB', 'Denoised\\nPSNR 40.0 dB', 'Clean']
    """
    check_number(positive=True, peak=peak)
    images = [to_array(image) for image in (noisy, denoised, clean) if image is not None]
    _check_images(images, peak)
    titles = _TITLES[: len(images)] if titles is None else titles
    if len(titles) != len(images):
        raise OptionError(f"titles={list(titles)} for {len(images)} images: pass one per image")
    axes = _panel(images, 1 if crop is None else 2, axes)
    n_scored = 0 if clean is None else 2
    for position, (ax, image, title) in enumerate(zip(axes[0], images, titles, strict=True)):
        _show(ax, image, 0, peak)
        score = f"\nPSNR {_psnr(image, images[-1], peak):.1f} dB" if position < n_scored else ""
        ax.set_title(f"{title}{score}", parse_math=False)
    if crop is not None:
        _show_crops(axes, images, crop, peak)
    panel: np.ndarray = axes
    return panel


def _stack(images: Array, shape: tuple[int, ...]) -> np.ndarray:
    """Images (C, height, width) or (C, height, width, 3)."""
    flat = to_finite("images", images)
    is_image_shape = len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3)
    if not is_image_shape or flat.ndim != 2 or not len(flat) or flat.shape[1] != math.prod(shape):
        raise DataError(
            f"images of shape {flat.shape} are not rows of {shape} images: pass "
            "(C, height * width) or (C, height * width * 3)"
        )
    return flat.reshape(-1, *shape)


def _sort(stack: np.ndarray, order: Array | None) -> np.ndarray:
    if order is None:
        return stack
    keys = to_array(order)
    if keys.shape != (len(stack),):
        raise DataError(
            f"order has shape {keys.shape}, but {len(stack)} images: pass one per image"
        )
    if np.isnan(keys).any():
        raise DataError(
            f"order contains NaN at {int(np.isnan(keys).argmax())}: pass a number for each image"
        )
    return stack[np.argsort(-keys, kind="stable")]


def _stretch(stack: np.ndarray) -> np.ndarray:
    """Each image scaled from 0 to 1."""
    axes = tuple(range(1, stack.ndim))
    low, high = stack.min(axes, keepdims=True), stack.max(axes, keepdims=True)
    stretched: np.ndarray = (stack - low) / np.maximum(high - low, _MIN_RANGE)
    return stretched


def _arrange(stack: np.ndarray, columns: int) -> np.ndarray:
    """One image of all, with NaN lines of one pixel between them."""
    columns = min(columns, len(stack))
    lines = math.ceil(len(stack) / columns)
    height, width = stack.shape[1:3]
    sheet = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1, *stack.shape[3:]), np.nan)
    for i, image in enumerate(stack):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _show(ax: Axes, image: np.ndarray, low: float, high: float) -> AxesImage:
    """Draw an image in gray or in color; NaN is white."""
    ax.set_axis_off()
    if image.ndim == 3:
        scaled = np.nan_to_num((image - low) / (high - low), nan=1.0)
        return ax.imshow(scaled.clip(0, 1), interpolation="nearest")
    return ax.imshow(image, cmap="gray", norm=Normalize(low, high), interpolation="nearest")


def _add_color_bar(ax: Axes, image: AxesImage, height_ratio: float) -> None:
    """Add a color bar as high as the sheet, unless the sheet is very tall."""
    height = min(1.0, 0.6 / height_ratio)
    bar_axes = ax.inset_axes((1.01, 1 - height, 0.015, height))
    ax.figure.colorbar(image, cax=bar_axes, extend="both", label="Pixel value")


def _check_images(images: list[np.ndarray], peak: float) -> None:
    shape = images[0].shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        raise DataError(f"an image is (H, W) or (H, W, 3), not {shape}")
    if any(image.shape != shape for image in images):
        raise DataError(f"the images differ in shape: {[image.shape for image in images]}")
    median = float(np.median(np.abs(images[-1])))
    if median > peak:
        raise DataError(
            f"most of the image is brighter than peak={peak}, its median is {median:.4g}: pass "
            "peak=255, for example"
        )


def _psnr(image: np.ndarray, clean: np.ndarray, peak: float) -> float:
    error = float(np.square(image - clean).mean())
    return math.inf if error == 0 else 20 * math.log10(peak) - 10 * math.log10(error)


def _panel(images: list[np.ndarray], lines: int, axes: Any) -> np.ndarray:
    """Axes (lines, images): the user's, or those of a new figure."""
    if axes is not None:
        panel = np.asarray(axes)
        if panel.size != lines * len(images):
            raise OptionError(f"axes= has {panel.size} axes for {lines} x {len(images)} pictures")
        return panel.reshape(lines, len(images))
    height, width = images[0].shape[:2]
    size = (3.4 * len(images), 3.4 * (height / width + lines - 1) + 0.7)
    ratios = [height / width, 1.0][:lines]
    new_axes: np.ndarray = figure(size, layout="compressed").subplots(
        lines, len(images), squeeze=False, height_ratios=ratios
    )
    return new_axes


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
    for image_axes, crop_axes, image in zip(*axes, images, strict=True):
        image_axes.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, **frame))
        _show(crop_axes, image[top : top + size, left : left + size], 0, peak)
        border = Rectangle((0, 0), 1, 1, transform=crop_axes.transAxes, clip_on=False, **frame)
        crop_axes.add_patch(border)
