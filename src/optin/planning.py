"""The units to keep under a budget: `plan`, and what every choice of them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from .accounting import cost_in, costs
from .checks import check_fitting, check_merging, check_scores
from .choosing.allocation import allocate, kept_units, searched
from .choosing.latency import multiple_of
from .describing import describe
from .describing.inputs import inputs_like, planned_inputs
from .errors import InputError
from .recipe import Recipe, budgeted, limited, recipe_of
from .running.cost import CostModel
from .running.modules import device_of
from .running.twins import on_twins
from .space.budget import PER_MS, Budget
from .space.loss import cost_of
from .space.plans import Cost, Latency, Plan
from .space.scores import Scores
from .space.units import UnitSpace
from .support.progress import Track, automatic


@on_twins
def plan(
    model: nn.Module,
    scores: Scores,
    budget: str | float | Budget | None = None,
    *,
    recipe: Recipe | str | Mapping[str, object] | None = None,
    track: Track = automatic,
) -> Plan:
    """The units to keep under a budget; needs no data and, for any number of budgets, no rescoring.

        plan = optin.plan(model, scores, "50%")

    For a budget of latency the network is timed at many sizes first, once on every machine.

    Args:
        scores: of this network, from `score`; budget, recipe and track as in `prune`.

    Raises:
        BudgetError: the budget cannot be read or reached; the message says the smallest that can.
        InputError: the scores are of another network.
    """
    room = room_for(model, scores, budgeted(recipe_of(recipe, budget=budget)), track)
    return room.plan(*allocate(room.space, scores, room.cost, room.budget, room.recipe, room.multiples))


@dataclass(frozen=True)
class Room:
    """What a budget leaves room for.

    Attributes:
        space: what may go.
        cost: of any choice of counts, in what the budget is of.
        multiples: by group, what its kept count must be a multiple of.
        macs, parameters: as `cost`.
        length, width: the positions that are counted at.
    """

    space: UnitSpace
    scores: Scores
    recipe: Recipe
    budget: Budget
    cost: CostModel
    multiples: Mapping[str, int]
    macs: CostModel
    parameters: CostModel
    length: int
    width: int | None

    def plan(self, kept: Mapping[str, int], schedule: Sequence[int] = ()) -> Plan:
        """Of so many units of each group, and a schedule of tokens."""
        latency = None
        if self.budget.quantity == "latency":
            latency = Latency(self.recipe.latency_batch, self.cost.dense / PER_MS, self.cost(kept) / PER_MS)
        return Plan(
            architecture=self.space.architecture,
            sizes=self.space.sizes,
            keep=kept_units(self.scores, kept, self.recipe),
            dense=Cost(self.macs.dense, self.parameters.dense),
            pruned=Cost(self.macs.merged(schedule)(kept), self.parameters(kept)),
            length=self.length,
            width=self.width,
            tokens=tuple(schedule),
            latency=latency,
            description=self.space,
            provenance={**self.scores.provenance, "recipe": self.recipe.to_dict(), "budget": str(self.budget)},
        )


def room_for(model: nn.Module, scores: Scores, recipe: Recipe, track: Track) -> Room:
    """What the budget of a recipe leaves room for; see `plan`."""
    check_scores(model, scores)
    recipe = limited(recipe, scores.provenance)
    space = describe(model, planned_inputs(model, scores, 2), parts=recipe.parts, queries=recipe.queries)
    space = space.restricted(**recipe.limits)
    check_fitting(scores, space)
    space = searched(space, recipe)
    budget = cost_of(recipe.budget or "", "a plan without inputs")
    if recipe.tokens.merge != "none" and budget.quantity != "MACs":
        raise InputError(f"token schedules are chosen under a budget of MACs, not of {budget.quantity}.")
    check_merging(model, recipe)
    length, width = (recipe.length, None) if recipe.length else (scores.length, scores.width)
    macs, parameters = costs(model, space, length, width, scores)
    inputs = inputs_like(model, scores, length, width, recipe.latency_batch)
    cost = cost_in(budget.quantity, model, space, macs, parameters, inputs, track)
    even = budget.quantity == "latency" or device_of(model).type == "cuda"
    multiples = {g.name: recipe.round_to or (multiple_of(g) if even else 1) for g in space if not g.of.attention}
    return Room(space, scores, recipe, budget, cost, multiples, macs, parameters, length, width)
