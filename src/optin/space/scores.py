"""Scores: for every group the order of removal and what it costs, on one scale for the whole network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..support.listing import Listed, Listing
from ..support.untyped import Json


@dataclass(frozen=True)
class Curve:
    """The removal curve of one group of n units.

    Attributes:
        order: shape (n,), int64: units from the first to go to the last.
        cost: shape (n + 1,), float64: cost[r] is the trajectory cost of removing the first r of `order`.
    """

    order: Tensor
    cost: Tensor

    def keep(self, count: int) -> tuple[int, ...]:
        """The `count` units that stay, ascending."""
        removed = len(self.order) - count
        return tuple(sorted(self.order[removed:].tolist()))

    def problem(self, size: int) -> str | None:
        """What is wrong with this as the curve of a group of `size` units; None if nothing is."""
        if self.order.dtype != torch.int64 or not torch.equal(self.order.sort().values.cpu(), torch.arange(size)):
            return f"does not order its {size} units"
        if self.cost.shape != (size + 1,) or self.cost.dtype != torch.float64:
            return f"does not have {size + 1} costs in float64"
        return None if bool(torch.isfinite(self.cost).all()) else "holds NaN or infinity"

    def sampled(self, points: int) -> list[float]:
        """The cost of removing none to all units, at evenly spread counts."""
        last = len(self.cost) - 1
        return [float(self.cost[round(last * index / (points - 1))]) for index in range(points)]

    @classmethod
    def from_importance(cls, importance: Tensor) -> Curve:
        """Independent scores of n units: least important first, costs add up. Ties go by index."""
        importance = importance.detach().to("cpu", torch.float64)
        order = torch.argsort(importance, stable=True)
        cost = torch.cat([importance.new_zeros(1), importance[order].cumsum(0)])
        return cls(order, cost)

    @property
    def importance(self) -> Tensor:
        """Shape (n,): the step of the curve at which each unit goes."""
        steps = self.cost.diff()
        return torch.empty_like(steps).scatter_(0, self.order, steps)


@dataclass(frozen=True)
class Scores(Listed):
    """Removal curves of all groups of a network, and how they were measured.

        scores.curves["bert.encoder.layer.0.intermediate.dense"].order[:10]  # what goes first

    Attributes:
        architecture: the description that the group names belong to.
        curves: per group.
        length: the calibration set's mean length, at which MACs are counted by default.
        provenance: the criterion, the recipe, the digest of the calibration data and versions.
        tokens: shape (block, tokens merged): what merging costs, if measured: see
            `optin.choosing.merging_costs.token_costs`.
        width: in pixels, of images that are not square.
        weights: called with a batch's number and a consumer's name, gives the weights of its tokens, which saves the
            refit a pass; None if the criterion draws none. Not stored with the scores.
        gradients: per group, those of the labelled loss with respect to its multipliers, shape (draw, unit), if the
            recipe rearranges.
    """

    architecture: str
    curves: Mapping[str, Curve]
    length: int
    provenance: Mapping[str, Json] = field(default_factory=dict)
    tokens: Tensor | None = None
    width: int | None = None
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Callable[[int, str], list[Tensor]] | None = None

    def listing(self) -> Listing:
        """What it costs to remove half and all but one of the units of each group."""
        rows = [
            (name, f"{len(curve.order):,}", *(f"{float(curve.cost[n]):.3g}" for n in (len(curve.order) // 2, -2)))
            for name, curve in self.curves.items()
        ]
        return Listing(repr(self), ("group", "units", "cost of half", "of all but one"), rows)

    def __repr__(self) -> str:
        return f"Scores({self.architecture}: {len(self.curves)} groups by {self.provenance.get('criterion')!r})"
