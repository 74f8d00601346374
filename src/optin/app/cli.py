"""The command line. No logic of its own: options become a `Recipe`, `optin.app.runs` does the work.

Exit codes: 0 done; 1 a defect of optin; 2 a path, option or data file that cannot be used; 3 an unknown
architecture; 4 a budget that cannot be read or reached; 5 NaN or infinite weights or activations; 6 a
checkpoint that is damaged or cannot be written; 7 a package that is not installed; 130 interrupted; 143 ended
by SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from ..errors import OptinError
from ..recipe import Recipe, preset
from ..support import interrupts
from ..support.files import given, json_text

app = typer.Typer(
    name="optin",
    help="Give it a trained network and a budget; get back a smaller, faster network of almost the same quality.",
    epilog="Exit codes: 2 input, 3 architecture, 4 budget, 5 NaN, 6 checkpoint or disk, 7 missing package.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="Local folder or hub id.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML recipe; the other options override it.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", help="Named recipe to start from: default, thorough, beta, tau, segmentation, paper or kwon."
    ),
]
Budget = Annotated[
    str | None, typer.Option(help="'50%', '2.1 GMACs', '40 Mparams', '60% params', '12 ms' or '60% latency'.")
]
LatencyBatch = Annotated[int | None, typer.Option(help="Examples in the forward that a budget of latency is for.")]
Task = Annotated[str | None, typer.Option(help="Task, for example sst2 or text-classification.")]
Data = Annotated[str | None, typer.Option(help="File or folder (csv, tsv, jsonl, parquet); the hub if not given.")]
Text = Annotated[str | None, typer.Option(help="Column of the texts.")]
Label = Annotated[str | None, typer.Option(help="Column of the labels.")]
CriterionName = Annotated[str | None, typer.Option("--criterion", help="How units are scored.")]
Exclude = Annotated[str | None, typer.Option(help="Modules and groups that stay whole, with commas between.")]
SearchName = Annotated[str | None, typer.Option("--search", help="How the budget is spent: lagrange or paper.")]
Compensate = Annotated[bool | None, typer.Option("--compensate/--no-compensate", help="Refit what stays.")]
Examples = Annotated[int | None, typer.Option(help="Unlabelled calibration examples.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens per example at most.")]
ScoresFolder = Annotated[Path | None, typer.Option("--scores", help="Use these scores instead of scoring.")]
ImageTask = Annotated[str, typer.Option(help="Task of the images.")]
DrawnData = Annotated[str | None, typer.Option(help="Images to show merged tokens on, or scenes to segment.")]
DrawnReference = Annotated[str | None, typer.Option(help="The dense network, to segment the same scenes.")]
Count = Annotated[int, typer.Option(min=1, help="Images to draw.")]
Seed = Annotated[int | None, typer.Option(help="Of every random draw.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
Threads = Annotated[
    int | None, typer.Option(help="Of torch; by default no more than the container's quota, or OMP_NUM_THREADS.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result of the same kind; other files stay.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no table.")]


def _show_version(wanted: bool) -> None:
    from ..support.versions import versions

    if wanted:
        print(", ".join(f"{name} {version}" for name, version in versions().items()))  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print versions and end.")
    ] = False,
) -> None:
    pass


@app.command()
def inspect(
    model: Model,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens, or pixels of an image side, to count MACs at.")
    ] = None,
    task: Task = None,
    data: Data = None,
    text: Text = None,
    device: Device = None,
    threads: Threads = None,
    dtype: Dtype = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what can be removed from a network, what stays and why, and where its MACs are."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(None, None).override(task__name=task, task__data=_path(data), task__text=text)
    result = runs.run_inspect(model, length, runs.Placement(device, dtype, threads), options)
    _print(result, tables.inspection, as_json, quiet)


@app.command()
def score(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the scores.")],
    recipe: RecipeFile = None,
    preset_name: Preset = None,
    task: Task = None,
    data: Data = None,
    text: Text = None,
    label: Label = None,
    criterion: CriterionName = None,
    exclude: Exclude = None,
    examples: Examples = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: units (exact) or calibration batches on many machines.")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster: auto or HOST:PORT.")] = None,
    device: Device = None,
    threads: Threads = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every unit once; `plan` and `prune --scores` then take any budget."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(recipe, preset_name).override(
        model=model,
        criterion=criterion,
        exclude=exclude,
        seed=seed,
        task__name=task,
        task__data=_path(data),
        task__text=text,
        task__label=label,
        calibration__examples=examples,
        calibration__max_length=max_length,
    )
    result = runs.run_score(
        options,
        out,
        runs.Placement(device, dtype, threads),
        _track(as_json, quiet),
        engine,
        address,
        overwrite=overwrite,
    )
    _print(result, tables.entries, as_json, quiet)


@app.command()
def plan(
    model: Model,
    scores: Annotated[Path, typer.Argument(help="Folder written by `optin score`.")],
    budget: Budget = None,
    out: Annotated[Path | None, typer.Option(help="File for the plan (JSON).")] = None,
    recipe: RecipeFile = None,
    preset_name: Preset = None,
    search: SearchName = None,
    round_to: Annotated[int | None, typer.Option(help="Kept neurons and channels are multiples of this.")] = None,
    latency_batch: LatencyBatch = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose the units to keep under a budget, from stored scores, without any data."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(recipe, preset_name).override(
        model=model, budget=budget, search=search, round_to=round_to, latency_batch=latency_batch
    )
    result = runs.run_plan(
        options, scores, out, runs.Placement(threads=threads), _track(as_json, quiet), overwrite=overwrite
    )
    _print(result, tables.plan, as_json, quiet)


@app.command()
def prune(
    model: Annotated[str | None, typer.Argument(help="Local folder or hub id; may stand in the recipe.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pruned network.")] = Path("pruned"),
    budget: Budget = None,
    recipe: RecipeFile = None,
    preset_name: Preset = None,
    task: Task = None,
    data: Data = None,
    text: Text = None,
    label: Label = None,
    criterion: CriterionName = None,
    exclude: Exclude = None,
    search: SearchName = None,
    compensate: Compensate = None,
    round_to: Annotated[int | None, typer.Option(help="Kept neurons and channels are multiples of this.")] = None,
    latency_batch: LatencyBatch = None,
    examples: Examples = None,
    max_length: MaxLength = None,
    scores: ScoresFolder = None,
    plan: Annotated[Path | None, typer.Option(help="Use this plan instead of scoring and searching.")] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure both networks on the task.")] = True,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune a network under a budget, save it, and say what it cost."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(recipe, preset_name).override(
        model=model,
        budget=budget,
        criterion=criterion,
        exclude=exclude,
        search=search,
        round_to=round_to,
        latency_batch=latency_batch,
        seed=seed,
        refit__enabled=compensate,
        task__name=task,
        task__data=_path(data),
        task__text=text,
        task__label=label,
        calibration__examples=examples,
        calibration__max_length=max_length,
    )
    result = runs.run_prune(
        options,
        out,
        runs.Placement(device, dtype, threads),
        scores=scores,
        plan_file=plan,
        quality=evaluate,
        track=_track(as_json, quiet),
        say=_say(quiet),
        overwrite=overwrite,
    )
    _print(result, tables.pruning, as_json, quiet)


@app.command()
def sweep(
    model: Annotated[str | None, typer.Argument(help="Local folder or hub id; may stand in the recipe.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures and their picture.")] = Path("sweep"),
    budget: Annotated[
        list[str] | None, typer.Option(help="May be repeated; 80, 65, 50 and 40% if not given.")
    ] = None,
    recipe: RecipeFile = None,
    preset_name: Preset = None,
    task: Task = None,
    data: Data = None,
    text: Text = None,
    label: Label = None,
    criterion: CriterionName = None,
    exclude: Exclude = None,
    compensate: Compensate = None,
    examples: Examples = None,
    max_length: MaxLength = None,
    scores: ScoresFolder = None,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show quality against budget, from one scoring (needs optin\\[pictures])."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(recipe, preset_name).override(
        model=model,
        criterion=criterion,
        exclude=exclude,
        seed=seed,
        refit__enabled=compensate,
        task__name=task,
        task__data=_path(data),
        task__text=text,
        task__label=label,
        calibration__examples=examples,
        calibration__max_length=max_length,
    )
    budgets, placement = budget or ["80%", "65%", "50%", "40%"], runs.Placement(device, dtype, threads)
    result = runs.run_sweep(
        options,
        budgets,
        out,
        placement,
        scores=scores,
        track=_track(as_json, quiet),
        say=_say(quiet),
        overwrite=overwrite,
    )
    _print(result, tables.sweep, as_json, quiet)


@app.command()
def evaluate(
    model: Model,
    recipe: RecipeFile = None,
    task: Task = None,
    data: Data = None,
    text: Text = None,
    label: Label = None,
    max_length: MaxLength = None,
    reference: Annotated[str | None, typer.Option(help="Dense network to compare the outputs with.")] = None,
    tile: Annotated[int | None, typer.Option(help="Side in pixels of the parts that scenes are cut into.")] = None,
    device: Device = None,
    threads: Threads = None,
    dtype: Dtype = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a network, dense or pruned, on a task."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(recipe, None).override(
        task__name=task,
        task__data=_path(data),
        task__text=text,
        task__label=label,
        task__tile=tile,
        calibration__max_length=max_length,
    )
    placement = runs.Placement(device, dtype, threads)
    result = runs.run_evaluate(model, options, placement, reference, _track(as_json, quiet))
    _print(result, tables.entries, as_json, quiet)


@app.command()
def bench(
    dense: Annotated[str, typer.Argument(help="The network before.")],
    pruned: Annotated[str, typer.Argument(help="The network after.")],
    batch: Annotated[int, typer.Option(min=1, help="Examples per forward.")] = 32,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens, or pixels of an image side; may be repeated.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    dtype: Dtype = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time two networks side by side."""
    from . import runs, tables

    interrupts.loaded()
    placement = runs.Placement(device, dtype, threads)
    result = runs.run_bench(dense, pruned, batch, length or None, placement, _track(as_json, quiet))
    _print(result, tables.speeds, as_json, quiet)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder of a pruned (or dense) network.")],
    to: Annotated[
        list[str] | None,
        typer.Option(help="onnx, onnx-int8, openvino or torch-export; may be repeated; onnx if not given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for one folder per format; the network's own if not given.")
    ] = None,
    recipe: RecipeFile = None,
    task: Task = None,
    data: Data = None,
    text: Text = None,
    label: Label = None,
    max_length: MaxLength = None,
    batch: Annotated[int, typer.Option(min=2, help="Examples per timed forward.")] = 8,
    reference: Annotated[str | None, typer.Option(help="Dense network, timed and evaluated beside it.")] = None,
    evaluate: Annotated[bool, typer.Option(help="With data, measure the network in every runtime.")] = True,
    threads: Threads = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a network for other runtimes, checked against itself and timed beside itself (needs optin\\[export])."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(recipe, None).override(
        task__name=task,
        task__data=_path(data),
        task__text=text,
        task__label=label,
        calibration__max_length=max_length,
    )
    result = runs.run_export(
        model,
        to or ["onnx"],
        options,
        runs.Placement("cpu", dtype, threads),
        out=out,
        batch=batch,
        reference=reference,
        quality=evaluate,
        track=_track(as_json, quiet),
        overwrite=overwrite,
    )
    _print(result, tables.exports, as_json, quiet)


