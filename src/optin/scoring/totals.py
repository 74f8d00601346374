"""Sums of the squared derivatives by units: what the sketch is made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..space.units import UnitSpace
from .probe import PARTS, Probe

Parts = dict[str, dict[str, Tensor]]


class UnitTotals:
    """Running mean of the squared derivatives, per part and group."""

    def __init__(self, space: UnitSpace) -> None:
        self.draws = torch.zeros((), dtype=torch.float64)
        self.sums: Parts = {
            part: {group.name: torch.zeros(group.size, dtype=torch.float64) for group in space} for part in PARTS
        }

    def add(self, probe: Probe, weights: object = None) -> None:
        """Add one draw, or several that were made at once; tokens count alike, whatever their weights."""
        first = next(iter(next(iter(probe.units.values())).values()))
        self.draws += 1 if first.dim() == 1 else len(first)
        for part, groups in probe.units.items():
            for name, derivative in groups.items():
                squares = derivative.double().square()
                self.sums[part][name] += (squares if squares.dim() == 1 else squares.sum(0)).cpu()

    def tensors(self) -> dict[str, Tensor]:
        """See `Sums`."""
        return {"draws": self.draws, **flat(self.sums)}

    def state(self) -> dict[str, Tensor]:
        """See `Sums`."""
        return self.tensors()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Sums`."""
        for name, value in self.tensors().items():
            value.copy_(state[name])

    @property
    def mean(self) -> Parts:
        """I(u) of each part: shape (size,) per group."""
        return {
            part: {name: value / self.draws.clamp_min(1) for name, value in groups.items()}
            for part, groups in self.sums.items()
        }


def flat(parts: Parts) -> dict[str, Tensor]:
    """By PART/GROUP."""
    return {f"{part}/{name}": value for part, groups in parts.items() for name, value in groups.items()}
