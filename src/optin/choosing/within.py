"""A small network that stays within a loss: by bisection over plans that are refitted and measured."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BudgetError
from ..space.budget import Budget
from ..space.loss import Loss
from ..space.plans import Plan
from ..support.progress import Track
from ..support.untyped import Figures

LARGEST = 99  # percent of the MACs
REFITS = LARGEST.bit_length()  # at most


def smallest_within(
    aim: Loss, planned: Callable[[Budget], Plan], measured: Callable[[Plan], float], track: Track
) -> tuple[Plan, Figures]:
    """Bisection over whole percents of the MACs, seven refits at most.

    Args:
        planned: the plan for a budget; raises BudgetError for one that cannot be reached.
        measured: the loss of the network that a plan makes.

    Returns:
        The plan, and what was measured: "budget", "measured", and "tried" by percent of the MACs.

    Raises:
        BudgetError: no budget that can be reached stays within the loss.
    """
    below, above = 0, LARGEST + 1  # too small, or not to be reached; within the loss
    best: Plan | None = None
    refusal: BudgetError | None = None
    tried: dict[str, float] = {}
    for _ in track(range(REFITS), f"smallest within {aim}", REFITS):
        if above - below < 2:
            continue
        percent = (below + above) // 2
        try:
            plan = planned(Budget(percent / 100))
        except BudgetError as error:
            below, refusal = percent, error
            continue
        tried[f"{percent}%"] = loss = measured(plan)
        if loss <= aim.value:
            above, best = percent, plan
        else:
            below = percent
    if best is None:
        raise _nothing(aim, tried) if tried else refusal or _nothing(aim, tried)
    return best, {"budget": str(aim), "measured": tried[f"{above}%"], "tried": tried}


def _nothing(aim: Loss, tried: Figures) -> BudgetError:
    share, loss = list(tried.items())[-1]
    what = f"{loss:.4g} points" if aim.kind == "points" else f"{aim.kind} {loss:.4g}"
    return BudgetError(f"even {share} of the MACs lose {what} on held-out inputs, more than {aim}.")
