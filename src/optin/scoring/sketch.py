"""`sketch`: an unbiased estimate of the second-order trajectory of ALL units from a few backward passes.

I(u) = E[ (d <v, phi> / d m_u)^2 ],   m_u the unit's multiplier        (docs/method.md, Estimators)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..space.scores import Curve
from ..space.units import UnitSpace
from .draws import Weights, summed
from .job import Found, Scoring
from .probe import PARTS, Probe

Parts = dict[str, dict[str, Tensor]]


def sketch(scoring: Scoring) -> Found:
    """Removal curves from independent unit scores. Cost: one forward and two backward passes per draw."""
    total, weights = summed(scoring, partial(UnitTotals, scoring.space), "sketch")
    balance = scoring.recipe.trajectory.balance
    curves = {name: Curve.from_importance(value) for name, value in balanced(total.mean, balance).items()}
    return Found(curves, part_scales(total.mean, balance), weights=weights)


class UnitTotals:
    """Running mean of the squared derivatives, per part and group."""

    def __init__(self, space: UnitSpace) -> None:
        self.draws = torch.zeros((), dtype=torch.float64)
        self.sums: Parts = {
            part: {group.name: torch.zeros(group.size, dtype=torch.float64) for group in space} for part in PARTS
        }

    def add(self, probe: Probe, weights: Weights | None = None) -> None:
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


def balanced(parts: Parts, balance: float) -> dict[str, Tensor]:
    """I(u) = L_out(u) + lambda * L_mid(u), both first scaled to mean 1 over all units of the network."""
    scale = part_scales(parts, balance)
    return {
        name: torch.stack([scale[part] * groups[name] for part, groups in parts.items()]).sum(0)
        for name in parts["output"]
    }


def part_scales(parts: Parts, balance: float) -> dict[str, float]:
    """What each part is multiplied by: its weight over its mean. A part that is zero throughout counts nothing.

    The means are those of units that change embeddings, if any do: units of the head change the output alone.
    """
    weights = {"manifold": balance, "output": 1.0}
    inside = [name for name, values in parts["manifold"].items() if values.any()] or list(parts["manifold"])
    means = {part: float(torch.cat([groups[name] for name in inside]).mean()) for part, groups in parts.items()}
    return {part: weights[part] / mean if mean > 0 else 0.0 for part, mean in means.items()}
