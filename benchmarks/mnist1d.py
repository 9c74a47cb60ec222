"""MNIST-1D: ten one-dimensional shapes, padded, stretched, scaled, shifted, sheared and noised.

Written from its recipe (Greydanus and Kobak 2024, "Scaling Down Deep Learning with MNIST-1D"), with
random numbers of its own: not the published file, but data by the same law.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

LENGTH = 40
"""Points of an example."""

_SHAPES = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)
"""One for each digit, which it resembles."""

_PADDING, _STRETCH, _SHIFT = (36, 60), 0.4, 48
_SMOOTH_NOISE, _NOISE, _SHEAR = 0.25, 0.02, 0.75


def mnist1d(examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples.

    Args:
        examples: M.
        seed: of the draws.

    Returns:
        Inputs float32 ``[M, 1, 40]``, standardised, and classes int64 ``[M]``, as many of each.
    """
    random = np.random.default_rng(seed)
    classes = np.arange(examples) % len(_SHAPES)
    random.shuffle(classes)
    shapes = (_SHAPES - _SHAPES.mean(1, keepdims=True)) / _SHAPES.std(1, keepdims=True)
    inputs = np.stack([_draw(shapes[c], random) for c in classes])
    inputs = (inputs - inputs.mean()) / inputs.std()
    return inputs[:, None].astype(np.float32), classes


def _draw(shape: np.ndarray, random: np.random.Generator) -> np.ndarray:
    padded = np.concatenate([shape, np.zeros(random.integers(*_PADDING, endpoint=True))])
    stretched = _resampled(padded, int(len(padded) * (1 + _STRETCH * (random.random() - 0.5))))
    scaled = stretched * (1 + _STRETCH * (random.random() - 0.5))
    shifted = np.roll(scaled, random.integers(_SHIFT))
    smooth = gaussian_filter1d(random.standard_normal(len(shifted)), 2) * _SMOOTH_NOISE
    noised = shifted + smooth + _NOISE * random.standard_normal(len(shifted))
    slope = 2 * _SHEAR * (random.random() - 0.5)
    return _resampled(noised - slope * np.linspace(-0.5, 0.5, len(noised)), LENGTH)


def _resampled(values: np.ndarray, points: int) -> np.ndarray:
    places = np.linspace(0, len(values) - 1, points)
    return np.interp(places, np.arange(len(values)), values)
