"""Search: how many units each group keeps, so that the budget is met at the least trajectory cost.

Both searches return counts that never exceed the limit and leave less than one smallest step of it unused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError
from ..running.cost import CostModel
from ..space.budget import Budget, shown
from ..space.scores import Curve
from ..space.units import UnitGroup, UnitSpace

ROUNDS = 8  # turns of choosing counts at given prices and prices at given counts


@dataclass(frozen=True)
class Choices:
    """The counts that a group may keep, and what each costs.

    Attributes:
        counts: shape (c,), int64, ascending; the last keeps everything.
        cost: shape (c,), float64: trajectory cost of keeping so many.
    """

    counts: Tensor
    cost: Tensor

    @classmethod
    def of(cls, group: UnitGroup, curve: Curve, multiple: int) -> Choices:
        """Multiples from `min_keep` up, and everything."""
        multiple = math.lcm(multiple, group.multiple)
        first = -(-group.min_keep // multiple) * multiple
        counts = sorted({*range(first, group.size + 1, multiple), group.size})
        kept = torch.tensor(counts)
        return cls(kept, curve.cost[group.size - kept])


@runtime_checkable
class Search(Protocol):
    """Counts per group whose cost is at most `limit`."""

    def __call__(
        self,
        curves: Mapping[str, Curve],
        choices: Mapping[str, Choices],
        space: UnitSpace,
        cost: CostModel,
        limit: int,
    ) -> dict[str, int]: ...


def find(
    space: UnitSpace,
    curves: Mapping[str, Curve],
    cost: CostModel,
    budget: Budget,
    method: str,
    multiples: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, int]:
    """Units to keep per group under a budget.

    Args:
        multiples: by group, what its kept count must be a multiple of.

    Raises:
        BudgetError: the budget is below what keeping the least of everything costs.
    """
    choices = choices_of(space, curves, multiples)
    return SEARCHES[method](curves, choices, space, cost, limit_of(budget, cost, choices))


def choices_of(space: UnitSpace, curves: Mapping[str, Curve], multiples: Mapping[str, int]) -> dict[str, Choices]:
    """Of every group."""
    return {group.name: Choices.of(group, curves[group.name], multiples.get(group.name, 1)) for group in space}


def limit_of(budget: Budget, cost: CostModel, choices: Mapping[str, Choices]) -> int:
    """The budget as a number of MACs, parameters, bytes or picoseconds.

    Raises:
        BudgetError: it is below what keeping the least of everything costs.
    """
    limit = budget.limit(cost.dense)
    least = {name: int(choice.counts[0]) for name, choice in choices.items()}
    if cost(least) > limit:
        share = 100 * cost(least) / cost.dense
        stays = "one unit per group" if all(least.values()) else "what is no part"
        if share > 99.9:
            raise BudgetError(
                f"a budget of {budget} cannot be reached: without its units this model costs no less "
                f"({shown(cost.dense, cost.quantity)}). "
                + ("Try a larger latency batch, or a budget of MACs." if cost.quantity == "latency" else "")
            )
        raise BudgetError(
            f"a budget of {budget} cannot be reached: this model keeps at least {shown(cost(least), cost.quantity)} "
            f"({share:.1f}% of {shown(cost.dense, cost.quantity)}: embeddings, head and {stays}). "
            f"Ask for {math.ceil(share * 10) / 10:g}% {cost.quantity} or more."
        )
    return limit


def lagrange(
    curves: Mapping[str, Curve], choices: Mapping[str, Choices], space: UnitSpace, cost: CostModel, limit: int
) -> dict[str, int]:
    """Least total cost: every group minimises cost + mu * price, mu by bisection; then the slack is filled.

    Prices are those of the dense network at first, then of the counts found, as long as that helps.
    """
    prices, best = cost.prices(cost.sizes), dict[str, int]()
    for _ in range(ROUNDS):
        kept = fill(_within(limit, choices, prices, cost), choices, cost, limit)
        if best and total_cost(kept, choices) >= total_cost(best, choices):
            break
        # Where groups share a cost, as channels in and out of a convolution do, prices fall with what others keep.
        best, prices = kept, cost.prices(kept)
    return best


def _within(limit: int, choices: Mapping[str, Choices], prices: Mapping[str, int], cost: CostModel) -> dict[str, int]:
    """What is cheapest at the least multiplier that keeps to the limit, by bisection."""

    spent = spending(choices, prices, cost.entry)

    def at(mu: float) -> dict[str, int]:
        return cheapest(choices, spent, mu)

    low, high = 0.0, 1e-12
    while cost(at(high)) > limit:
        low, high = high, high * 8
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) > limit else (low, middle)
    return at(high)


def total_cost(kept: Mapping[str, int], choices: Mapping[str, Choices]) -> float:
    """The trajectory cost of keeping so many units of each group."""
    return sum(float(choice.cost[int((choice.counts == kept[name]).nonzero())]) for name, choice in choices.items())


def spending(
    choices: Mapping[str, Choices], prices: Mapping[str, int], entry: Mapping[str, int]
) -> dict[str, Tensor]:
    """What every count of each group costs: its units, and for the first of them the entry, see `CostModel.entry`."""
    return {
        name: prices[name] * choice.counts + entry[name] * (choice.counts > 0) for name, choice in choices.items()
    }


def cheapest(choices: Mapping[str, Choices], spent: Mapping[str, Tensor], mu: float) -> dict[str, int]:
    """The count of each group that minimises its cost + mu * what is `spent` on it."""
    return {
        name: int(choice.counts[torch.argmin(choice.cost + mu * spent[name])]) for name, choice in choices.items()
    }


def fill(kept: dict[str, int], choices: Mapping[str, Choices], cost: CostModel, limit: int) -> dict[str, int]:
    """Spend what is left of the budget: again and again the step that fits and saves the most cost per price.

    Prices are at most what a step costs, so what is affordable by them is tried by its cost.
    """
    kept = dict(kept)
    places = {name: int((choice.counts == kept[name]).nonzero()) for name, choice in choices.items()}
    while True:
        slack, prices = limit - cost(kept), cost.prices(kept)
        steps = []
        for name, choice in choices.items():
            place = places[name]
            if place + 1 == len(choice.counts):
                continue
            price = prices[name] * int(choice.counts[place + 1] - choice.counts[place])
            price += 0 if kept[name] else cost.entry[name]
            saved = float(choice.cost[place] - choice.cost[place + 1]) / max(price, 1)
            if price <= slack:
                steps.append((-saved, name, int(choice.counts[place + 1])))
        steps.sort(key=lambda step: step[0])
        taken = next(((name, count) for _, name, count in steps if cost({**kept, name: count}) <= limit), None)
        if taken is None:
            return kept
        places[taken[0]] += 1
        kept[taken[0]] = taken[1]


def paper(
    curves: Mapping[str, Curve], choices: Mapping[str, Choices], space: UnitSpace, cost: CostModel, limit: int
) -> dict[str, int]:
    """The paper's search: heads and neurons ranked globally; for every number of heads the rest is neurons.

    The best total importance wins. The least of every group stays, whatever its rank.
    """
    prices = cost.prices(cost.sizes)
    least = {name: int(choice.counts[0]) for name, choice in choices.items()}
    heads = _ranking([group for group in space if group.of.attention], choices)
    others = _ranking([group for group in space if not group.of.attention], choices)

    def price(name: str, step: int, first: bool) -> int:
        return prices[name] * step + cost.entry[name] * first

    spent = torch.tensor([0] + [price(name, step, first) for name, step, first, _ in others]).cumsum(0)
    gained = torch.tensor([0.0] + [gain for *_, gain in others], dtype=torch.float64).cumsum(0)
    best: tuple[float, int, int] = (-math.inf, 0, 0)
    left, total = limit - cost(least), 0.0
    for count in range(len(heads) + 1):
        if count:
            name, step, first, gain = heads[count - 1]
            left, total = left - price(name, step, first), total + gain
        if left < 0:
            break
        rest = int(torch.searchsorted(spent, left, right=True)) - 1
        best = max(best, (total + float(gained[rest]), count, rest))
    kept = dict(least)
    for name, step, *_ in heads[: best[1]] + others[: best[2]]:
        kept[name] += step
    return fill(kept, choices, cost, limit)


def _ranking(groups: list[UnitGroup], choices: Mapping[str, Choices]) -> list[tuple[str, int, bool, float]]:
    """Steps beyond the least as (group, units, whether they are its first, importance), by importance per unit.

    No step of a group is ranked above one before it, so that a prefix of the ranking is a valid choice.
    """
    ranked: list[tuple[float, tuple[str, int, bool, float]]] = []
    for group in groups:
        counts, cost = choices[group.name].counts, choices[group.name].cost
        rank = math.inf
        for before, units, gain in zip(
            counts.tolist(), counts.diff().tolist(), (-cost.diff()).tolist(), strict=False
        ):
            rank = min(rank, gain / units)
            ranked.append((rank, (group.name, units, before == 0, gain)))
    return [step for _, step in sorted(ranked, key=lambda entry: -entry[0])]


def rearranged(curve: Curve, gradients: Float[Tensor, "draw unit"], count: int) -> tuple[int, ...]:
    """`count` units to keep, so that the gradients of those that go cancel: mask rearrangement.

    min over the mask   || sum_u g_u ||^2 over the units u that go      (Kwon et al., NeurIPS 2022, section 4.2)

    Greedy: each unit that stays, least important first, may take the place of the one whose return helps most.
    """
    columns, removed = gradients.double(), len(curve.order) - count
    gone = curve.order[:removed].tolist()
    total = columns[:, gone].sum(1)
    for unit in curve.order[removed:].tolist() if gone else []:
        gone.append(unit)
        total = total + columns[:, unit]
        without = columns[:, gone].square().sum(0) - 2 * total @ columns[:, gone]
        back = gone.pop(int(without.argmin()))
        total = total - columns[:, back]
    return tuple(sorted(set(range(len(curve.order))) - set(gone)))


SEARCHES: Mapping[str, Search] = {"lagrange": lagrange, "paper": paper}
