"""What other budgets would cost and lose, from the one scoring, without another network.

The KL of a refitted network follows what the search says that its plan costs, sum over groups of the removal curves:

    KL(b) = KL(b_0) ( cost(b) / cost(b_0) )^p

where b_0 is the plan that was refitted and measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import BudgetError
from ..recipe import Recipe
from ..running.cost import CostModel
from ..space.budget import Budget
from ..space.plans import Plan
from ..space.scores import Scores
from ..space.units import UnitSpace
from ..support.untyped import Figures
from .allocation import allocate

POWER = 1.1  # p, of MiniLM and DINOv2 (docs/results/outlook.md)
SHARES = range(90, 15, -5)  # percent of the MACs


def outlook(
    space: UnitSpace,
    scores: Scores,
    macs: CostModel,
    parameters: CostModel,
    recipe: Recipe,
    plan: Plan,
    divergence: float,
) -> list[Figures]:
    """For every budget that can be reached: the shares of "macs" and "parameters" left, and the "kl" to expect.

    Nothing where the plan costs nothing by the curves.

    Args:
        macs, parameters: of the dense network.
        plan: that of the network that was measured, and its `divergence` from the dense one.
    """
    if (base := spent(scores, plan.kept)) <= 0:
        return []
    found = []
    for share in SHARES:
        try:
            kept, _ = allocate(space, scores, macs, Budget(share / 100), recipe, {})
        except BudgetError:
            break
        found.append(
            {
                "macs": macs(kept) / macs.dense,
                "parameters": parameters(kept) / parameters.dense,
                "kl": divergence * max(spent(scores, kept) / base, 0.0) ** POWER,
            }
        )
    return found


def spent(scores: Scores, kept: Mapping[str, int]) -> float:
    """The cost of a plan in the currency of the curves."""
    return sum(float(curve.cost[len(curve.order) - kept[name]]) for name, curve in scores.curves.items())
