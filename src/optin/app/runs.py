"""Whole runs as the command line starts them: a recipe in, a folder and figures out."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..choosing.search import SEARCHES
from ..describing import describe
from ..describing.inputs import example_inputs, image_input
from ..describing.refusals import check_network
from ..errors import (
    InputError,
    OptinError,
    first_line,
    unknown,
)
from ..inspection import inspect
from ..pipeline import apply, plan, score, sweep
from ..recipe import Recipe
from ..result import Result, summary
from ..running.batch import Batch
from ..running.batches import Batches
from ..running.modules import device_of, fingerprint
from ..scoring.resume import forget
from ..space.budget import Budget
from ..space.options import Trajectory
from ..space.plans import Plan, is_plan
from ..space.scores import Curve, Scores
from ..storage.exporting import EXPORT, check_formats, export_all
from ..storage.figures import read_report, read_sweep
from ..storage.planned import input_shape, section_of
from ..storage.report import PICTURES, is_report, render
from ..storage.runtimes import open_exported
from ..storage.saving import NETWORK, REPORT, save, update_figures
from ..storage.scores import SCORES, keep_scores, load_scores, save_scores
from ..storage.untrusted import check_source
from ..support.files import (
    cache_folder,
    given,
    json_text,
    write_text,
)
from ..support.folders import (
    add_files,
    check_apart,
    check_file,
    check_new,
    new_folder,
)
from ..support.progress import Track, silent
from ..support.threads import use_threads
from ..support.versions import versions
from ..tasks import (
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
from .benchmark import compare_speed, side_by_side
from .finetune import FINETUNED, finetune
from .pictures import (
    PICTURES_KIND,
    check_pictures,
    draw,
    draw_sweep,
)

LONGEST = 2**16  # tokens, or pixels of a side, of inputs that are made
MOST_VALUES = 2**28  # numbers in them
SWEEP = "sweep"  # kind of result
Say = Callable[[str], None]


def unsaid(line: str) -> None:
    """A `Say` that does nothing."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where, in which precision and on how many threads networks run.

    Attributes:
        device, dtype: "cuda:0", "float32"; None leaves it to the checkpoint.
        threads: of torch; None takes no more than the quota of the container.
    """

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None

    def load(self, source: str, kind: str | None = None) -> nn.Module:
        """Load a network and put it there.

        Raises:
            InputError: no such device or dtype, or an absurd number of threads.
        """
        options = {}
        if self.dtype is not None:
            dtype = getattr(torch, self.dtype, None)
            if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                raise InputError(f"unknown dtype {self.dtype!r:.60}. Use float32, bfloat16, float16 or float64.")
            options["dtype"] = dtype
        use_threads(self.threads)
        check_source(source)
        model = load_model(source, kind, **options)
        try:
            return model if self.device is None else model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"cannot use the device {self.device!r:.60}: {first_line(error)}") from error


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
        check_network(model)
        check_fit(model, spec)
        preprocessor = load_preprocessor(source, spec, model)
        recipe = _as_pooled(recipe, preprocessor)
        check_pooling(model, recipe.trajectory.pooling)
        handler: Any = vision if spec.of_images else text
        labels = handler.class_indices(model, spec, examples) if labelled else None
        batches, drawn = handler.drawn_batches(model, examples, preprocessor, recipe.calibration, recipe.seed, labels)
        if spec.kind == "image-zero-shot":
            names = [*recipe.excluded, *vision.text_tower(model, batches[0])]
            recipe = recipe.override(exclude=",".join(dict.fromkeys(names)))
        if evaluation is None:
            return cls(recipe, model, preprocessor, batches)
        check_evaluation(model, spec, evaluation, preprocessor, recipe.trajectory.pooling)
        return cls(recipe, model, preprocessor, batches, *keep_apart(examples, drawn, evaluation))


def run_inspect(model: str, length: int | None, placement: Placement, recipe: Recipe | None = None) -> dict[str, Any]:
    """`optin inspect`, on inputs of the recipe's data if it names any."""
    if recipe is not None and recipe.task.data is not None:
        job = Job.of(recipe.override(model=model), placement)
        return inspect(job.model, length, example=job.batches[0])
    network = placement.load(local(model))
    check_size(network, 1, length)
    return inspect(network, length)


def check_size(model: nn.Module, batch: int, length: int | None) -> None:
    """Refuse random inputs that no machine holds, before it is tried.

    Raises:
        InputError: says how many numbers they would be.
    """
    side = length or 1
    values = batch * (3 * side**2 if image_input(model) else side)
    if side > LONGEST or values > MOST_VALUES:
        raise InputError(f"{batch} examples of length {side} are {values:,} numbers: ask for less.")


