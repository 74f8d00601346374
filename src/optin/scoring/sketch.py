"""`sketch`: an unbiased estimate of the second-order trajectory of ALL units from a few backward passes.

I(u) = E[ (d <v, phi> / d m_u)^2 ],   m_u the unit's multiplier        (docs/method.md, Estimators)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..space.scores import Curve
from .blockwise import sums_of
from .job import Found, Scoring
from .totals import Parts, UnitTotals


def sketch(scoring: Scoring) -> Found:
    """Removal curves from independent unit scores. Cost: one forward and two backward passes per draw."""
    found, balance = sums_of(scoring, UnitTotals, "sketch"), scoring.recipe.trajectory.balance
    curves = {name: Curve.from_importance(value) for name, value in balanced(found.mean, balance).items()}
    return Found(curves, part_scales(found.mean, balance), weights=found.weights)


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
