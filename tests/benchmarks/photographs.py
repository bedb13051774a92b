"""Patches of the two photographs in scikit-learn: real data for benchmarks, without a download."""

import numpy as np
from numpy.typing import NDArray


def rgb_patches(
    size: int = 8, train: int = 50_000, test: int = 20_000, *, noise: float = 4 / 255, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw noisy ``size`` x ``size`` RGB patches of the two photographs, values divided by 255.

    Photograph and position of every patch are uniform draws, so a test patch can overlap a training
    patch; noise is independent.

    :param noise: standard deviation of the white Gaussian noise added to every patch.
    :returns: training patches (train, 3 size^2) and test patches (test, 3 size^2).
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    images = np.stack(load_sample_images().images)  # (2, 427, 640, 3) uint8
    windows = np.lib.stride_tricks.sliding_window_view(
        images, (size, size), axis=(1, 2)
    )  # (2, H, W, 3, size, size)
    photograph, row, column = (rng.integers(top, size=train + test) for top in windows.shape[:3])
    patches = windows[photograph, row, column].transpose(0, 2, 3, 1).reshape(train + test, -1)
    patches = patches.astype(np.float32) / np.float32(255)
    for block in np.array_split(patches, max(1, len(patches) // 10_000)):
        block += noise * rng.standard_normal(block.shape, dtype=np.float32)
    return patches[:train], patches[train:]