@app.command()
def finetune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the trained network.")],
    recipe: RecipeFile = None,
    task: Task = None,
    data: Data = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    head_only: Annotated[bool | None, typer.Option("--head-only", help="Train the new classifier alone.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Network of the same classes to follow.")] = None,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take a pruned (or dense) classifier of images to another data set (needs optin\\[finetune])."""
    from . import runs, tables

    interrupts.loaded()
    options = _recipe(recipe, None).override(
        seed=seed,
        task__name=task if task or recipe else "image-classification",
        task__data=_path(data),
        training__epochs=epochs,
        training__batch_size=batch_size,
        training__learning_rate=learning_rate,
        training__head_only=head_only,
    )
    result = runs.run_finetune(
        model, options, out, runs.Placement(device, dtype, threads), teacher, overwrite=overwrite
    )
    _print(result, tables.entries, as_json, quiet)


@app.command()
def draw(
    model: Annotated[Path, typer.Argument(help="Folder of a pruned network.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; the network's own if not given.")] = None,
    task: ImageTask = "image-classification",
    data: DrawnData = None,
    count: Count = 4,
    reference: DrawnReference = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw which units stayed and, for images, which tokens merge or what was segmented (needs optin\\[pictures])."""
    from . import runs, tables

    interrupts.loaded()
    recipe = Recipe().override(task__name=task, task__data=_path(data))
    result = runs.run_draw(model, recipe, out or model, count, reference, overwrite=overwrite)
    _print(result, tables.entries, as_json, quiet)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="Folder of a pruned network.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; report.html in the folder if not given.")] = None,
    sweep: Annotated[Path | None, typer.Option(help="sweep.json, to show quality against MACs.")] = None,
    task: ImageTask = "image-classification",
    data: DrawnData = None,
    count: Count = 4,
    reference: DrawnReference = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the report of a pruned network anew, with a sweep and with pictures: one HTML file."""
    from . import runs, tables

    interrupts.loaded()
    recipe = Recipe().override(task__name=task, task__data=_path(data))
    result = runs.run_report(model, recipe, out, sweep_file=sweep, count=count, reference=reference)
    _print(result, tables.entries, as_json, quiet)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what it writes.")] = Path("demo-output"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the main job on a real network and real sentences (needs optin\\[demo])."""
    from . import demo as demonstration
    from . import tables

    interrupts.loaded()
    _print(demonstration.run_demo(out, _track(as_json, quiet)), tables.demo, as_json, quiet)


def main() -> None:
    """Entry point: every error that a user can cause becomes one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        app()
    except OptinError as error:
        _fail(type(error).__name__, str(error), error.exit_code)
    except MemoryError:
        _fail("MemoryError", "there is not enough memory: ask for smaller batches or lengths.", 1)
    except OSError as error:
        _fail("InputError", f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _fail(kind: str, words: str, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]{kind}[/]: ", end="")
    print(" ".join(words.split("\n")), file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _recipe(file: Path | None, name: str | None) -> Recipe:
    if file is not None and name is not None:
        raise typer.BadParameter("give --recipe or --preset, not both (a recipe may say 'preset: NAME').")
    return Recipe.load(file) if file is not None else preset(name or "default")


def _path(text: str | None) -> str | None:
    return None if text is None else str(given(text))


def _say(quiet: bool) -> Callable[[str], None]:
    """Lines for people, on the error stream."""
    return lambda line: None if quiet else print(line, file=sys.stderr)  # noqa: T201


def _track(as_json: bool, quiet: bool) -> Any:
    from ..support.progress import rich_track, silent

    return silent if as_json or quiet else rich_track


def _print(result: Any, table: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json_text(result), end="")  # noqa: T201
    elif not quiet:
        Console().print(table(result))
