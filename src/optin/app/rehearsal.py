"""What can be said of a run before it scores anything: whether it can be done, and about what it takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ..accounting import costs
from ..checks import check_inputs
from ..choosing.allocation import check_exchange, check_search
from ..choosing.latency import forward_ms
from ..choosing.within import REFITS
from ..errors import InputError
from ..inspection import calibration_of, described_by
from ..planning import plan
from ..recipe import Recipe
from ..running.batches import HELD_OUT, Batches
from ..running.job import Job as Described
from ..running.modules import inference_mode_of, weight_bytes
from ..running.twins import twinned
from ..scoring.blockwise import by_blocks
from ..scoring.compensated import moment_bytes
from ..scoring.criteria import CRITERIA, criterion, engine_for
from ..scoring.loss import parted
from ..space.loss import Loss, aim_of
from ..space.scores import Curve, Scores
from ..space.units import UnitSpace
from ..storage.planned import check_heads
from ..support.files import cache_folder
from ..support.untyped import Figures
from .placement import Job

# Dense passes over the calibration inputs of the default criterion, where they are enough (docs/results/scaling.md).
SCORE, REFIT = 6.0, 3.5
BY_BLOCKS = 2  # as long at most: forwards are run again, and what waits is written


def check_choices(job: Job, budgets: Sequence[str | None]) -> None:
    """Refuse what the search after the scoring would not take.

    Raises:
        InputError: an unknown search, or one that needs other scores.
        BudgetError: a budget that cannot be reached, where that can be said without timing; says the smallest.
    """
    calibration = calibration_of(job.model, job.batches)
    _check_choices(job, budgets, calibration, _described(job, calibration))


def _described(job: Job, calibration: Batches) -> UnitSpace:
    recipe = job.recipe
    space = described_by(job.model, calibration, parts=recipe.parts, queries=recipe.queries)
    return space.restricted(**recipe.limits)


def _check_choices(job: Job, budgets: Sequence[str | None], calibration: Batches, space: UnitSpace) -> None:
    recipe = job.recipe
    check_search(recipe)
    check_exchange(space, recipe, calibration.examples)
    check_heads(job.model, space)
    engine_for(recipe, "local", None, None)
    if recipe.rearrange and not criterion(recipe.criterion).gradients:
        known = ", ".join(name for name, one in CRITERIA.items() if one.gradients)
        raise InputError(f"'rearrange' needs scores of the criterion {known}, not of {recipe.criterion}.")
    length, width = recipe.length or calibration.positions, None if recipe.length else calibration.width
    curves = {group.name: Curve.from_importance(torch.ones(group.size)) for group in space}
    for budget in budgets:
        aim = aim_of(budget or "")
        if isinstance(aim, Loss) or recipe.tokens.merge != "none":
            continue
        if aim.quantity == "latency":
            cache_folder()  # which times are kept in
            continue
        asked = recipe.override(budget=budget, search="lagrange", rearrange=False)
        provenance = {"recipe": asked.to_dict(), "data": {"inputs": calibration.looks}}
        plan(job.model, Scores(space.architecture, curves, length, provenance, width=width), recipe=asked)


def rehearse(job: Job, budgets: Sequence[str]) -> Figures:
    """Everything checked and counted, nothing scored; of the default criterion about how long, and how much memory.

    Raises:
        OptinError: what the run itself would say before it scores.
    """
    recipe = job.recipe
    calibration = calibration_of(job.model, job.batches)
    for budget in budgets:
        parted(job.model, calibration, recipe.override(budget=budget))
    space = _described(job, calibration)
    with twinned(job.model):
        compared = check_inputs(Described(job.model, space, calibration, recipe))
    _check_choices(job, budgets, calibration, space)
    macs, parameters = costs(job.model, space, recipe.length or calibration.positions, calibration.width)
    seconds = _pass_seconds(job, calibration)
    found: Figures = {
        "dry run": "nothing was scored",
        "architecture": space.architecture,
        "groups": f"{len(space.sizes)}, of {sum(space.sizes.values()):,} units",
        "MACs per example": f"{macs.dense:,}",
        "parameters": f"{parameters.dense:,}",
        "compared": compared,
        "calibration": f"{calibration.examples:,} examples",
        "evaluation": "none" if job.evaluation is None else f"{len(job.evaluation):,} examples",
        "dense pass, seconds": round(seconds, 2),
    }
    if recipe.criterion == Recipe().criterion:
        refits = sum(REFITS + 1 if isinstance(aim_of(budget), Loss) else 1 for budget in budgets)
        # Fewer examples than draws are used again and again.
        passes = SCORE * max(1, recipe.trajectory.draws / calibration.examples)
        passes *= BY_BLOCKS if recipe.offload else 1
        passes += REFIT * refits if recipe.refit.enabled else 0
        passes += recipe.exchange * len(budgets) * (REFIT + 2 * len(space) / (2 * HELD_OUT))
        found["until it is saved, seconds, about"] = round(seconds * passes, 1)
        parts = by_blocks(space).values() if recipe.offload else [space]
        memory = weight_bytes(job.model) + max(moment_bytes(job.model, part) for part in parts)
        found["memory above the network, MB, about"] = round(memory / 1e6)
    return found


def _pass_seconds(job: Job, calibration: Batches) -> float:
    """Of the dense network over all inputs, from the batch in the middle: texts come in order of their length."""
    middle = next(itertools.islice(iter(calibration), len(calibration) // 2, None))
    with inference_mode_of(job.model), torch.inference_mode():
        forward_ms(job.model, middle)
        return forward_ms(job.model, middle) / 1000 * len(calibration)
