"""Whole runs as the command line starts them: a recipe in, a folder and figures out."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .arch import describe
from .arch.inputs import example_inputs, image_input
from .batches import Batch
from .benchmark import compare_speed, side_by_side
from .checkpoint import REPORT, input_shape, load_scores, save_scores, section_of
from .errors import InputError, first_line
from .exporting import export_all
from .files import disk_errors, read_json, write_text
from .finetune import finetune
from .pictures import draw, draw_sweep
from .pipeline import Result, apply, inspect, plan, prune, score, summary, sweep
from .plans import Plan
from .progress import Track, silent
from .recipe import Recipe, Trajectory
from .report import PICTURES, render
from .runtimes import open_exported
from .tasks import (
    Examples,
    Images,
    SentenceTokenizer,
    TaskSpec,
    check_evaluation,
    check_fit,
    check_pooling,
    keep_apart,
    load_examples,
    load_images,
    load_model,
    load_preprocessor,
    load_processor,
    load_scenes,
    load_tokenizer,
    segmentation,
    task_spec,
    text,
    vision,
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where and in which precision networks run: "cuda:0", "float32"; None leaves it to the checkpoint."""

    device: str | None = None
    dtype: str | None = None

    def load(self, source: str, kind: str | None = None) -> nn.Module:
        """Load a network and put it there.

        Raises:
            InputError: no such device or dtype.
        """
        options = {}
        if self.dtype is not None:
            dtype = getattr(torch, self.dtype, None)
            if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                raise InputError(f"unknown dtype {self.dtype!r}. Use float32, bfloat16, float16 or float64.")
            options["dtype"] = dtype
        model = load_model(source, kind, **options)
        try:
            return model if self.device is None else model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"cannot use the device {self.device!r}: {first_line(error)}") from None


@dataclasses.dataclass(frozen=True)
class Job:
    """A network, what prepares its inputs, and the calibration inputs that a recipe names."""

    recipe: Recipe
    model: nn.Module
    preprocessor: Any
    batches: list[Batch]
    evaluation: Examples | Images | None = None
    overlap: dict[str, int] = dataclasses.field(default_factory=dict)  # with calibration, as `keep_apart` says it

    @classmethod
    def of(cls, recipe: Recipe, placement: Placement, evaluated: bool = False) -> Job:
        """Load everything; all that can be wrong with the inputs is found here, before any scoring."""
        spec = task_spec(recipe.task.name)
        labelled = recipe.criterion == "fisher"
        if labelled and spec.kind not in ("classification", "regression", "images"):
            raise InputError(f"the fisher criterion needs one label per example, and {spec.kind} has none.")
        examples = _load(spec, recipe, "calibration", labelled)
        evaluation = _load(spec, recipe, "evaluation") if evaluated else None
        source = model_of(recipe)
        model = placement.load(source, spec.kind)
        describe(model)
        check_fit(model, spec)
        preprocessor = load_preprocessor(source, spec, model)
        recipe = _as_pooled(recipe, preprocessor)
        check_pooling(model, recipe.trajectory.pooling)
        handler: Any = vision if spec.of_images else text
        labels = handler.class_indices(model, spec, examples) if labelled else None
        batches, drawn = handler.drawn_batches(model, examples, preprocessor, recipe.calibration, recipe.seed, labels)
        if evaluation is None:
            return cls(recipe, model, preprocessor, batches)
        check_evaluation(model, spec, evaluation, preprocessor, recipe.trajectory.pooling)
        return cls(recipe, model, preprocessor, batches, *keep_apart(examples, drawn, evaluation))


def run_inspect(model: str, length: int | None, placement: Placement) -> dict[str, Any]:
    """`optin inspect`."""
    return inspect(placement.load(model), length)


def run_score(
    recipe: Recipe,
    out: Path,
    placement: Placement,
    track: Track = silent,
    engine: str = "local",
    address: str | None = None,
) -> dict[str, Any]:
    """`optin score`: removal curves in a folder. A run that is killed goes on where it was."""
    job = Job.of(recipe, placement)
    recipe = job.recipe
    partial = out.with_name(f"{out.name}.partial")
    scores = score(job.model, job.batches, recipe=recipe, track=track, resume=partial, engine=engine, address=address)
    save_scores(scores, out)
    partial.unlink(missing_ok=True)
    return {"scores": str(out), "criterion": recipe.criterion, "groups": len(scores.curves)}


