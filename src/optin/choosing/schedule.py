"""Token schedules: how many tokens merge before which block, and one budget for tokens, heads and neurons.

What merging r of n tokens before block i costs, c_i(r), is evaluated by doing it (the exact estimator). Costs of
several blocks add up; where M tokens are gone already, r is a larger share of what is left and costs as much as
that share did of all of them:

    sum over i of  c_i( r_i n / (n - M_(i-1)) ),      M_i = r_1 + ... + r_i

The MACs in block i are those of the n - M_i tokens there. Both are sums over steps from M_(i-1) to M_i, so for given
heads and neurons the best schedule at a price of MACs is found exactly, by dynamic programming.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError, InputError
from ..running.cost import CostModel
from ..running.merging import most
from ..space.budget import Budget
from ..space.scores import Curve
from ..space.units import TokenSpace, UnitSpace
from .merging_costs import token_space
from .search import Choices, cheapest, choices_of, fill, limit_of, spending, total_cost

ROUNDS = 6  # turns of choosing units for a schedule and a schedule for units


PART = 2**24  # entries at most of the tables that are kept, and of the part of one that is made at a time


def find_jointly(
    space: UnitSpace,
    curves: Mapping[str, Curve],
    costs: Float[Tensor, "block removed"],
    cost: CostModel,
    budget: Budget,
    multiples: Mapping[str, int],
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Units to keep per group and tokens to merge per block, at the least total cost under one budget of MACs.

    For a price of MACs, units and schedule are chosen in turns, each for the other; the price follows by
    bisection. What is left of the budget buys tokens back, then units.

    Raises:
        BudgetError: the budget cannot be reached.
        InputError: the token costs are of another number of tokens.
    """
    tokens = token_space(space)
    if costs.shape != (len(tokens.blocks), cost.tokens + 1):
        raise InputError(
            f"the token costs were measured with {costs.shape[1] - 1} tokens, and {cost.tokens} are asked for. "
            "Score at the image size that MACs are counted at."
        )
    choices = choices_of(space, curves, multiples)
    limit = limit_of(budget, cost, choices)
    steps = Steps(costs, tokens.protected)
    best: tuple[float, dict[str, int], tuple[int, ...]] | None = None

    def fits(mu: float) -> bool:
        """Whether what is best at this price fits; the best of all that fit is kept."""
        nonlocal best
        kept, schedule = _in_turns(mu, choices, steps, cost, tokens)
        if cost.merged(schedule)(kept) > limit:
            return False
        total = total_cost(kept, choices) + schedule_cost(schedule, steps)
        if best is None or total < best[0]:
            best = (total, kept, schedule)
        return True

    low, high = 0.0, 1e-12
    while not fits(high):
        low, high = high, high * 8
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    assert best is not None  # the loop above ended with one
    _, kept, schedule = best
    schedule = _fill(schedule, kept, steps, cost, limit)
    return fill(kept, choices, cost.merged(schedule), limit), schedule