def run_score(
    recipe: Recipe,
    out: Path,
    placement: Placement,
    track: Track = silent,
    engine: str = "local",
    address: str | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """`optin score`: removal curves in a folder. A run that is killed goes on where it was."""
    place = check_new(out, SCORES, overwrite, _inputs(recipe))
    job = Job.of(recipe, placement)
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
) -> dict[str, Any]:
    """`optin plan`: the units to keep, from stored scores."""
    if out is not None:
        check_file(given(out), is_plan(given(out)), overwrite)
        check_apart(given(out), [local(model_of(recipe)), scores])
    known = load_scores(scores)
    chosen = plan(placement.load(model_of(recipe)), known, recipe=recipe, track=track)
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
    say: Say = unsaid,
    overwrite: bool = False,
) -> dict[str, Any]:
    """`optin prune`: the whole job, saved; then both networks evaluated where the data has labels.

    Scores are kept beside `out` until the network is saved, and in it afterwards: the same command goes on with them.

    Args:
        say: told in a line what an earlier run left and this one takes.
    """
    place = check_new(out, NETWORK, overwrite, [*_inputs(recipe), scores, plan_file])
    chosen = None if plan_file is None else Plan.load(plan_file)
    known = None if scores is None else load_scores(scores)
    if chosen is None and recipe.budget is None:
        raise InputError("say how much may stay: --budget '50%', '2.1 GMACs' or '40 Mparams'.")
    job = Job.of(recipe, placement, quality)
    recipe = job.recipe
    if chosen is not None:
        result = apply(job.model, chosen, job.batches, recipe=recipe, track=track)
        result.save(place, job.preprocessor, overwrite=overwrite)
    else:
        keep = Kept(place, job, [recipe.budget]) if known is None else None
        result = _pruned(job, keep, known, track, say)
        kept = None if keep is None else keep.scores
        save(result, place, job.preprocessor, overwrite=overwrite, scores=kept)
        if keep is not None:
            keep.remove()
    if quality:
        _measured(job, result, place, track)
    return {**result.report, "saved": str(out)}


def _pruned(job: Job, keep: Kept | None, known: Scores | None, track: Track, say: Say) -> Result:
    """Score if there are no scores, plan and apply; with the seconds of each."""
    laps, start = {}, time.perf_counter()
    if keep is not None:
        known = keep.found(track, say)
        laps["score"] = round(time.perf_counter() - start, 3)
    assert known is not None
    start = time.perf_counter()
    chosen = plan(job.model, known, recipe=job.recipe, track=track)
    laps["search"] = round(time.perf_counter() - start, 3)
    result = apply(job.model, chosen, job.batches, recipe=job.recipe, scores=known, track=track)
    result.report["seconds"] = (laps if keep is not None else {}) | result.report["seconds"]
    return result


def _measured(job: Job, result: Result, place: Path, track: Track) -> None:
    """Quality and speed into the report of a network that is saved already."""
    try:
        result.report["quality"] = _quality(job, result, track)
        length, width = result.plan.length, result.plan.width
        speeds = compare_speed(job.model, result.model, batch=1, lengths=[length], width=width, rounds=5, track=track)
        result.report["speed"] = [speed.to_dict() for speed in speeds]
        update_figures(result, place)
    except OptinError as error:
        raise type(error)(f"the network is saved in {place}; its evaluation failed: {error}") from error
    except Exception as error:  # whatever an evaluation meets: that the network is there must be said
        raise OptinError(f"the network is saved in {place}; its evaluation failed: {first_line(error)}") from error


