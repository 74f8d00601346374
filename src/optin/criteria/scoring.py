"""What every criterion is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..batches import Batches
from ..progress import Track, silent
from ..recipe import Recipe
from ..units import UnitSpace


@dataclass(frozen=True)
class Scoring:
    """A network to score, and all that belongs to it.

    Attributes:
        resume: a file for partial results, so that a long scoring goes on after a kill.
    """

    model: nn.Module
    space: UnitSpace
    batches: Batches
    recipe: Recipe
    track: Track = silent
    resume: Path | None = None
