"""The main job: score, search, shrink, compensate. Read `prune` first; each step is usable alone."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checks import (
    check_costs,
    check_inputs,
    check_sample,
    costs,
    self_check,
)
from .choosing.latency import latency_cost, milliseconds, multiple_of
from .choosing.merging_costs import token_costs, token_space
from .choosing.schedule import constant, find_jointly
from .choosing.search import find, rearranged
from .describing import describe as describe_network
from .describing.inputs import (
    default_length,
    forward_names,
    inputs_like,
    planned_inputs,
)
from .describing.refusals import check_network
from .errors import InputError, NumericalError
from .recipe import Recipe, names_in, recipe_of
from .refit.compensation import compensate
from .result import Result, summary
from .running.batches import Batches
from .running.cost import CostModel
from .running.merging import merging_of
from .running.modules import (
    check_weights,
    device_of,
    fingerprint,
    weight_bytes,
    without_autocast,
)
from .running.outputs import Reader, reading
from .running.twins import on_twins, plain_again
from .scoring.criteria import SPREAD, Scoring, criterion
from .scoring.engines import Engine, local
from .scoring.engines import engine as find_engine
from .space.budget import PER_MS, Budget
from .space.plans import Cost, Latency, Plan
from .space.scores import Curve, Scores
from .space.units import UnitSpace
from .storage.planned import cut_to_plan, record_plan, section_of
from .support.progress import (
    Callback,
    Track,
    silent,
    unheard,
)
from .support.versions import versions

CURVE = 33  # points of a removal curve in a report


def prune(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    budget: str | float | Budget | None = None,
    *,
    recipe: Recipe | None = None,
    output: str | Reader | None = None,
    inplace: bool = False,
    track: Track = silent,
    callback: Callback = unheard,
) -> Result:
    """Turn a trained network into a physically smaller one under a budget. No labels, no training.

        result = optin.prune(model, batches, budget="50%")

    Args:
        model: a transformers encoder, bare or with a head. Left untouched unless `inplace`.
        batches: any iterable of the model's keyword inputs; 256 examples do.
        budget: "50%", 0.5, "2.1 GMACs", "40 Mparams", "12 ms"; taken from the recipe if not given.
        recipe: all other options.
        output: what of the network's output matters, as in `score`.
        track: shows progress; `optin.rich_track` draws bars.
        callback: called after "score", "search" and "apply" with figures by name, shares of the dense network's.

    Raises:
        OptinError: see `optin.errors`; each message says what to do.
    """
    recipe = _with_budget(recipe, budget)
    clock = _Clock()
    calibration = _calibration(model, batches)
    scores = score(model, calibration, recipe=recipe, output=output, track=track)
    clock.lap("score")
    callback("score", {"seconds": clock.laps["score"], "examples": calibration.examples})
    chosen = plan(model, scores, recipe=recipe, track=track)
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
    batches: Iterable[Mapping[str, Any]],
    budgets: Iterable[str | float | Budget],
    *,
    recipe: Recipe | None = None,
    scores: Scores | None = None,
    output: str | Reader | None = None,
    track: Track = silent,
) -> Iterator[Result]:
    """One pruned network per budget, from one scoring.

        for result in optin.sweep(model, batches, ["80%", "60%", "40%"]): ...

    Args:
        scores: of an earlier scoring.
        output: as in `score`.

    Raises:
        OptinError: as `prune`; a budget that cannot be reached is refused before any network is refitted.
    """
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise InputError(f"a sweep takes a list of budgets, such as ['80%', '60%'], not {budgets!r:.40}.")
    recipes = [_with_budget(recipe, budget) for budget in budgets]
    calibration = _calibration(model, batches)
    scores = scores or score(model, calibration, recipe=recipe, output=output, track=track)
    plans = [plan(model, scores, recipe=one, track=track) for one in recipes]
    for one, chosen in zip(recipes, plans, strict=True):
        yield apply(model, chosen, calibration, recipe=one, scores=scores, output=output, track=track)


@on_twins
@without_autocast()
@torch.inference_mode(mode=False)  # whatever the caller is in: gradients are needed
def score(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    recipe: Recipe | None = None,
    track: Track = silent,
    output: str | Reader | None = None,
    resume: str | Path | None = None,
    engine: str | Engine = "local",
    address: str | None = None,
) -> Scores:
    """Removal curves of all groups: what every later choice of a budget needs.

    Args:
        output: what of the network's output is compared: the name of a field, or a function of what the forward
            returns. See `optin.running.outputs` for what is read without it.
        resume: a file in which partial sums are kept, so that a run that was killed continues; those of tokens lie
            beside it.
        engine: "local", or "ray" to spread the work over the actors of a Ray cluster: units of `exact`, calibration
            batches of `compensated` and `sketch`.
        address: of that cluster, "auto" or "HOST:PORT"; without one Ray is started on this machine.

    Raises:
        NumericalError: NaN or infinite weights or activations.
        InputError: no calibration inputs, an unknown criterion, or an engine that cannot be had.
    """
    recipe = _with_output(recipe, output)
    measure = criterion(recipe.criterion)
    where = find_engine(engine, address) if isinstance(engine, str) else engine
    if where is not local and callable(output):
        raise InputError("a function that reads outputs reaches no other machine: name a field of the output.")
    if where is not local and recipe.criterion not in SPREAD:
        raise InputError(
            f"{recipe.criterion!r} has no work for many machines: score it here, without an engine. "
            f"Others have: {', '.join(SPREAD)}."
        )
    check_network(model)
    check_weights(model)
    calibration = _calibration(model, batches)
    space = _described(model, calibration).without(recipe.excluded)
    _check_tokens(model, recipe)
    with reading(output):
        compared = check_inputs(model, space, calibration, recipe)
        scoring = Scoring(model, space, calibration, recipe, track, Path(resume) if resume else None, where)
        curves = measure(scoring)
        _check_curves(recipe.criterion, space, curves)
        tokens = token_costs(scoring) if recipe.tokens.merge == "search" else None
    return Scores(
        space.architecture,
        curves,
        recipe.length or calibration.positions,
        {
            "criterion": recipe.criterion,
            "recipe": recipe.to_dict(),
            "data": _data(calibration),
            "compared": compared,
            "network": scoring.network,
            "versions": versions(),
        },
        tokens,
        None if recipe.length else calibration.width,
        {name: torch.stack(draws) for name, draws in scoring.gradients.items()},
        scoring.weights if scoring.weights.drawn else None,
    )


def _check_curves(criterion: str, space: UnitSpace, curves: Mapping[str, Curve]) -> None:
    """Refuse what a criterion gives that is no removal curve of every group: a search would make something of it.

    Raises:
        NumericalError: names the group.
    """
    for group in space:
        if group.name not in curves or (problem := curves[group.name].problem(group.size)):
            said = "no removal curve" if group.name not in curves else f"a removal curve that {problem}"
            raise NumericalError(f"the criterion {criterion!r} gives {said} for {group.name!r}.")


@on_twins
def plan(
    model: nn.Module,
    scores: Scores,
    budget: str | float | Budget | None = None,
    *,
    recipe: Recipe | None = None,
    track: Track = silent,
) -> Plan:
    """The units to keep under a budget; needs no data and, for any number of budgets, no rescoring.

    For a budget of latency the network is timed at many sizes first, once on every machine.

    Raises:
        BudgetError: the budget cannot be read or reached; the message says the smallest that can.
        InputError: the scores are of another network.
    """
    recipe = _with_budget(recipe, budget)
    space = describe_network(model, planned_inputs(model, scores, 2)).without(_excluded(scores))
    if (
        scores.architecture != space.architecture
        or {n: len(c.order) for n, c in scores.curves.items()} != space.sizes
    ):
        raise InputError(f"the scores are of another network than this {space.architecture}. Score this one.")
    if scores.provenance.get("network", known := fingerprint(model)) != known:
        raise InputError(
            f"the scores are of a {space.architecture} with other weights than this one. Score this one."
        )
    target = Budget.parse(recipe.budget or "")
    if recipe.tokens.merge != "none" and target.quantity != "MACs":
        raise InputError(f"token schedules are chosen under a budget of MACs, not of {target.quantity}.")
    _check_tokens(model, recipe)
    length, width = (recipe.length, None) if recipe.length else (scores.length, scores.width)
    macs, parameters = costs(model, space, length, width, scores)
    cost = macs if target.quantity == "MACs" else parameters
    if target.quantity == "latency":
        inputs = inputs_like(model, scores, length, width, recipe.latency_batch)
        cost = latency_cost(model, space, macs, inputs, track)
    even = target.quantity == "latency" or device_of(model).type == "cuda"
    multiples = {g.name: recipe.round_to or (multiple_of(g) if even else 1) for g in space if g.kind != "head"}
    kept, schedule = _choose(space, scores, cost, target, recipe, multiples)
    latency = None
    if target.quantity == "latency":
        latency = Latency(recipe.latency_batch, cost.dense / PER_MS, cost(kept) / PER_MS)
    return Plan(
        architecture=space.architecture,
        sizes=space.sizes,
        keep=_units(scores, kept, recipe),
        dense=Cost(macs.dense, parameters.dense),
        pruned=Cost(macs.merged(schedule)(kept), parameters(kept)),
        length=length,
        width=width,
        tokens=schedule,
        latency=latency,
        description=space,
        provenance={**scores.provenance, "recipe": recipe.to_dict(), "budget": str(target)},
    )


def _units(scores: Scores, kept: Mapping[str, int], recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """So many units of each group: the last of its removal curve, or rearranged."""
    if not recipe.rearrange:
        return {name: scores.curves[name].keep(count) for name, count in kept.items()}
    if not scores.gradients:
        raise InputError("these scores hold no gradients to rearrange by. Score with 'fisher' and 'rearrange: true'.")
    return {name: rearranged(scores.curves[name], scores.gradients[name], count) for name, count in kept.items()}


def _choose(
    space: UnitSpace,
    scores: Scores,
    cost: CostModel,
    budget: Budget,
    recipe: Recipe,
    multiples: Mapping[str, int],
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Units to keep per group, and the token schedule."""
    if recipe.tokens.merge == "search":
        if scores.tokens is None:
            raise InputError("the scores say nothing about tokens. Score again with tokens.merge 'search'.")
        return find_jointly(space, scores.curves, scores.tokens, cost, budget, multiples)
    if recipe.tokens.merge == "constant":
        token_space(space)
        return dict(space.sizes), constant(cost, budget.limit(cost.dense))
    return find(space, scores.curves, cost, budget, recipe.search, multiples), ()


