"""The figures of networks on the held-out part of a task's data."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..accounting import costs
from ..choosing.outlook import outlook
from ..errors import OptinError
from ..recipe import Recipe
from ..result import Result
from ..space.scores import Scores
from ..support.progress import Track
from ..support.untyped import Figures
from ..tasks import Comparison, Data, Documents, at_most, check_evaluation, task_of
from .placement import Job

LEAST = 1e-6  # KL, below which rounding is what is seen


def evaluated(recipe: Recipe) -> Data | Documents:
    """The part of a task's data that networks are measured on, with labels."""
    return task_of(recipe).load(recipe.task, "evaluation")


def measured_on(model: nn.Module, preprocessor: object, recipe: Recipe, found: Data | Documents) -> Data:
    """What was read, as the examples that a network is measured on.

    Raises:
        InputError: they do not fit the network.
    """
    task = task_of(recipe)
    examples = at_most(task.prepared(found, model, preprocessor, recipe), recipe.task.limit)
    check_evaluation(model, task.spec, examples, preprocessor, recipe.trajectory.pooling)
    return examples


def measure(
    model: nn.Module,
    preprocessor: object,
    recipe: Recipe,
    examples: object,
    reference: nn.Module | None,
    track: Track,
) -> dict[str, float]:
    """The metrics of one network on examples of the task; against the outputs of another one if given."""
    return task_of(recipe).evaluate(model, preprocessor, examples, recipe, reference=reference, track=track)


def seen_before(source: Path, recipe: Recipe, found: Data | Documents) -> dict[str, int]:
    """How many examples the calibration of a pruned network drew of the same data, as far as its recipe says."""
    file = source / "recipe.yaml"
    if not file.is_file() or recipe.task.data is None:
        return {}
    known = Recipe.load(file)
    if known.task.data is None or known.task.name != recipe.task.name:
        return {}
    try:
        drawn = task_of(known).load(known.task, "calibration")
    except OptinError:  # the data of then are gone
        return {}
    return {"drawn from it by calibration": known.calibration.examples} if _origins(drawn) & _origins(found) else {}


def _origins(data: Data | Documents) -> set[str]:
    """Where data were read from, as far as that is known."""
    parts = data.sources if isinstance(data, Documents) else [data]
    return {origin for part in parts if (origin := getattr(part, "origin", None)) is not None}


def quality_of(job: Job, result: Result, track: Track) -> Figures:
    """The figures of both networks on the held-out part, and how much of it calibration saw."""
    found = compared(job, result, track)
    examples = len(held_out_of(job))
    return {"examples": examples, **_data(job.recipe), **job.overlap, **found.to_dict()}


def _data(recipe: Recipe) -> dict[str, dict[str, str]]:
    """The set of the hub that quality was measured on."""
    spec = task_of(recipe).spec
    if recipe.task.data is not None or spec.hub is None:
        return {}
    name, config = spec.hub
    return {"data": {"type": name, "config": config, "split": spec.split(recipe.task, "evaluation")}}


def held_out_of(job: Job) -> Data:
    """The held-out part of a job that is evaluated."""
    assert job.evaluation is not None
    return job.evaluation


def outlook_of(dense: nn.Module, result: Result, scores: Scores | None) -> Figures:
    """For a report: what other budgets would give, where the KL of this one is known, and of the default criterion.

    Its curves alone say what a refitted network loses.
    """
    kl, plan, recipe = result.report["quality"]["pruned"].get("kl"), result.plan, result.recipe
    if kl is None or kl < LEAST or scores is None or plan.description is None:
        return {}
    usual = scores.provenance.get("criterion") == Recipe().criterion and recipe.refit.enabled
    if not usual or recipe.tokens.merge != "none":
        return {}
    macs, parameters = costs(dense, plan.description, plan.length, plan.width, scores)
    found = outlook(plan.description, scores, macs, parameters, recipe, plan, kl)
    return {"outlook": found} if found else {}


def compared(job: Job, result: Result, track: Track) -> Comparison:
    """A pruned network and the dense one on the held-out part."""
    task, examples = task_of(job.recipe), held_out_of(job)
    return task.compare(job.model, result.model, job.preprocessor, examples, job.recipe, track)
