"""Scenes with a class for every pixel, composed of Fashion-MNIST items: ten kinds of clothing, and the background.

Two to four items of one colour each, in one to one and a half times their size, lie on a background that fades from
one colour into another, with noise. What lies on top hides what is below. Scene number n is always the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from dinov2 import SPEC
from PIL import Image

from optin.space.options import Task
from optin.tasks import Images, load_images
from optin.tasks.segmentation import Scenes

SIDE = 64
CLASSES = ("background", "top", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
OPAQUE = 40  # grey level from which a pixel belongs to the item


def scenes(data: str, part: str, count: int) -> Scenes:
    """The first scenes made of the training ("calibration") or the test images ("evaluation")."""
    items = load_images(SPEC, Task("fashion-mnist", data), part, labelled=True)
    seed = ("calibration", "evaluation").index(part)

    @lru_cache(count)
    def composed(index: int) -> tuple[Any, Any]:
        return compose(items, np.random.default_rng((seed, index)))

    return Scenes(
        lambda index: Image.fromarray(composed(index)[0]), count, None, CLASSES, lambda index: composed(index)[1]
    )


def compose(items: Images, generator: np.random.Generator) -> tuple[Any, Any]:
    """Pixels of shape (64, 64, 3), uint8, and their classes, int64."""
    assert items.labels is not None
    corners = generator.uniform(0, 120, (2, 3))
    fade = np.linspace(0, 1, SIDE)[:, None, None]
    pixels = np.broadcast_to(corners[0] * (1 - fade) + corners[1] * fade, (SIDE, SIDE, 3)).copy()
    mask = np.zeros((SIDE, SIDE), np.int64)
    for _ in range(generator.integers(2, 5)):
        chosen, size = int(generator.integers(len(items))), int(generator.integers(28, 43))
        item = np.asarray(items.read(chosen).resize((size, size)))[..., :1]
        top, left = generator.integers(0, SIDE - size + 1, 2)
        place = slice(top, top + size), slice(left, left + size)
        inside = item[..., 0] >= OPAQUE
        pixels[place][inside] = (item * generator.uniform(0.4, 1, 3))[inside]
        mask[place][inside] = items.labels[chosen] + 1
    pixels += generator.normal(0, 8, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8), mask
