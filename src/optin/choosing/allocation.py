"""How many units each group keeps under a budget, how many tokens merge, and which units these are."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InputError, unknown
from ..recipe import Recipe
from ..running.cost import CostModel
from ..space.budget import Budget
from ..space.loss import Loss, aim_of
from ..space.scores import Scores
from ..space.units import UnitSpace
from .merging_costs import token_space
from .schedule import constant, find_jointly
from .search import SEARCHES, find, rearranged


def kept_units(scores: Scores, kept: Mapping[str, int], recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """So many units of each group: the last of its removal curve, or rearranged."""
    if not recipe.rearrange:
        return {name: scores.curves[name].keep(count) for name, count in kept.items()}
    if not scores.gradients:
        raise InputError("these scores hold no gradients to rearrange by. Score with 'fisher' and 'rearrange: true'.")
    return {name: rearranged(scores.curves[name], scores.gradients[name], count) for name, count in kept.items()}


def searched(space: UnitSpace, recipe: Recipe) -> UnitSpace:
    """What may go: units, and whole parts if the recipe says so, but no heads by which tokens merge."""
    if not recipe.parts:
        return space
    return space.by_parts(space.tokens.heads if space.tokens and recipe.tokens.merge != "none" else ())


LEAST = 8  # inputs of an exchange, of which two are held out


def check_search(recipe: Recipe) -> None:
    """Refuse a search that there is not, or that cannot choose tokens.

    Raises:
        InputError: says which can.
    """
    if recipe.search not in SEARCHES:
        raise InputError(unknown("search", recipe.search, SEARCHES))
    if recipe.tokens.merge == "search" and recipe.search != "lagrange":
        raise InputError(f"the search {recipe.search!r} chooses no tokens: take 'lagrange', or tokens.merge 'none'.")


def check_exchange(space: UnitSpace, recipe: Recipe, examples: int) -> None:
    """Refuse an exchange that cannot be measured.

    Args:
        examples: calibration inputs.

    Raises:
        InputError: says what to change.
    """
    reasons = {
        f"it holds every fourth input out, and needs {LEAST}: {examples} are too few": examples < LEAST,
        "tokens that merge are chosen with the units: take tokens.merge 'none'": recipe.tokens.merge != "none",
        "what is measured is the refitted network: leave refit.enabled true": not recipe.refit.enabled,
        "it keeps to a budget of cost, such as '50%'": recipe.budget is not None
        and isinstance(aim_of(recipe.budget), Loss),
        "blocks of this network run more than once, or share their weights": any(group.shared for group in space)
        or len(set(space.body)) < len(space.body),
    }
    if recipe.exchange and any(reasons.values()):
        reason = next(text for text, holds in reasons.items() if holds)
        raise InputError(f"units cannot be exchanged here ({reason}). Leave 'exchange' at 0.")


def allocate(
    space: UnitSpace,
    scores: Scores,
    cost: CostModel,
    budget: Budget,
    recipe: Recipe,
    multiples: Mapping[str, int],
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Units to keep per group, and the token schedule."""
    check_search(recipe)
    if recipe.tokens.merge == "search":
        if scores.tokens is None:
            raise InputError("the scores say nothing about tokens. Score again with tokens.merge 'search'.")
        return find_jointly(space, scores.curves, scores.tokens, cost, budget, multiples)
    if recipe.tokens.merge == "constant":
        token_space(space)
        return dict(space.sizes), constant(cost, budget.limit(cost.dense))
    return find(space, scores.curves, cost, budget, recipe.search, multiples), ()