class Kept:
    """The scores of a run, in a folder beside its result until that is saved.

    Attributes:
        scores: once they were found.
    """

    def __init__(self, place: Path, job: Job, budgets: Sequence[str | None]) -> None:
        self.budgets = budgets
        self.folder, self.partial = (place.with_name(f"{place.name}.{part}") for part in (SCORES, "partial"))
        self.job = job
        self.scores: Scores | None = None
        check_new(self.folder, SCORES, overwrite=True)

    def found(self, track: Track, say: Say) -> Scores:
        """Those of an earlier run of the same command, or new ones.

        Raises:
            OptinError: as `score`; a budget that cannot be reached is refused before.
        """
        self.scores = self._earlier()
        if self.scores is not None:
            say(f"goes on with the scores in {self.folder}")
            return self.scores
        if self.partial.exists():
            say(f"goes on with the partial scores in {self.partial}")
        recipe = self.job.recipe
        _check_choices(recipe)
        for budget in self.budgets:
            _check_budget(self.job, recipe.override(budget=budget, search="lagrange", rearrange=False))
        self.scores = score(self.job.model, self.job.batches, recipe=recipe, track=track, resume=self.partial)
        save_scores(self.scores, self.folder, overwrite=True)
        forget(self.partial)
        return self.scores

    def _earlier(self) -> Scores | None:
        """What lies there, if it is of this network, these inputs and these options."""
        if not self.folder.is_dir():
            return None
        try:
            found = load_scores(self.folder)
        except OptinError:
            return None
        known, calibration = found.provenance, Batches.of(self.job.batches, device_of(self.job.model))
        data = known.get("data")
        fits = (
            known.get("network") == fingerprint(self.job.model)
            and isinstance(data, dict)
            and data.get("sha256") == calibration.digest
            and _scoring(known.get("recipe")) == _scoring(self.job.recipe.to_dict())
            and known.get("versions") == versions()
        )
        return found if fits else None

    def remove(self) -> None:
        """Once they lie in the result."""
        shutil.rmtree(self.folder, ignore_errors=True)
        forget(self.partial)


def _scoring(recipe: Any) -> Any:
    """The options that scores depend on."""
    later = ("budget", "search", "round_to", "latency_batch", "model", "training")
    return {name: value for name, value in recipe.items() if name not in later} if isinstance(recipe, dict) else None


def _check_choices(recipe: Recipe) -> None:
    """Refuse what the search after the scoring would not take.

    Raises:
        InputError: an unknown search, or one that needs other scores.
    """
    if recipe.search not in SEARCHES:
        raise InputError(unknown("search", recipe.search, SEARCHES))
    if recipe.rearrange and recipe.criterion != "fisher":
        raise InputError(f"'rearrange' needs scores of the criterion fisher, not of {recipe.criterion}.")


def _check_budget(job: Job, recipe: Recipe) -> None:
    """Refuse a budget that cannot be reached before anything is scored, where that can be said without timing.

    Raises:
        BudgetError: says the smallest that can.
    """
    if Budget.parse(recipe.budget or "").quantity == "latency":
        cache_folder()  # which times are kept in
        return
    if recipe.tokens.merge != "none":
        return
    calibration = Batches.of(job.batches, device_of(job.model))
    space = describe(job.model, calibration.sample()).without(recipe.excluded)
    length, width = recipe.length or calibration.positions, None if recipe.length else calibration.width
    curves = {group.name: Curve.from_importance(torch.ones(group.size)) for group in space}
    provenance = {"recipe": recipe.to_dict(), "data": {"inputs": calibration.looks}}
    plan(job.model, Scores(space.architecture, curves, length, provenance, width=width), recipe=recipe)


def run_sweep(
    recipe: Recipe,
    budgets: Sequence[str],
    out: Path,
    placement: Placement,
    *,
    scores: Path | None = None,
    track: Track = silent,
    say: Say = unsaid,
    overwrite: bool = False,
) -> dict[str, Any]:
    """`optin sweep`: quality against budget from one scoring, in sweep.json and as a picture."""
    place = check_new(out, SWEEP, overwrite, [*_inputs(recipe), scores])
    check_pictures()
    for budget in budgets:
        Budget.parse(budget)
    known = None if scores is None else load_scores(scores)
    job = Job.of(recipe, placement, True)
    recipe, examples = job.recipe, _evaluated(job)
    keep = Kept(place, job, budgets) if known is None else None
    known = known if keep is None else keep.found(track, say)
    points = []
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
) -> dict[str, Any]:
    """`optin evaluate`: the task's metrics of one network."""
    spec = task_spec(recipe.task.name)
    source, reference = local(source), None if reference is None else local(reference)
    examples = _load(spec, recipe, "evaluation")
    model = placement.load(source, spec.kind)
    dense = None if reference is None else placement.load(reference, spec.kind)
    preprocessor = load_preprocessor(source, spec, model)
    recipe = _as_pooled(recipe, preprocessor)
    check_evaluation(model, spec, examples, preprocessor, recipe.trajectory.pooling)
    figures = _measure(model, preprocessor, recipe, examples, dense, track)
    seen = _seen(Path(source), spec, recipe, examples)
    return {"model": source, "task": recipe.task.name, "examples": len(examples), **seen, **figures}


def _seen(source: Path, spec: TaskSpec, recipe: Recipe, examples: Any) -> dict[str, int]:
    """How many of the examples the calibration of a pruned network saw, as far as its recipe says."""
    file = source / "recipe.yaml"
    if not file.is_file() or recipe.task.data is None:
        return {}
    known = Recipe.load(file)
    if known.task.data is None or known.task.name != recipe.task.name:
        return {}
    try:
        drawn = _load(spec, known, "calibration")
    except OptinError:  # the data of then are gone
        return {}
    same = drawn.origin is not None and drawn.origin == getattr(examples, "origin", None)
    return {"seen by calibration": min(known.calibration.examples, len(drawn))} if same else {}