def run_plan(
    recipe: Recipe, scores: Path, out: Path | None, placement: Placement, track: Track = silent
) -> dict[str, Any]:
    """`optin plan`: the units to keep, from stored scores."""
    chosen = plan(placement.load(model_of(recipe)), load_scores(scores), recipe=recipe, track=track)
    if out is not None:
        chosen.save(out)
    return {"plan": None if out is None else str(out), **summary(chosen)}


def run_prune(
    recipe: Recipe,
    out: Path,
    placement: Placement,
    *,
    scores: Path | None = None,
    plan_file: Path | None = None,
    quality: bool = True,
    track: Track = silent,
) -> dict[str, Any]:
    """`optin prune`: the whole job, then both networks evaluated where the data has labels."""
    job = Job.of(recipe, placement, quality)
    recipe = job.recipe
    if plan_file is not None:
        result = apply(job.model, Plan.load(plan_file), job.batches, recipe=recipe, track=track)
    elif scores is not None:
        known = load_scores(scores)
        chosen = plan(job.model, known, recipe=recipe, track=track)
        result = apply(job.model, chosen, job.batches, recipe=recipe, scores=known, track=track)
    else:
        result = prune(job.model, job.batches, recipe=recipe, track=track)
    if quality:
        result.report["quality"] = _quality(job, result, track)
        length, width = result.plan.length, result.plan.width
        speeds = compare_speed(job.model, result.model, batch=1, lengths=[length], width=width, rounds=5, track=track)
        result.report["speed"] = [speed.to_dict() for speed in speeds]
    result.save(out, job.preprocessor)
    return {**result.report, "saved": str(out)}


def run_sweep(
    recipe: Recipe,
    budgets: Sequence[str],
    out: Path,
    placement: Placement,
    *,
    scores: Path | None = None,
    track: Track = silent,
) -> dict[str, Any]:
    """`optin sweep`: quality against budget from one scoring, in sweep.json and as a picture."""
    job = Job.of(recipe, placement, True)
    recipe, examples = job.recipe, _evaluated(job)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    points = []
    known = None if scores is None else load_scores(scores)
    for result in sweep(job.model, job.batches, budgets, recipe=recipe, scores=known, track=track):
        points.append(
            {"budget": result.report["budget"], **result.plan.shares, **_pruned_quality(job, result, examples, track)}
        )
    found = {
        "examples": len(examples),
        **job.overlap,
        "dense": _dense_quality(job, examples, track),
        "points": points,
    }
    write_text(out / "sweep.json", json.dumps(found, indent=1) + "\n")
    return {**found, "saved": str(out / "sweep.json"), "picture": str(draw_sweep(found, out / "sweep.svg"))}


def run_evaluate(
    source: str, recipe: Recipe, placement: Placement, reference: str | None = None, track: Track = silent
) -> dict[str, Any]:
    """`optin evaluate`: the task's metrics of one network."""
    spec = task_spec(recipe.task.name)
    examples = _load(spec, recipe, "evaluation")
    model = placement.load(source, spec.kind)
    dense = None if reference is None else placement.load(reference, spec.kind)
    preprocessor = load_preprocessor(source, spec, model)
    recipe = _as_pooled(recipe, preprocessor)
    check_evaluation(model, spec, examples, preprocessor, recipe.trajectory.pooling)
    figures = _measure(model, preprocessor, recipe, examples, dense, track)
    return {"model": source, "task": recipe.task.name, "examples": len(examples), **figures}


def run_bench(
    dense: str, pruned: str, batch: int, lengths: list[int] | None, placement: Placement, track: Track = silent
) -> list[dict[str, Any]]:
    """`optin bench`: both networks timed in turn."""
    networks = (placement.load(dense), placement.load(pruned))
    return [speed.to_dict() for speed in compare_speed(*networks, batch=batch, lengths=lengths, track=track)]


