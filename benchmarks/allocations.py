"""How peers spread a budget over the groups of a network.

The same share of all, one ranking of all units, or an evolution from the same share on, which moves sparsity between
layers of one kind at random and keeps what the outputs lose least by (Tyr-the-Pruner, NeurIPS 2025).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

import optin
from optin.accounting import costs
from optin.choosing.exchanges import PARTS, steps
from optin.describing import describe
from optin.exchanging import SHARES, Exchange
from optin.inspection import calibration_of
from optin.planning import room_for
from optin.recipe import Recipe
from optin.refit.levels import Levels
from optin.running.twins import stage
from optin.space.plans import Cost, Plan
from optin.space.scores import Curve


class Chooser:
    """Plans under budgets, of the groups of a network."""

    def __init__(self, model: nn.Module, scores: optin.Scores) -> None:
        self.space = describe(model)
        self.scores = scores
        self.work, self.parameters = costs(model, self.space, scores.length, scores.width)

    def uniform(self, curves: Mapping[str, Curve], budget: int, spared: Sequence[str] = ()) -> Plan:
        """The same share of every group that is not spared, the most important units: the largest that fits."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self._fits(self._counts(middle, spared), budget) else (low, middle)
        return self._plan(curves, self._counts(low, spared))

    def ranked(self, curves: Mapping[str, Curve], budget: int) -> Plan:
        """The least important units of all groups go until the budget is kept; one of every group stays."""
        order = sorted((float(value), group.name) for group in self.space for value in curves[group.name].importance)
        counts = dict(self.space.sizes)
        least = {group.name: max(1, group.min_keep) for group in self.space}
        for _, name in order:
            if self._fits(counts, budget):
                break
            counts[name] = max(counts[name] - 1, least[name])
        return self._plan(curves, counts)

    def _counts(self, share: float, spared: Sequence[str]) -> dict[str, int]:
        return {
            group.name: group.size if group.name in spared else max(group.min_keep, int(share * group.size))
            for group in self.space
        }

    def _fits(self, counts: dict[str, int], budget: int) -> bool:
        return self.work(counts) <= budget / 100 * self.work.dense

    def _plan(self, curves: Mapping[str, Curve], counts: dict[str, int]) -> Plan:
        keep = {name: curves[name].keep(count) for name, count in counts.items()}
        dense = Cost(self.work.dense, self.parameters.dense)
        after = Cost(self.work(counts), self.parameters(counts))
        return Plan(
            self.space.architecture, self.space.sizes, keep, dense, after, self.scores.length, width=self.scores.width
        )


class Evolution(Exchange):
    """Random moves in place of those that were measured one by one; as many networks are measured in a round."""

    def _round(self) -> Iterator[None]:
        state, drawn = self.state, random.Random(self.state.rounds)
        offered = steps({name: self.choices[name] for name in self.groups}, state.kept, PARTS[state.place])
        levels = Levels(self.job, state.kept, offered, self._units, self.weights)
        now = self.held_out.by_batch(levels.network)
        yield
        best = self._mean(now)
        state.best, state.losses = state.kept, [*state.losses, best]
        for _ in range(2 * len(self.groups) + len(SHARES)):
            child = self._child(offered, levels.kept, state.kept, drawn)
            yield
            if child != levels.kept and self.room.cost(child) <= self.limit:
                for name in self.groups:
                    levels.put(name, child[name])
                loss = self.held_out.lost(levels.network)
                for name in self.groups:
                    levels.put(name, levels.kept[name])
                if loss < best:
                    best, state.kept = loss, child
        state.place += 1

    def _child(
        self,
        offered: Mapping[str, Sequence[int]],
        start: Mapping[str, int],
        kept: Mapping[str, int],
        drawn: random.Random,
    ) -> dict[str, int]:
        """One to three moves of a step between two groups of a kind, on top of those that were kept."""
        child = dict(kept)
        for _ in range(drawn.randint(1, 3)):
            kind = self.room.space[drawn.choice(self.groups)].kind
            alike = [name for name in self.groups if self.room.space[name].kind == kind]
            giver, taker = drawn.sample(alike, 2)
            below = [count for count in [*offered[giver], start[giver]] if count < child[giver]]
            above = [count for count in [*offered[taker], start[taker]] if count > child[taker]]
            if below and above:
                child[giver], child[taker] = max(below), min(above)
        return child


@stage
def evolved(
    model: nn.Module, scores: optin.Scores, batches: Sequence[Mapping[str, object]], recipe: Recipe, budget: int
) -> Plan:
    """Tyr-the-Pruner's allocation of our units, from the same share of all on; four rounds, coarse to fine."""
    recipe = recipe.override(budget=f"{budget}%", exchange=len(PARTS) + 1)
    start = Chooser(model, scores).uniform(scores.curves, budget)
    room = room_for(model, scores, recipe, optin.silent)
    return Evolution(model, room, start, calibration_of(model, batches), None, None).run(optin.silent)
