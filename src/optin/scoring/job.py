"""What every criterion is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from ..recipe import Recipe
from ..running.batches import Batches
from ..running.modules import fingerprint
from ..space.scores import Curve
from ..space.units import UnitSpace
from ..support.progress import Track, silent
from .engines import Engine, local
from .token_weights import TokenWeights


@dataclass(frozen=True)
class Scoring:
    """A network to score, and all that belongs to it.

    Attributes:
        model: in evaluation mode.
        space: its description.
        batches: the calibration set.
        recipe: all options; a criterion reads its `trajectory` and its `seed`.
        track: shows progress over a loop.
        engine: where criteria that can be distributed compute.
        resume: a file for partial results, so that a long scoring goes on after a kill.
    """

    model: nn.Module
    space: UnitSpace
    batches: Batches
    recipe: Recipe
    track: Track = silent
    resume: Path | None = None
    engine: Engine = local

    @cached_property
    def network(self) -> str:
        """Which network it is: see `modules.fingerprint`."""
        return fingerprint(self.model)

    @property
    def identity(self) -> str:
        """What partial results depend on."""
        return f"{self.network} {self.batches.digest} {self.recipe.to_dict()}"


@dataclass(frozen=True)
class Found:
    """What a criterion found.

    Attributes:
        curves: the removal curve of every group.
        scales: by part, "manifold" and "output", its factor in the curves; only of criteria that measure both.
        gradients: per group one tensor of shape (unit,) for each draw; only of `fisher`, if the recipe rearranges.
        weights: of all tokens, for the refit; only of criteria that draw probes of the trajectory.
    """

    curves: Mapping[str, Curve]
    scales: Mapping[str, float] = field(default_factory=dict)
    gradients: Mapping[str, list[Tensor]] = field(default_factory=dict)
    weights: TokenWeights | None = None
