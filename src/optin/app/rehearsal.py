"""What can be said of a run before it scores anything: whether it can be done, and about what it takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ..accounting import costs
from ..checks import check_inputs
from ..choosing.allocation import check_search
from ..choosing.latency import forward_ms
from ..errors import InputError
from ..inspection import calibration_of, described_by
from ..pipeline import plan
from ..recipe import Recipe
from ..running.job import Job as Described
from ..running.modules import inference_mode_of, weight_bytes
from ..running.twins import twinned
from ..scoring.compensated import moment_bytes
from ..scoring.criteria import CRITERIA, criterion
from ..scoring.loss import parted
from ..space.loss import Loss, aim_of
from ..space.scores import Curve, Scores
from ..support.files import cache_folder
from ..support.untyped import Figures
from .placement import Job

# Dense passes over the calibration inputs, as docs/results/scaling.md has them where there are inputs enough.
PASSES = {"compensated": 6.0, "sketch": 6.0, "fisher": 3.0}
REFIT = 3.5


def check_choices(job: Job, budgets: Sequence[str | None]) -> None:
    """Refuse what the search after the scoring would not take.

    Raises:
        InputError: an unknown search, or one that needs other scores.
        BudgetError: a budget that cannot be reached, where that can be said without timing; says the smallest.
    """
    recipe = job.recipe
    check_search(recipe)
    if recipe.rearrange and not criterion(recipe.criterion).gradients:
        known = ", ".join(name for name, one in CRITERIA.items() if one.gradients)
        raise InputError(f"'rearrange' needs scores of the criterion {known}, not of {recipe.criterion}.")
    for budget in budgets:
        _check_budget(job, recipe.override(budget=budget, search="lagrange", rearrange=False))


def _check_budget(job: Job, recipe: Recipe) -> None:
    aim = aim_of(recipe.budget or "")
    if isinstance(aim, Loss):
        return
    if aim.quantity == "latency":
        cache_folder()  # which times are kept in
        return
    if recipe.tokens.merge != "none":
        return
    calibration = calibration_of(job.model, job.batches)
    space = described_by(job.model, calibration).restricted(**recipe.limits)
    length, width = recipe.length or calibration.positions, None if recipe.length else calibration.width
    curves = {group.name: Curve.from_importance(torch.ones(group.size)) for group in space}
    provenance = {"recipe": recipe.to_dict(), "data": {"inputs": calibration.looks}}
    plan(job.model, Scores(space.architecture, curves, length, provenance, width=width), recipe=recipe)


def rehearse(job: Job, budgets: Sequence[str]) -> Figures:
    """Everything checked and counted, nothing scored; about how long it takes, and how much memory.

    Raises:
        OptinError: what the run itself would say before it scores.
    """
    recipe = job.recipe
    calibration = calibration_of(job.model, job.batches)
    for budget in budgets:
        parted(calibration, aim_of(budget))
    space = described_by(job.model, calibration).restricted(**recipe.limits)
    with twinned(job.model):
        compared = check_inputs(Described(job.model, space, calibration, recipe))
    check_choices(job, budgets)
    macs, parameters = costs(job.model, space, recipe.length or calibration.positions, calibration.width)
    middle = next(itertools.islice(iter(calibration), len(calibration) // 2, None))  # texts come in order of length
    with inference_mode_of(job.model), torch.inference_mode():
        forward_ms(job.model, middle)
        seconds = forward_ms(job.model, middle) / 1000 * len(calibration)
    networks = sum(REFIT * (7 if isinstance(aim_of(budget), Loss) else 1) for budget in budgets)
    passes = _scoring_passes(recipe, calibration.examples, sum(space.sizes.values()))
    passes += networks if recipe.refit.enabled else 0
    memory = weight_bytes(job.model) + (moment_bytes(job.model, space) if recipe.criterion == "compensated" else 0)
    return {
        "dry run": "nothing was scored",
        "architecture": space.architecture,
        "groups": f"{len(space.sizes)}, of {sum(space.sizes.values()):,} units",
        "MACs per example": f"{macs.dense:,}",
        "parameters": f"{parameters.dense:,}",
        "compared": compared,
        "calibration": f"{calibration.examples:,} examples",
        "evaluation": "none" if job.evaluation is None else f"{len(job.evaluation):,} examples",
        "dense pass, seconds": round(seconds, 2),
        "whole run, seconds, about": round(seconds * passes, 1),
        "memory above the network, MB, about": round(memory / 1e6),
    }


def _scoring_passes(recipe: Recipe, examples: int, units: int) -> float:
    """Fewer examples than draws are used again and again; `exact` runs what follows a unit for each of them."""
    if recipe.criterion == "exact":
        return units / 2
    return PASSES.get(recipe.criterion, 0) * max(1, recipe.trajectory.draws / examples)
