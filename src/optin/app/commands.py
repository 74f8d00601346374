"""What each command of the command line does: a recipe in, a folder and figures out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, OptinError, first_line
from ..inspection import calibration_of, inspect
from ..pipeline import apply, plan_within, score, sweep
from ..planning import plan
from ..recipe import FOR, PRESETS, Recipe
from ..result import Result, plan_figures
from ..scoring.loss import HeldOut, parted
from ..scoring.resume import forget
from ..space.budget import EXAMPLES
from ..space.loss import cost_of
from ..space.plans import Plan, is_plan
from ..space.scores import Scores
from ..storage.figures import read_report, read_sweep
from ..storage.report import PICTURES, is_report, render
from ..storage.saving import NETWORK, REPORT, save, update_figures
from ..storage.scores import SCORES, keep_scores, load_scores, save_scores
from ..support.files import given, json_text, write_text
from ..support.folders import add_files, check_apart, check_file, check_new, new_folder
from ..support.progress import Track, silent
from ..support.untyped import Figures
from ..tasks import (
    TASKS,
    TaskSpec,
    check_reference,
    load_images,
    load_preprocessor,
    load_processor,
    task_of,
    task_spec,
)
from .benchmark import compare_speed, reported_speed
from .finetune import FINETUNED, finetune
from .kept import Kept, Say, unsaid
from .pictures import PICTURES_KIND, check_pictures, draw, draw_sweep
from .placement import Job, Placement, as_pooled, check_size, local, model_of, what_is_read
from .quality import compared, evaluated, held_out_of, measure, measured_on, outlook_of, quality_of, seen_before
from .rehearsal import rehearse

SWEEP = "sweep"  # kind of result


def run_inspect(model: str, length: int | None, placement: Placement, recipe: Recipe | None = None) -> Figures:
    """`optin inspect`, on inputs of the recipe's data if it names any."""
    if recipe is not None and recipe.task.data is not None:
        job = Job.of(recipe.override(model=model), placement)
        return inspect(job.model, length, example=next(iter(job.batches)))
    network = placement.load(local(model))
    check_size(network, 1, length)
    return inspect(network, length)


