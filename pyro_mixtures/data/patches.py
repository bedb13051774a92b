"""Overlapping image patches as rows, and their averaging back to an image."""

import torch
from torch import Tensor

from pyro_mixtures.data.exact import floating_dtype
from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError


def extract_patches(image: Tensor, size: int) -> Tensor:
    """Extract all ``size`` x ``size`` patches of an image.

    :param image: (H, W) or (H, W, channels), of any dtype.
    :param size: height and width of the patches.
    :returns: ((H - size + 1) (W - size + 1), size * size * channels) in the dtype of the image: one
        patch per row, in row-major order of the patches and of the pixels in a patch.
    :raises DataError: when the image has a wrong number of dimensions, or is smaller than a patch.

    >>> import torch
    >>> extract_patches(torch.arange(6.0).reshape(2, 3), 2)
    tensor([[0., 1., 3., 4.],
            [1., 2., 4., 5.]])
    """
    image = _with_channels(as_rows(image))
    if size < 1 or size > min(image.shape[:2]):
        raise DataError(
            f"patches of {size} x {size} do not fit an image of {image.shape[0]} x {image.shape[1]}"
        )
    windows = image.unfold(0, size, 1).unfold(1, size, 1)  # (rows, columns, channels, size, size)
    return windows.permute(0, 1, 3, 4, 2).reshape(-1, size * size * image.shape[2])


def average_patches(
    patches: Tensor, shape: tuple[int, ...], *, weight: Tensor | None = None
) -> Tensor:
    """Average overlapping patches to an image: a pixel is the mean of all patches that cover it.

    :param patches: (N, size * size * channels), in the order of :func:`extract_patches`.
    :param shape: (H, W) or (H, W, channels) of the image.
    :param weight: (N,) weight of each patch, equal by default.
    :returns: the image, in floating point: means of integers are not rounded.
    :raises DataError: when patches and shape do not belong together, or weights are not (N,) finite
        numbers of zero or more of which at least one is positive at every pixel.

    >>> import torch
    >>> image = torch.arange(12.0).reshape(3, 4)
    >>> torch.equal(average_patches(extract_patches(image, 2), image.shape), image)
    True
    """
    patches = as_rows(patches)
    height, width, channels = (*shape, 1)[:3]
    size = round((patches.shape[1] / channels) ** 0.5)
    rows, columns = height - size + 1, width - size + 1
    if size * size * channels != patches.shape[1] or rows * columns != len(patches):
        raise DataError(
            f"patches {tuple(patches.shape)} are not those of an image of shape {tuple(shape)}"
        )
    dtype = floating_dtype(patches, "patches")
    if weight is None:
        weights = patches.new_ones(rows, columns, dtype=dtype)
    else:
        weight = _checked_weight(weight, len(patches))
        dtype = torch.promote_types(dtype, floating_dtype(weight, "weights"))
        weights = weight.to(dtype).reshape(rows, columns)
    patches, weights = patches.to(dtype), weights.unsqueeze(-1)
    grid = patches.reshape(rows, columns, size, size, channels)
    total = patches.new_zeros(height, width, channels)
    total_weight = patches.new_zeros(height, width, 1)
    # torch.nn.functional.fold needs a copy of all patches, in another memory order.
    for i in range(size):
        for j in range(size):
            total[i : i + rows, j : j + columns] += grid[:, :, i, j] * weights
            total_weight[i : i + rows, j : j + columns] += weights
    uncovered = (total_weight == 0).nonzero()[:, :2]
    if len(uncovered):
        raise DataError(
            f"all patches that cover pixel {uncovered[0].tolist()} have weight zero: give one of "
            "them a positive weight"
        )
    return (total / total_weight).reshape(shape)


def _checked_weight(weight: Tensor, patches: int) -> Tensor:
    weight = as_rows(weight)
    if weight.shape != (patches,):
        raise DataError(
            f"weight has shape {tuple(weight.shape)} for {patches} patches: give one weight per "
            f"patch, ({patches},)"
        )
    invalid = (~(weight.isfinite() & (weight >= 0))).nonzero()[:, 0]
    if len(invalid):
        patch = int(invalid[0])
        raise DataError(
            f"the weight of patch {patch} is {weight[patch].item()}: weights must be finite and "
            "not negative"
        )
    return weight


def _with_channels(image: Tensor) -> Tensor:
    if image.dim() not in (2, 3):
        raise DataError(
            f"an image is (H, W) or (H, W, channels), but this one has shape {tuple(image.shape)}"
        )
    return image if image.dim() == 3 else image.unsqueeze(-1)
