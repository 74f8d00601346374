"""A network with all that measuring and refitting it need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..recipe import Recipe
from ..space.units import UnitSpace
from ..support.progress import Track, silent
from .batch import Batch
from .batches import Batches


@dataclass(frozen=True)
class Job:
    """What checks, criteria and the refit are given.

    Attributes:
        model: the dense network.
        space: its description.
        batches: the calibration set.
        recipe: all options.
        track: shows progress over a loop.
    """

    model: nn.Module
    space: UnitSpace
    batches: Batches
    recipe: Recipe
    track: Track = silent

    @property
    def first(self) -> Batch:
        """The first batch."""
        return next(iter(self.batches))

    @property
    def generator(self) -> torch.Generator:
        """A new one, at the seed of the recipe."""
        return torch.Generator().manual_seed(self.recipe.seed)