def run_score(
    recipe: Recipe,
    out: Path,
    placement: Placement,
    track: Track = silent,
    engine: str = "local",
    address: str | None = None,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Figures:
    """`optin score`: removal curves in a folder. A run that is killed goes on where it was."""
    place = check_new(out, SCORES, overwrite, what_is_read(recipe))
    job = Job.of(recipe, placement)
    if dry_run:
        return rehearse(job, [])
    recipe = job.recipe
    partial = place.with_name(f"{place.name}.partial")
    scores = score(job.model, job.batches, recipe=recipe, track=track, resume=partial, engine=engine, address=address)
    save_scores(scores, place, overwrite=overwrite)
    forget(partial)
    return {"scores": str(out), "criterion": recipe.criterion, "groups": len(scores.curves)}


def run_plan(
    recipe: Recipe,
    scores: Path,
    out: Path | None,
    placement: Placement,
    track: Track = silent,
    *,
    overwrite: bool = False,
) -> Figures:
    """`optin plan`: the units to keep, from stored scores."""
    if out is not None:
        check_file(given(out), is_plan(given(out)), overwrite)
        check_apart(given(out), [local(model_of(recipe)), scores])
    known = load_scores(scores)
    chosen = plan(placement.load(model_of(recipe)), known, recipe=recipe, track=track)
    if out is not None:
        chosen.save(out)
    return {"plan": None if out is None else str(out), **plan_figures(chosen)}


def run_prune(
    recipe: Recipe,
    out: Path,
    placement: Placement,
    *,
    scores: Path | None = None,
    plan_file: Path | None = None,
    quality: bool = True,
    dry_run: bool = False,
    track: Track = silent,
    say: Say = unsaid,
    overwrite: bool = False,
) -> Figures:
    """`optin prune`: the whole job, saved; then both networks evaluated where the data has labels.

    Scores are kept beside `out` until the network is saved, and in it afterwards: the same command goes on with them.

    Args:
        dry_run: check and count everything, see `rehearse`, and stop there.
        say: told in a line what an earlier run left and this one takes.
    """
    place = check_new(out, NETWORK, overwrite, [*what_is_read(recipe), scores, plan_file])
    chosen = None if plan_file is None else Plan.load(plan_file)
    known = None if scores is None else load_scores(scores)
    if chosen is None and recipe.budget is None:
        raise InputError(f"no budget is given: pass --budget, for example {EXAMPLES}.")
    job = Job.of(recipe, placement, quality)
    if dry_run:
        return rehearse(job, [] if recipe.budget is None else [recipe.budget])
    recipe = job.recipe
    if chosen is not None:
        result = apply(job.model, chosen, job.batches, recipe=recipe, track=track)
        result.save(place, job.preprocessor, overwrite=overwrite)
    else:
        calibration, held_out = parted(job.model, calibration_of(job.model, job.batches), recipe)
        job = dataclasses.replace(job, batches=calibration)
        keep = Kept(place, job, [recipe.budget]) if known is None else None
        result = _pruned(job, held_out, keep, known, track, say)
        save(result, place, job.preprocessor, overwrite=overwrite, scores=None if keep is None else keep.scores)
        if keep is not None:
            known = keep.scores
            keep.remove()
    if quality:
        _measured(job, result, known, place, track)
    return {**result.report, "saved": str(out)}


def _pruned(
    job: Job, held_out: HeldOut | None, keep: Kept | None, known: Scores | None, track: Track, say: Say
) -> Result:
    """Score if there are no scores, plan and apply; with the seconds of each."""
    laps, start = {}, time.perf_counter()
    if keep is not None:
        known = keep.found(track, say)
        laps["score"] = round(time.perf_counter() - start, 3)
    assert known is not None
    start = time.perf_counter()
    calibration, rounds = calibration_of(job.model, job.batches), None if keep is None else keep.rounds
    chosen = plan_within(job.model, known, calibration, held_out, recipe=job.recipe, track=track, resume=rounds)
    laps["search"] = round(time.perf_counter() - start, 3)
    result = apply(job.model, chosen, job.batches, recipe=job.recipe, scores=known, track=track)
    result.report["seconds"] = (laps if keep is not None else {}) | result.report["seconds"]
    return result


def _measured(job: Job, result: Result, scores: Scores | None, place: Path, track: Track) -> None:
    """Quality and speed into the report of a network that is saved already."""
    try:
        result.report["quality"] = quality_of(job, result, track)
        result.report.update(outlook_of(job.model, result, scores))
        result.report.update(reported_speed(job.model, result.model, result.plan, rounds=5, track=track))
        update_figures(result, place)
    except OptinError as error:
        raise type(error)(f"the network is saved in {place}; its evaluation failed: {error}") from error
    except Exception as error:  # whatever an evaluation meets: that the network is there must be said
        raise OptinError(f"the network is saved in {place}; its evaluation failed: {first_line(error)}") from error


def run_sweep(
    recipe: Recipe,
    budgets: Sequence[str],
    out: Path,
    placement: Placement,
    *,
    scores: Path | None = None,
    dry_run: bool = False,
    track: Track = silent,
    say: Say = unsaid,
    overwrite: bool = False,
) -> Figures:
    """`optin sweep`: quality against budget from one scoring, in sweep.json and as a picture."""
    place = check_new(out, SWEEP, overwrite, [*what_is_read(recipe), scores])
    check_pictures()
    for budget in budgets:
        cost_of(budget, "a sweep")
    known = None if scores is None else load_scores(scores)
    job = Job.of(recipe, placement, True)
    if dry_run:
        return rehearse(job, budgets)
    recipe, examples = job.recipe, held_out_of(job)
    keep = Kept(place, job, budgets) if known is None else None
    known = known if keep is None else keep.found(track, say)
    dense, points = dict[str, float](), []
    for result in sweep(job.model, job.batches, budgets, recipe=recipe, scores=known, track=track):
        quality = compared(job, result, track)
        points.append({"budget": result.report["budget"], **result.plan.shares, **quality.pruned})
        dense = dict(quality.dense)
    found = {"examples": len(examples), **job.overlap, "dense": dense, "points": points}
    with new_folder(place, SWEEP, overwrite) as work:
        write_text(work / "sweep.json", json_text(found, indent=1))
        if keep is not None and keep.scores is not None:
            keep_scores(keep.scores, work)
    if keep is not None:
        keep.remove()
    draw_sweep(found, place / "sweep.svg")
    add_files(place, ["sweep.svg"])
    return {**found, "saved": str(out / "sweep.json"), "picture": str(out / "sweep.svg")}


def run_evaluate(
    source: str, recipe: Recipe, placement: Placement, reference: str | None = None, track: Track = silent
) -> Figures:
    """`optin evaluate`: the task's metrics of one network."""
    spec = task_spec(recipe.task.name)
    source, reference = local(source), None if reference is None else local(reference)
    found = evaluated(recipe)
    model = placement.load(source, spec.kind)
    dense = None if reference is None else placement.load(reference, spec.kind)
    preprocessor = load_preprocessor(source, spec, model)
    recipe = as_pooled(recipe, preprocessor)
    examples = measured_on(model, preprocessor, recipe, found)
    if dense is not None:
        check_reference(model, dense, spec, examples, preprocessor, recipe.trajectory.pooling)
    figures = measure(model, preprocessor, recipe, examples, dense, track)
    seen = seen_before(Path(source), recipe, found)
    return {"model": source, "task": recipe.task.name, "examples": len(examples), **seen, **figures}


def run_bench(
    dense: str, pruned: str, batch: int, lengths: list[int] | None, placement: Placement, track: Track = silent
) -> list[Figures]:
    """`optin bench`: both networks timed in turn."""
    networks = (placement.load(local(dense)), placement.load(local(pruned)))
    for length in lengths or ():
        check_size(networks[0], batch, length)
    return [speed.to_dict() for speed in compare_speed(*networks, batch=batch, lengths=lengths, track=track)]


def run_finetune(
    source: str,
    recipe: Recipe,
    out: Path,
    placement: Placement,
    teacher: str | None = None,
    *,
    overwrite: bool = False,
) -> Figures:
    """`optin finetune`: a pruned or dense classifier of images, taken to another data set."""
    spec = task_spec(recipe.task.name)
    if not (spec.kind.of_images and spec.kind.one_label):
        raise InputError(f"only classifiers of images can be fine-tuned, and {recipe.task.name!r} is no such task.")
    source, teacher = local(source), None if teacher is None else local(teacher)
    place = check_new(out, FINETUNED, overwrite, [source, recipe.task.data, teacher])
    train, held_out = (load_images(spec, recipe.task, part, labelled=True) for part in ("calibration", "evaluation"))
    model = placement.load(source, spec.kind)
    followed = None if teacher is None else placement.load(teacher, spec.kind)
    processor, training = load_processor(source), recipe.training
    figures = finetune(
        model, processor, train, held_out, place, training, seed=recipe.seed, teacher=followed, overwrite=overwrite
    )
    return {**figures, "saved": str(out)}


def run_draw(
    folder: Path,
    recipe: Recipe,
    placement: Placement,
    out: Path,
    count: int,
    reference: str | None = None,
    *,
    overwrite: bool = False,
) -> Figures:
    """`optin draw`: pictures of a pruned network; of merged tokens or segmented scenes if there is data."""
    images, spec = None, task_spec(recipe.task.name)
    folder = given(folder)
    check_pictures()
    if given(out).resolve() != folder.resolve():
        check_new(out, PICTURES_KIND, overwrite, [folder, recipe.task.data, reference])
    if recipe.task.data is not None:
        images = task_of(recipe).load(recipe.task, "evaluation", labelled=False)
    dense = None if reference is None else placement.load(local(reference), spec.kind)
    written = draw(folder, out, images, count, dense, load=placement.load, overwrite=overwrite)
    return {f"picture {index}": str(path) for index, path in enumerate(written, 1)}


def run_tasks() -> Figures:
    """`optin tasks`."""
    return {
        name: {
            "kind": str(spec.kind),
            "data": _taken(spec),
            "labels": "none" if spec.kind.compared or spec.kind.of_prose else spec.label,
            "metrics": ", ".join(spec.metrics),
            "hub": "/".join(spec.hub) if spec.hub else "",
        }
        for name, spec in TASKS.items()
    }


def _taken(spec: TaskSpec) -> str:
    """What the data of a task hold."""
    if spec.kind.of_images or spec.kind.of_sound:
        return "images" if spec.kind.of_images else "recordings"
    return ", ".join(filter(None, (spec.text, spec.text_pair)))


def run_presets() -> Figures:
    """`optin presets`."""
    return {name: {"for": FOR[name]} for name in PRESETS}


def run_report(
    folder: Path,
    recipe: Recipe,
    placement: Placement,
    out: Path | None = None,
    *,
    sweep_file: Path | None = None,
    count: int = 4,
    reference: str | None = None,
) -> Figures:
    """`optin report`: report.html anew, with what `sweep` found and with pictures if there is data."""
    folder = given(folder).resolve()
    target = folder / REPORT if out is None else given(out)
    check_file(target, is_report(target), overwrite=True)
    # The configuration that transformers writes has the groups in the order of their names.
    chosen, report = Plan.load(folder / "plan.json"), read_report(folder / "report.json")
    known = Recipe.load(folder / "recipe.yaml")
    found = None if sweep_file is None else read_sweep(given(sweep_file))
    if recipe.task.data is not None:
        run_draw(folder, recipe, placement, folder, count, reference)
    pictures = sorted(path for pattern in PICTURES for path in folder.glob(pattern) if path.is_file())
    name = Path(known.model or folder).name
    write_text(target, render(report, chosen, known, name, pictures, found))
    return {"report": str(out or target), "pictures": len(pictures)}
