"""Patches of images and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.data import average_patches, extract_patches
from pyro_mixtures.errors import DataError

few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def images(draw):
    """An image (H, W) or (H, W, channels), and a patch size that fits."""
    height, width = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    shape = (height, width, *draw(st.sampled_from([(), (1,), (2,), (3,)])))
    image = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device="cpu").reshape(
        shape
    )
    return image, draw(st.integers(1, min(height, width)))


@few
@given(images())
def test_every_patch_is_a_window_of_the_image(case):
    image, size = case
    patches = extract_patches(image, size)
    rows, columns = image.shape[0] - size + 1, image.shape[1] - size + 1
    windows = [
        image[i : i + size, j : j + size].flatten() for i in range(rows) for j in range(columns)
    ]
    assert torch.equal(patches, torch.stack(windows))


@few
@given(images())
def test_averaging_the_patches_gives_the_image_back(case):
    image, size = case
    torch.testing.assert_close(average_patches(extract_patches(image, size), image.shape), image)


@few
@given(images(), st.integers(0, 100))
def test_pixels_are_weighted_means_over_the_patches_that_cover_them(case, seed):
    image, size = case
    generator = torch.Generator("cpu").manual_seed(seed)
    patches = torch.rand(
        extract_patches(image, size).shape, generator=generator, dtype=torch.float64
    )
    weight = 0.1 + torch.rand(len(patches), generator=generator, dtype=torch.float64)
    columns = image.shape[1] - size + 1
    total, cover = torch.zeros_like(image), torch.zeros_like(image)
    for n, patch in enumerate(patches):
        i, j = divmod(n, columns)
        total[i : i + size, j : j + size] += weight[n] * patch.reshape(size, size, *image.shape[2:])
        cover[i : i + size, j : j + size] += weight[n]
    found = average_patches(patches, image.shape, weight=weight)
    torch.testing.assert_close(found, total / cover)
    torch.testing.assert_close(
        average_patches(patches, tuple(image.shape), weight=2 * weight), found
    )


def test_channels_stay_together():
    image = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)], -1)
    assert extract_patches(image, 2)[0].tolist() == [0.0, 1.0] * 4


@pytest.mark.parametrize("size", [0, 4])
def test_patches_that_do_not_fit_are_refused(size):
    with pytest.raises(DataError, match=f"patches of {size} x {size} do not fit an image of 3 x 5"):
        extract_patches(torch.zeros(3, 5), size)


@pytest.mark.parametrize("shape", [(4,), (1, 4, 4, 3)])
def test_only_images_have_patches(shape):
    with pytest.raises(DataError, match="an image is"):
        extract_patches(torch.zeros(shape), 1)


@pytest.mark.parametrize("shape", [(4, 5), (4, 4, 3), (2, 2)])
def test_patches_of_another_image_are_refused(shape):
    with pytest.raises(DataError, match="are not those of an image of shape"):
        average_patches(extract_patches(torch.zeros(4, 4), 2), shape)


@pytest.mark.meta
def test_patches_lie_on_the_device_of_the_image():
    image = torch.rand(4, 5, device="cpu")
    patches = extract_patches(image, 2)
    back = average_patches(patches, image.shape, weight=torch.ones(len(patches), device="cpu"))
    assert patches.device.type == back.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_averages_of_integers_do_not_wrap_around_or_round(dtype):
    image = torch.arange(72, device="cpu").reshape(8, 9) * 3
    patches = extract_patches(image.to(dtype), 3)
    torch.testing.assert_close(average_patches(patches, (8, 9)), image.float())
    halves = average_patches(torch.tensor([[0], [1]], device="cpu").to(dtype), (2, 1))
    assert halves.is_floating_point()
    mixed = torch.tensor([[0, 0], [1, 1]], device="cpu").repeat(1, 2).to(dtype)
    assert average_patches(mixed, (2, 3))[0].tolist() == [0.0, 0.5, 1.0]


def test_the_weights_dtype_widens_that_of_the_patches():
    patches = torch.tensor([[0, 0, 0, 0], [3, 3, 3, 3]], dtype=torch.uint8, device="cpu")
    weight = torch.tensor([2.0, 1.0], dtype=torch.float64, device="cpu")
    image = average_patches(patches, (2, 3), weight=weight)
    assert image.dtype == torch.float64
    assert image[0].tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(2), r"all patches that cover pixel \[0, 0\] have weight zero: give one"),
        (torch.tensor([1.0, 0.0]), r"all patches that cover pixel \[0, 2\] have weight zero"),
        (torch.tensor([1.0, -1.0]), r"the weight of patch 1 is -1\.0: weights must be finite"),
        (torch.tensor([1.0, torch.nan]), r"the weight of patch 1 is nan: weights must be finite"),
        (torch.ones(3), r"weight has shape \(3,\) for 2 patches: .*\(2,\)"),
        (torch.ones(2, 1), r"weight has shape \(2, 1\) for 2 patches"),
    ],
)
def test_weights_that_do_not_define_a_mean_are_refused(weight, message):
    with pytest.raises(DataError, match=message):
        average_patches(torch.ones(2, 4), (2, 3), weight=weight)


def test_arrays_are_taken_like_tensors():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    patches = extract_patches(image, 2)
    assert torch.equal(patches, extract_patches(torch.from_numpy(image), 2))
    assert np.array_equal(average_patches(patches.numpy(), image.shape).numpy(), image)