@on_twins
@without_autocast()
@torch.inference_mode(mode=False)  # so that the small network can be trained
def apply(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Mapping[str, Any]] | None = None,
    *,
    recipe: Recipe | None = None,
    scores: Scores | None = None,
    output: str | Reader | None = None,
    inplace: bool = False,
    track: Track = silent,
) -> Result:
    """Shrink a network to a plan and refit what stays.

    Args:
        batches: calibration inputs for the refit; without them units are removed and nothing is refitted.
        scores: of the same run, on the same inputs: they spare the refit a pass and change nothing.
        output: as in `score`.

    Raises:
        CheckpointError: the plan does not fit the network.
        OptinError: the small network does not compute what the masked dense one does.
    """
    recipe = _with_output(recipe or Recipe.from_dict(plan.provenance.get("recipe", {})), output)
    clock = _Clock()
    calibration = None if batches is None else _calibration(model, batches)
    space = (
        describe_network(model, planned_inputs(model, plan, 2))
        if calibration is None
        else _described(model, calibration)
    )
    space = space.without(_excluded(plan))
    plan = plan.renamed(space)
    plan.validate(space)
    plan = dataclasses.replace(plan, description=plan.description or space)
    if calibration is not None:
        _check_tokens(model, recipe)
        if not _checked(model, scores, calibration, recipe):
            with reading(output):
                check_inputs(model, space, calibration, recipe)
    # The dense network is the teacher of the refit, so in place it is the copy that stays dense.
    other = copy.deepcopy(model)
    dense, pruned = (other, model) if inplace else (model, other)
    cut_to_plan(pruned, plan, space)
    if calibration is not None:
        self_check(dense, pruned, space, plan, next(iter(calibration)))
        clock.lap("shrink")
        if recipe.refit.enabled:
            weights = _token_weights(scores, calibration, recipe)
            with reading(output):
                compensate(dense, pruned, space, calibration, recipe, plan.keep, track, weights)
            clock.lap("compensate")
    plain_again(pruned)
    report = {**summary(plan), **_figures(dense, pruned, space, plan, scores), "seconds": clock.laps}
    record_plan(pruned, plan, report.get("original"))
    if plan.latency is not None:
        inputs = planned_inputs(pruned, plan, plan.latency.batch)
        report["latency"]["measured_ms"] = milliseconds(pruned, inputs)
    return Result(pruned, plan, report, recipe)