def run_export(
    source: str,
    formats: Sequence[str],
    recipe: Recipe,
    placement: Placement,
    *,
    out: Path | None = None,
    batch: int = 8,
    reference: str | None = None,
    quality: bool = True,
    track: Track = silent,
) -> dict[str, Any]:
    """`optin export`: a network in other runtimes, compared with itself and timed beside itself.

    With data, inputs are real.

    Args:
        out: one folder per format is made there; in the network's own folder if not given.
        batch: examples in the forward that is timed.
        reference: the dense network, exported for the time of the run, timed and evaluated as well.
        quality: with data, evaluate the network in every runtime.
    """
    home = Path(source) if out is None else out
    if out is None and not home.is_dir():
        raise InputError("say where to, with --out: this network comes from no local folder.")
    model, preprocessor, inputs = _export_inputs(source, recipe, placement, batch)
    spec = task_spec(recipe.task.name)
    real = recipe.task.data is not None
    examples = _load(spec, recipe, "evaluation") if real and quality else None
    recipe = _as_pooled(recipe, preprocessor)
    if examples is not None:
        check_evaluation(model, spec, examples, preprocessor, recipe.trajectory.pooling)
    with tempfile.TemporaryDirectory() as scratch:
        places = {"pruned" if section_of(model) else "given": (model, home)}
        if reference is not None:
            places = {"dense": (placement.load(reference, spec.kind), Path(scratch)), **places}
        rows: list[dict[str, Any]] = []
        networks: list[nn.Module] = []
        for network, (original, place) in places.items():
            rows.append({"network": network, "runtime": "torch"})
            networks.append(original)
            targets = {name: place / name for name in formats}
            for figures in export_all(original, inputs, targets, preprocessor, track):
                name = figures.pop("format")
                rows.append({"network": network, "runtime": name, **figures})
                networks.append(open_exported(place / name, trusted=True))
        times = side_by_side(networks, inputs, track=track)
        for row, runnable, measured in zip(rows, networks, zip(*times, strict=True), strict=True):
            row["ms"] = statistics.median(measured)
            if examples is not None:
                row |= _measure(runnable, preprocessor, recipe, examples, networks[0], track)
    shape = " x ".join(str(size) for size in next(iter(inputs.values())).shape)
    return {"inputs": f"{shape}, {'real' if real else 'random'}", "rows": rows}


def _export_inputs(source: str, recipe: Recipe, placement: Placement, batch: int) -> tuple[nn.Module, Any, Batch]:
    """The network, what prepares its inputs if that is known, and inputs: of the data, or random without any."""
    if recipe.task.data is not None:
        options = {"model": source, "calibration__examples": batch, "calibration__batch_size": batch}
        job = Job.of(recipe.override(**options), placement)
        return job.model, job.preprocessor, job.batches[0]
    model = placement.load(source)
    try:
        preprocessor = load_processor(source) if image_input(model) else load_tokenizer(source)
    except InputError:
        preprocessor = None
    length, width = input_shape(model)
    return model, preprocessor, example_inputs(model, length, batch, width)


def run_finetune(
    source: str, recipe: Recipe, out: Path, placement: Placement, teacher: str | None = None
) -> dict[str, Any]:
    """`optin finetune`: a pruned or dense classifier of images, taken to another data set."""
    spec = task_spec(recipe.task.name)
    if spec.kind != "images":
        raise InputError(f"only classifiers of images can be fine-tuned, and {recipe.task.name!r} is no such task.")
    parts = [load_images(spec, recipe.task, part, labelled=True) for part in ("calibration", "evaluation")]
    model = placement.load(source, spec.kind)
    followed = None if teacher is None else placement.load(teacher, spec.kind)
    processor, training = load_processor(source), recipe.training
    return finetune(model, processor, parts[0], parts[1], out, training, seed=recipe.seed, teacher=followed)


