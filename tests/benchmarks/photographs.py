"""Patches of scikit-learn's two photographs: the real data of the benchmarks, without a download."""

import numpy as np
from numpy.typing import NDArray


def rgb_patches(
    size: int = 8, train: int = 50_000, test: int = 20_000, *, noise: float = 4 / 255, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Noisy ``size`` x ``size`` RGB patches at random positions of the two photographs, values in units of 255.

    Returns (train, 3 size^2) and (test, 3 size^2). Photograph and position of every patch are
    uniform draws, so a test patch can overlap a training patch; its noise is its own.

    :param noise: standard deviation of the white Gaussian noise added to every patch.
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
    for part in np.array_split(patches, max(1, len(patches) // 10_000)):
        part += noise * rng.standard_normal(part.shape, dtype=np.float32)
    return patches[:train], patches[train:]
