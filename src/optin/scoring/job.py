"""What every criterion is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..running.job import Job
from ..running.modules import fingerprint
from ..space.scores import Curve
from ..support.untyped import Figures
from ..support.versions import versions
from .engines import Engine, local
from .token_weights import TokenWeights


@dataclass(frozen=True)
class Scoring(Job):
    """A network to score; of its recipe a criterion reads `trajectory`, `refit` and `seed`.

    Attributes:
        resume: a file for partial results, so that a long scoring goes on after a kill.
        engine: where criteria that can be distributed compute.
    """

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

    @property
    def provenance(self) -> Figures:
        """What the scores say of how they were made."""
        return {
            "criterion": self.recipe.criterion,
            "recipe": self.recipe.to_dict(),
            "data": self.batches.provenance,
            "network": self.network,
            "versions": versions(),
        }


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