def _checked(model: nn.Module, scores: Scores | None, calibration: Batches, recipe: Recipe) -> bool:
    """Whether a scoring of this network by the same recipe has seen the same inputs."""
    if scores is None:
        return False
    known, data = scores.provenance, scores.provenance.get("data", {})
    same = data.get("sha256") == calibration.digest and known.get("recipe") == recipe.to_dict()
    return same and known.get("network") == fingerprint(model)


def _token_weights(scores: Scores | None, calibration: Batches, recipe: Recipe) -> Any:
    """The weights that a scoring drew, if the refit would draw the same."""
    if scores is None or scores.weights is None:
        return None
    was, digest = Recipe.from_dict(scores.provenance["recipe"]), scores.provenance["data"]["sha256"]
    drawn = (digest, was.seed, was.trajectory, was.refit.floor)
    wanted = (calibration.digest, recipe.seed, recipe.trajectory, recipe.refit.floor)
    return scores.weights if drawn == wanted else None


def describe(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> UnitSpace:
    """What can be removed from a network: groups of heads, neurons and channels, and why the rest stays (`whole`).

        space = optin.describe(model, batch)
        space.sizes, space.whole

    Args:
        model: any module with its weights; left untouched.
        inputs: a batch of its keyword inputs; without one, random inputs are made as its configuration says.

    Raises:
        InputError: no network, or inputs that it does not take.
        ArchitectureError: a forward that cannot be followed, or nothing that can be cut; names what is in the way.
    """
    return describe_network(model) if inputs is None else _described(model, _calibration(model, [inputs]))


@on_twins
def inspect(
    model: nn.Module, length: int | None = None, *, example: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What can be removed from a network, and where its MACs and parameters are.

    Args:
        length: tokens of a text (128 by default) or pixels of an image side (the model's own) at which MACs
            are counted.
        example: a batch of the network's inputs, for one whose configuration does not say what it takes.
    """
    space, known, width = describe(model, example), None, None
    if example is not None:
        seen = _calibration(model, [example])
        known = Scores(space.architecture, {}, seen.positions, {"data": _data(seen)}, width=seen.width)
        length, width = length or seen.positions, None if length else seen.width
    length = length or default_length(model)
    macs, parameters = costs(model, space, length, width, known)
    least = {group.name: group.min_keep for group in space}
    return {
        "architecture": space.architecture,
        "length": length,
        "macs": macs.dense,
        "parameters": parameters.dense,
        "smallest": {"macs": macs(least), "parameters": parameters(least)},
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "units": group.size,
                "macs_per_unit": macs.prices(macs.sizes)[group.name],
                "parameters_per_unit": parameters.prices(parameters.sizes)[group.name],
            }
            for group in space
        ],
        "whole": dict(space.whole),
        "breakdown": macs.breakdown(macs.sizes),
    }


def _figures(
    dense: nn.Module, pruned: nn.Module, space: UnitSpace, plan: Plan, scores: Scores | None
) -> dict[str, Any]:
    """Figures of a pruned network that its plan does not hold: bytes of weights, MACs by module, removal curves.

    Raises:
        CheckpointError: the network costs something else than the plan says.
    """
    figures: dict[str, Any] = {"bytes": {"dense": weight_bytes(dense), "pruned": weight_bytes(pruned)}}
    if scores is not None:
        figures["curves"] = {name: curve.sampled(CURVE) for name, curve in scores.curves.items()}
    with contextlib.suppress(InputError):  # a plan by hand may name a length that the network does not take
        work, parameters = costs(dense, space, plan.length, plan.width, plan)
        check_costs(pruned, plan)
        after = work.merged(plan.tokens).breakdown(plan.kept)
        figures["breakdown"] = {
            module: {"dense": macs, "pruned": after[module]} for module, macs in work.breakdown(work.sizes).items()
        }
        sizes = {} if (earlier := section_of(dense)) is None else Plan.from_dict(earlier).sizes
        if sizes.keys() == space.sizes.keys():  # no group has one unit left, which no description speaks of
            # Costs are sums of products, so that those of the network with all its units follow from what is left.
            figures["original"] = {"macs": work(sizes), "parameters": parameters(sizes)}
    return figures


class _Clock:
    """Seconds between calls."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def _calibration(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Batches:
    check_network(model)
    return Batches.of(batches, device_of(model), forward_names(model))


def _excluded(known: Plan | Scores) -> list[str]:
    """What stayed whole when scores or a plan were made."""
    made = known.provenance.get("recipe")
    names = made.get("exclude", "") if isinstance(made, Mapping) else ""
    return names_in(names) if isinstance(names, str) else []


def _described(model: nn.Module, calibration: Batches) -> UnitSpace:
    sample = calibration.sample()
    check_sample(model, sample)
    return describe_network(model, sample)


def _data(calibration: Batches) -> dict[str, Any]:
    """What a provenance says of the calibration set."""
    return {
        "examples": calibration.examples,
        "sha256": calibration.digest,
        "inputs": calibration.looks,
        **({"keywords": dict(calibration.keywords)} if calibration.keywords else {}),
        **({"left_out": list(calibration.left_out)} if calibration.left_out else {}),
    }


def _check_tokens(model: nn.Module, recipe: Recipe) -> None:
    """Refuse what a network that merges tokens cannot do: merge more of them, and resume behind blocks."""
    if merging_of(model) is None:
        return
    if recipe.tokens.merge != "none":
        raise InputError(
            "this network merges tokens already, on a schedule that was chosen for all of them. Prune its units "
            "alone (preset 'beta'), or the dense network with both."
        )
    if recipe.refit.enabled or recipe.criterion == "exact":
        raise InputError(
            "this network merges tokens by the keys of the block before, so that it cannot go on behind a block. "
            "Prune the dense network with both, or this one by 'compensated' without a refit (refit.enabled: false)."
        )


def _with_output(recipe: Recipe | None, output: str | Reader | None) -> Recipe:
    """The recipe with the field that is compared; a function is no part of it."""
    recipe = recipe_of(recipe)
    return recipe.override(trajectory__output=output) if isinstance(output, str) else recipe


def _with_budget(recipe: Recipe | None, budget: str | float | Budget | None) -> Recipe:
    recipe = recipe_of(recipe)
    if budget is not None:
        recipe = recipe.override(budget=str(Budget.parse(budget)))
    if recipe.budget is None:
        raise InputError("say how much may stay: budget='50%', '2.1 GMACs' or '40 Mparams'.")
    return recipe
