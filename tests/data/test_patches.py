"""Patches of images and back."""

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
