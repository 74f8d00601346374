"""The main job: score, search, shrink, compensate. Read `prune` first; each step is usable alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .accounting import figures_of
from .checks import check_inputs, check_merging, check_scores, checked_before, planned, self_check
from .choosing.allocation import check_exchange
from .choosing.latency import milliseconds
from .choosing.merging_costs import token_costs
from .choosing.within import smallest_within
from .describing.inputs import planned_inputs
from .describing.refusals import check_network
from .errors import InputError
from .exchanging import exchange
from .inspection import calibration_of, described_by, described_for
from .planning import plan
from .recipe import Recipe, budgeted, recipe_of
from .refit.compensation import compensate
from .result import Result, plan_figures
from .running.batches import Batches
from .running.job import Job
from .running.mapped import copied, into_files
from .running.modules import check_weights
from .running.outputs import Reader, reading
from .running.twins import plain_again, stage
from .scoring.criteria import Scoring, engine_for, found_by
from .scoring.engines import Engine
from .scoring.loss import HeldOut, parted
from .scoring.token_weights import drawn_before
from .space.budget import Budget
from .space.loss import Loss, cost_of
from .space.plans import Plan
from .space.scores import Scores
from .storage.planned import check_heads, cut_to_plan, record_plan
from .support.clock import Clock
from .support.progress import Callback, Track, automatic, no_callback, silent
from .tasks import batches_of, load_model


def prune(
    model: nn.Module | str | Path,
    batches: Iterable[object],
    budget: str | float | Budget | Loss | None = None,
    *,
    tokenizer: object = None,
    processor: object = None,
    batch_size: int | None = None,
    recipe: Recipe | str | Mapping[str, object] | None = None,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    output: str | Reader | None = None,
    inplace: bool = False,
    track: Track = automatic,
    callback: Callback = no_callback,
) -> Result:
    """Turn a trained network into a physically smaller one under a budget. No labels, no training.

        result = optin.prune(model, batches, budget="50%")
        result = optin.prune(model, texts, budget="50%", tokenizer=tokenizer)

    Args:
        model: any module whose forward can be followed, left untouched unless `inplace`; or a folder or hub id.
        batches: any iterable of the model's keyword inputs; 256 examples are enough. With a tokenizer texts, with a
            processor images, or a data set of either: see `batches_of`.
        tokenizer, processor, batch_size: as of `batches_of`; what is not given is the recipe's.
        budget: "50%", 0.5, "2.1 GMACs", "40 Mparams", "40 MB", "12 ms", or a loss, "KL 0.01", "1 point"; the
            recipe's if not given.
        recipe: all other options: a `Recipe`, the name of a preset, or a dictionary.
        exclude: modules or groups that stay whole; names, or one text with commas between.
        only: those that alone may lose units, likewise.
        output: what of the network's output matters, as in `score`.
        track: shows progress: bars on a terminal and in a notebook; `optin.silent` shows nothing.
        callback: called as `callback(stage, figures)` after "score", "search" and "apply": "seconds" of each, of
            "score" also "examples", of "search" the shares of "macs" and "parameters" left.

    Raises:
        OptinError: see `optin.errors`; each message says what to do.
    """
    recipe = budgeted(recipe_of(recipe, budget=budget, exclude=exclude, only=only))
    clock = Clock()
    if isinstance(model, (str, Path)):
        model = load_model(str(model))
    if tokenizer is not None or processor is not None:
        drawn = recipe if batch_size is None else recipe.override(calibration__batch_size=batch_size)
        options = dataclasses.asdict(drawn.calibration)
        batches = batches_of(model, batches, tokenizer=tokenizer, processor=processor, seed=recipe.seed, **options)
    calibration, held_out = parted(model, calibration_of(model, batches), recipe, output)
    scores = score(model, calibration, recipe=recipe, output=output, track=track)
    clock.lap("score")
    callback("score", {"seconds": clock.laps["score"], "examples": calibration.examples})
    chosen = plan_within(model, scores, calibration, held_out, recipe=recipe, output=output, track=track)
    clock.lap("search")
    callback("search", {"seconds": clock.laps["search"], **chosen.shares})
    result = apply(
        model, chosen, calibration, recipe=recipe, scores=scores, output=output, inplace=inplace, track=track
    )
    callback("apply", {"seconds": sum(result.report["seconds"].values())})
    result.report["seconds"] = clock.laps | result.report["seconds"]
    return result


def sweep(
    model: nn.Module,
    batches: Iterable[Mapping[str, object]],
    budgets: Iterable[str | float | Budget],
    *,
    recipe: Recipe | str | Mapping[str, object] | None = None,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    scores: Scores | None = None,
    output: str | Reader | None = None,
    track: Track = automatic,
) -> Iterator[Result]:
    """One pruned network per budget, from one scoring.

        for result in optin.sweep(model, batches, ["80%", "60%", "40%"]): ...

    Args:
        budgets: of cost, each as in `prune`, and so are recipe, exclude, only, output and track.
        scores: of an earlier scoring.

    Raises:
        OptinError: as `prune`; a budget that cannot be reached is refused before any network is refitted.
    """
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise InputError(f"a sweep takes a list of budgets, such as ['80%', '60%'], not {budgets!r:.40}.")
    budgets = [cost_of(budget, "a sweep") for budget in budgets]
    recipes = [budgeted(recipe_of(recipe, budget=budget, exclude=exclude, only=only)) for budget in budgets]
    if not recipes:
        raise InputError("a sweep takes at least one budget, such as ['80%', '60%'].")
    calibration = calibration_of(model, batches)
    scores = scores or score(model, calibration, recipe=recipes[0], output=output, track=track)
    plans = [plan(model, scores, recipe=one, track=track) for one in recipes]
    for one, chosen in zip(recipes, plans, strict=True):
        if one.exchange:
            chosen = exchange(model, chosen, calibration, scores=scores, recipe=one, output=output, track=track)
        yield apply(model, chosen, calibration, recipe=one, scores=scores, output=output, track=track)


@stage
def score(
    model: nn.Module,
    batches: Iterable[Mapping[str, object]],
    *,
    recipe: Recipe | str | Mapping[str, object] | None = None,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    track: Track = automatic,
    output: str | Reader | None = None,
    resume: str | Path | None = None,
    engine: str | Engine = "local",
    address: str | None = None,
) -> Scores:
    """Removal curves of all groups: what every later choice of a budget needs.

        scores = optin.score(model, batches)

    Args:
        model, batches, recipe, exclude, only, track: as in `prune`; no budget is needed.
        output: what of the network's output is compared: the name of a field, or a function of what the forward
            returns. See `optin.running.outputs` for what is read by default.
        resume: a file in which partial sums are kept, so that a killed run can continue; those of token merging are
            kept beside it.
        engine: "local", or "ray" to spread the work over the actors of a Ray cluster: units of `exact`, calibration
            batches of `compensated` and `sketch`.
        address: of that cluster, "auto" or "HOST:PORT"; without one Ray is started on this machine.

    Raises:
        NumericalError: NaN or infinite weights or activations.
        InputError: no calibration inputs, an unknown criterion, or an engine that cannot be had.
    """
    recipe = recipe_of(recipe, output=output, exclude=exclude, only=only)
    where = engine_for(recipe, engine, address, output)
    check_network(model)
    check_weights(model)
    calibration = calibration_of(model, batches)
    space = described_by(model, calibration, parts=recipe.parts, queries=recipe.queries).restricted(**recipe.limits)
    check_merging(model, recipe)
    check_exchange(space, recipe, calibration.examples)
    check_heads(model, space)
    with reading(output):
        scoring = Scoring(model, space, calibration, recipe, track, Path(resume) if resume else None, where)
        compared = check_inputs(scoring)
        found = found_by(recipe.criterion, scoring)
        tokens = token_costs(scoring, found.scales) if recipe.tokens.merge == "search" else None
    return Scores(
        space.architecture,
        found.curves,
        recipe.length or calibration.positions,
        {**scoring.provenance, "compared": compared},
        tokens,
        None if recipe.length else calibration.width,
        {name: torch.stack(draws) for name, draws in found.gradients.items()},
        found.weights,
    )


def plan_within(
    model: nn.Module,
    scores: Scores,
    batches: Batches,
    held_out: HeldOut | None,
    *,
    recipe: Recipe,
    output: str | Reader | None = None,
    track: Track = automatic,
    resume: Path | None = None,
) -> Plan:
    """The plan for a budget; units are exchanged if the recipe says so.

    Where the budget is a loss, that of a small network that loses no more on held-out inputs.

    Args:
        batches: the calibration inputs that every network is refitted with.
        held_out: of `parted`; None for a budget of cost.
        resume: as of `exchange`.

    Raises:
        BudgetError: as `plan`; no network that is smaller stays within the loss.
    """
    if held_out is None:
        chosen = plan(model, scores, recipe=recipe, track=track)
        if not recipe.exchange:
            return chosen
        return exchange(
            model, chosen, batches, scores=scores, recipe=recipe, output=output, track=track, resume=resume
        )

    def lost(chosen: Plan) -> float:
        # Forgotten once it is measured, and the one that is taken made again: two more copies would cost more.
        return held_out.lost(
            apply(model, chosen, batches, recipe=recipe, scores=scores, output=output, track=silent).model
        )

    planned_at = partial(plan, model, scores, recipe=recipe, track=silent)
    chosen, found = smallest_within(held_out.aim, planned_at, lost, track)
    loss = {**found, "examples": held_out.batches.examples}
    return dataclasses.replace(chosen, provenance={**chosen.provenance, "loss": loss})


@stage
def apply(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Mapping[str, object]] | None = None,
    *,
    recipe: Recipe | str | Mapping[str, object] | None = None,
    scores: Scores | None = None,
    output: str | Reader | None = None,
    inplace: bool = False,
    track: Track = automatic,
) -> Result:
    """Shrink a network to a plan and refit what stays.

        result = optin.apply(model, plan, batches, scores=scores)

    Args:
        batches: calibration inputs for the refit; without them units are removed and nothing is refitted.
        recipe: the plan's own, if not given.
        scores: of the same run, on the same inputs: they save the refit a pass and change nothing.
        output: as in `score`; `inplace` and `track` as in `prune`.

    Raises:
        CheckpointError: the plan does not fit the network.
        InputError: no plan, or scores of another network.
        OptinError: the small network does not compute what the masked dense one does.
    """
    plan = planned(plan)
    recipe = recipe_of(plan.provenance.get("recipe") if recipe is None else recipe, output=output)
    clock = Clock()
    if scores is not None:
        check_scores(model, scores)
    calibration = None if batches is None else calibration_of(model, batches)
    space = described_for(model, plan, calibration, parts=recipe.parts)
    plan = plan.renamed(space)
    plan.validate(space)
    plan = dataclasses.replace(plan, description=plan.description or space)
    if calibration is not None:
        check_merging(model, recipe)
        job = Job(model, space, calibration, recipe, track)
        if not checked_before(job, scores):
            with reading(output):
                check_inputs(job)
    # The dense network is the teacher of the refit, so in place it is the copy that stays dense.
    other = copied(model, recipe.offload)
    dense, pruned = (other, model) if inplace else (model, other)
    cut_to_plan(pruned, plan, space)
    into_files(pruned, recipe.offload)
    if calibration is not None:
        self_check(dense, pruned, space, plan, job.first)
        clock.lap("shrink")
        if recipe.refit.enabled:
            with reading(output):
                compensate(dataclasses.replace(job, model=dense), pruned, plan.keep, drawn_before(job, scores))
            clock.lap("compensate")
    plain_again(pruned.eval())
    report = {**plan_figures(plan), **figures_of(dense, pruned, space, plan, scores), "seconds": clock.laps}
    record_plan(pruned, plan, report.get("original"))
    if plan.latency is not None:
        report["latency"]["measured_ms"] = milliseconds(pruned, planned_inputs(pruned, plan, plan.latency.batch))
    return Result(pruned, plan, report, recipe)
