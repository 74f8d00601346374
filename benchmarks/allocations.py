"""How peers spread a budget over the groups of a network: the same share of all, or by one ranking of all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

import optin
from optin.accounting import costs
from optin.describing import describe
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