class Steps:
    """What it costs at each block to go from so many merged tokens to so many.

    A table is square in the tokens, so that of a block is made in parts of some rows, and kept where all are small.

    Args:
        costs: those of `token_costs`.
        protected: tokens that never merge.
    """

    def __init__(self, costs: Float[Tensor, "block removed"], protected: int) -> None:
        self.costs, self.protected = costs, protected
        self.merged = torch.arange(costs.shape[1], dtype=torch.float64)
        self.rows = max(1, PART // costs.shape[1])
        self._kept: dict[tuple[int, int], Tensor] | None = {} if costs.shape[1] * costs.numel() <= PART else None

    def parts(self) -> list[slice]:
        """The numbers of tokens merged before, in order, so many at a time."""
        return [slice(start, start + self.rows) for start in range(0, len(self.merged), self.rows)]

    def table(self, place: int, part: slice) -> Float[Tensor, "before after"]:
        """Of one block, from some numbers of tokens merged before."""
        if self._kept is None:
            return self.between(place, self.merged[part, None], self.merged)
        key = (place, part.start)
        if key not in self._kept:
            self._kept[key] = self.between(place, self.merged[part, None], self.merged)
        return self._kept[key]

    def between(self, place: int, before: Tensor, after: Tensor) -> Tensor:
        """c_i( r n / (n - M) ) with r from M `before` to `after`, linear between the numbers that were measured."""
        free, cost = len(self.merged) - 1 - self.protected, self.costs[place]
        share = ((after - before) * free / (free - before).clamp_min(1)).clamp(0, len(cost) - 1)
        low = share.floor().long().clamp_max(len(cost) - 2)
        return cost[low] + (cost[low + 1] - cost[low]) * (share - low)


def schedule_cost(schedule: Sequence[int], steps: Steps) -> float:
    """The trajectory cost of a schedule, merge by merge."""
    merged, total = 0, 0.0
    for place, r in enumerate(schedule):
        before = torch.tensor(float(merged), dtype=torch.float64)
        total += float(steps.between(place, before, before + r))
        merged += r
    return total


def constant(cost: CostModel, limit: int) -> tuple[int, ...]:
    """The baseline: the same number of tokens before each block, one more before the first few, all units kept.

    Raises:
        BudgetError: the budget cannot be reached so.
    """
    assert cost.space is not None
    places = len(cost.space.blocks) - 1
    with contextlib.suppress(BudgetError):  # raised where too few tokens are left
        for total in itertools.count():
            r, more = divmod(total, places)
            schedule = (0, *(r + (place < more) for place in range(places)))
            if cost.merged(schedule)(cost.sizes) <= limit:
                return schedule
    raise BudgetError("merging the same number of tokens everywhere cannot reach this budget: ask for more.")


def _in_turns(
    mu: float, choices: Mapping[str, Choices], steps: Steps, cost: CostModel, tokens: TokenSpace
) -> tuple[dict[str, int], tuple[int, ...]]:
    schedule: tuple[int, ...] = (0,) * len(tokens.blocks)
    kept: dict[str, int] = {}
    for _ in range(ROUNDS):
        kept = cheapest(choices, spending(choices, cost.merged(schedule).prices(cost.sizes), cost.entry), mu)
        chosen = _schedule(mu, kept, steps, cost, tokens)
        if chosen == schedule:
            break
        schedule = chosen
    return cheapest(choices, spending(choices, cost.merged(schedule).prices(cost.sizes), cost.entry), mu), schedule


def _schedule(
    mu: float, kept: Mapping[str, int], steps: Steps, cost: CostModel, tokens: TokenSpace
) -> tuple[int, ...]:
    """The best schedule for these units at a price of MACs, over the number of tokens merged so far."""
    count = cost.tokens
    merged = torch.arange(count + 1)
    left = (count - merged).double()
    # step[M', M]: from M' merged tokens to M, if so many can merge at once and one that may merge is left.
    highest = torch.tensor([int(m) + most(count - int(m), tokens.protected) for m in merged])
    value = torch.full((count + 1,), torch.inf, dtype=torch.float64)
    value[0] = 0.0
    choice = []
    for place, (per_token, per_pair) in enumerate(cost.by_block(kept)):
        if place:
            best, origin = torch.full_like(value, torch.inf), torch.zeros_like(merged)
            for part in steps.parts():
                possible = (merged >= merged[part, None]) & (merged <= highest[part, None])
                options = torch.where(possible, value[part, None] + steps.table(place, part), torch.inf)
                lowest, row = options.min(0)
                origin = torch.where(lowest < best, row + part.start, origin)
                best = torch.minimum(best, lowest)
            value = best
            choice.append(origin)
        value = value + mu * (per_token * left + per_pair * left**2)
    place, path = int(value.argmin()), []
    for origin in reversed(choice):
        path.append(place - int(origin[place]))
        place = int(origin[place])
    return (0, *reversed(path))


def _fill(
    schedule: tuple[int, ...], kept: Mapping[str, int], steps: Steps, cost: CostModel, limit: int
) -> tuple[int, ...]:
    """Merge less where it fits: again and again the one token that saves the most cost per price."""
    while True:
        best, gain, spent = None, 0.0, cost.merged(schedule)(kept)
        for place, r in enumerate(schedule):
            if r:
                less = (*schedule[:place], r - 1, *schedule[place + 1 :])
                macs = cost.merged(less)(kept)
                saved = (schedule_cost(schedule, steps) - schedule_cost(less, steps)) / max(macs - spent, 1)
                if macs <= limit and saved > gain:
                    best, gain = less, saved
        if best is None:
            return schedule
        schedule = best
