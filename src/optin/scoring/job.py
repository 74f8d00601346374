"""What every criterion is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from ..recipe import Recipe
from ..running.batches import Batches
from ..running.modules import fingerprint
from ..running.store import Store
from ..space.units import UnitSpace
from ..support.progress import Track, silent
from .engines import Engine, local
from .token_weights import TokenWeights


@dataclass(frozen=True)
class Scoring:
    """A network to score, and all that belongs to it.

    Attributes:
        engine: where criteria with work for many machines compute.
        resume: a file for partial results, so that a long scoring goes on after a kill.
        scales: what each part of the trajectory is multiplied by in the curves; filled in by criteria that
            measure it.
        gradients: per group of each draw, shape (unit,); filled in by `fisher` if the recipe rearranges.
    """

    model: nn.Module
    space: UnitSpace
    batches: Batches
    recipe: Recipe
    track: Track = silent
    resume: Path | None = None
    engine: Engine = local
    scales: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def network(self) -> str:
        """Which network it is: see `modules.fingerprint`."""
        return fingerprint(self.model)

    @property
    def identity(self) -> str:
        """What partial results depend on."""
        return f"{self.network} {self.batches.digest} {self.recipe.to_dict()}"

    @cached_property
    def weights(self) -> TokenWeights:
        """Of all tokens, for the refit; filled in by criteria that draw probes of the trajectory."""
        return TokenWeights(self.space, self.recipe, Store())