def run_bench(
    dense: str, pruned: str, batch: int, lengths: list[int] | None, placement: Placement, track: Track = silent
) -> list[dict[str, Any]]:
    """`optin bench`: both networks timed in turn."""
    networks = (placement.load(local(dense)), placement.load(local(pruned)))
    for length in lengths or ():
        check_size(networks[0], batch, length)
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
    overwrite: bool = False,
) -> dict[str, Any]:
    """`optin export`: a network in other runtimes, compared with itself and timed beside itself.

    With data, inputs are real.

    Args:
        out: one folder per format is made there; in the network's own folder if not given.
        batch: examples in the forward that is timed.
        reference: the dense network, exported for the time of the run, timed and evaluated as well.
        quality: with data, evaluate the network in every runtime.
    """
    source, reference = local(source), None if reference is None else local(reference)
    home = Path(source) if out is None else given(out)
    if out is None and not home.is_dir():
        raise InputError("say where to, with --out: this network comes from no local folder.")
    check_formats(formats)
    # Formats may lie in the network's own folder, and nowhere else in what is read.
    inputs = [recipe.task.data, reference, None if home.resolve() == Path(source).resolve() else source]
    for name in formats:
        check_new(home / name, EXPORT, overwrite, inputs)
    model, preprocessor, batch_inputs = _export_inputs(source, recipe, placement, batch)
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
            for figures in export_all(original, batch_inputs, targets, preprocessor, track, overwrite):
                name = figures.pop("format")
                rows.append({"network": network, "runtime": name, **figures})
                networks.append(open_exported(place / name, trusted=True))
        times = side_by_side(networks, batch_inputs, track=track)
        for row, runnable, measured in zip(rows, networks, zip(*times, strict=True), strict=True):
            row["ms"] = statistics.median(measured)
            if examples is not None:
                row |= _measure(runnable, preprocessor, recipe, examples, networks[0], track)
    shape = " x ".join(str(size) for size in next(iter(batch_inputs.values())).shape)
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
    source: str,
    recipe: Recipe,
    out: Path,
    placement: Placement,
    teacher: str | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """`optin finetune`: a pruned or dense classifier of images, taken to another data set."""
    spec = task_spec(recipe.task.name)
    if spec.kind != "images":
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
    folder: Path, recipe: Recipe, out: Path, count: int, reference: str | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """`optin draw`: pictures of a pruned network; of merged tokens or segmented scenes if there is data."""
    images, spec = None, task_spec(recipe.task.name)
    folder = given(folder)
    check_pictures()
    if given(out).resolve() != folder.resolve():
        check_new(out, PICTURES_KIND, overwrite, [folder, recipe.task.data, reference])
    if recipe.task.data is not None:
        images = _load(spec, recipe, "evaluation", labelled=False)
    dense = None if reference is None else load_model(local(reference), spec.kind)
    written = draw(folder, out, images, count, dense, overwrite=overwrite)
    return {f"picture {index}": str(path) for index, path in enumerate(written, 1)}


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
    folder = given(folder).resolve()
    target = folder / REPORT if out is None else given(out)
    check_file(target, is_report(target), overwrite=True)
    # The configuration that transformers writes has the groups in the order of their names.
    chosen, report = Plan.load(folder / "plan.json"), read_report(folder / "report.json")
    known = Recipe.load(folder / "recipe.yaml")
    found = None if sweep_file is None else read_sweep(given(sweep_file))
    if recipe.task.data is not None:
        run_draw(folder, recipe, folder, count, reference)
    pictures = sorted(path for pattern in PICTURES for path in folder.glob(pattern) if path.is_file())
    name = Path(known.model or folder).name
    write_text(target, render(report, chosen, known, name, pictures, found))
    return {"report": str(out or target), "pictures": len(pictures)}


def model_of(recipe: Recipe) -> str:
    """The recipe's model.

    Raises:
        InputError: it names none.
    """
    if recipe.model is None:
        raise InputError("say which model: a local folder or a hub id.")
    return local(recipe.model)


def local(source: str) -> str:
    """A model as a user gives it: in a path, `~` is the home folder."""
    return str(given(source))


def _inputs(recipe: Recipe) -> list[str | Path | None]:
    """What a recipe reads: files and folders that no result may touch."""
    return [None if recipe.model is None else local(recipe.model), recipe.task.data]


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