def run_draw(folder: Path, recipe: Recipe, out: Path, count: int, reference: str | None = None) -> dict[str, Any]:
    """`optin draw`: pictures of a pruned network; of merged tokens or segmented scenes if there is data."""
    images, spec = None, task_spec(recipe.task.name)
    if recipe.task.data is not None:
        images = _load(spec, recipe, "evaluation", labelled=False)
    dense = None if reference is None else load_model(reference, spec.kind)
    return {f"picture {index}": str(path) for index, path in enumerate(draw(folder, out, images, count, dense), 1)}


def run_report(
    folder: Path,
    recipe: Recipe,
    out: Path | None = None,
    *,
    sweep_file: Path | None = None,
    count: int = 4,
    reference: str | None = None,
) -> dict[str, Any]:
    """`optin report`: report.html anew, with what `sweep` found and with pictures if there is data."""
    # The configuration that transformers writes has the groups in the order of their names.
    chosen, report = Plan.load(folder / "plan.json"), read_json(folder / "report.json")
    known = Recipe.load(folder / "recipe.yaml")
    if recipe.task.data is not None:
        run_draw(folder, recipe, folder, count, reference)
    pictures = sorted(path for pattern in PICTURES for path in folder.glob(pattern))
    found = None if sweep_file is None else read_json(sweep_file)
    name = Path(known.model or folder).name
    target = out or folder / REPORT
    write_text(target, render(report, chosen, known, name, pictures, found))
    return {"report": str(target), "pictures": len(pictures)}


def model_of(recipe: Recipe) -> str:
    """The recipe's model.

    Raises:
        InputError: it names none.
    """
    if recipe.model is None:
        raise InputError("say which model: a local folder or a hub id.")
    return recipe.model


def _quality(job: Job, result: Result, track: Track) -> dict[str, Any]:
    examples = _evaluated(job)
    dense, pruned = _dense_quality(job, examples, track), _pruned_quality(job, result, examples, track)
    return {"examples": len(examples), **job.overlap, "dense": dense, "pruned": pruned}


def _evaluated(job: Job) -> Examples | Images:
    assert job.evaluation is not None
    return job.evaluation


def _dense_quality(job: Job, examples: Examples | Images, track: Track) -> dict[str, float]:
    """Empty for embeddings, which are only compared with the dense network's: it has no figures of its own."""
    if task_spec(job.recipe.task.name).kind.endswith("embedding"):
        return {}
    return _measure(job.model, job.preprocessor, job.recipe, examples, None, track)


def _pruned_quality(job: Job, result: Result, examples: Examples | Images, track: Track) -> dict[str, float]:
    return _measure(result.model, job.preprocessor, job.recipe, examples, job.model, track)


def _load(spec: TaskSpec, recipe: Recipe, part: str, labelled: bool | None = None) -> Examples | Images:
    """One part of the task's data; for an evaluation with labels, if the task has any."""
    needed = not spec.kind.endswith("embedding") if labelled is None else labelled
    load = load_scenes if spec.of_scenes else load_images if spec.of_images else load_examples
    return load(spec, recipe.task, part, labelled=needed)


def _as_pooled(recipe: Recipe, preprocessor: Any) -> Recipe:
    """The recipe with the pooling of a folder of sentence-transformers; one that is no default wins."""
    if not isinstance(preprocessor, SentenceTokenizer) or recipe.trajectory.pooling != Trajectory().pooling:
        return recipe
    return recipe.override(trajectory__pooling=preprocessor.pooling)


def _measure(
    model: nn.Module, preprocessor: Any, recipe: Recipe, examples: Any, reference: nn.Module | None, track: Track
) -> dict[str, float]:
    spec, options = task_spec(recipe.task.name), recipe.calibration
    if spec.of_scenes:
        tile = recipe.task.tile
        return segmentation.evaluate(model, preprocessor, examples, reference=reference, tile=tile, track=track)
    handler: Any = vision if spec.of_images else text
    limits = {} if spec.of_images else {"max_length": options.max_length}
    figures: dict[str, float] = handler.evaluate(
        model,
        preprocessor,
        spec,
        examples,
        reference=reference,
        batch_size=options.batch_size,
        pooling=recipe.trajectory.pooling,
        track=track,
        **limits,
    )
    return figures
