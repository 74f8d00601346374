"""The command line. No logic of its own: options become a `Run` (see `options`), `optin.app.commands` does the work.

Exit codes: 0 done; 1 a defect of optin; 2 a path, option or data file that cannot be used; 3 an unknown
architecture; 4 a budget that cannot be read or reached; 5 NaN or infinite weights or activations; 6 a
checkpoint that is damaged or cannot be written; 7 a package that is not installed; 130 interrupted; 143 ended
by SIGTERM.
"""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from ..errors import OptinError
from ..support.files import given
from ..support.untyped import Foreign
from .options import (
    Count,
    DrawnData,
    DrawnReference,
    DryRun,
    Harness,
    InRecipe,
    Model,
    Pruned,
    Run,
    ScoresFolder,
    command,
)
from .quick_help import import_help, wants_help

app = typer.Typer(
    name="optin",
    help="Give it a trained network and a budget; get back a smaller, faster network of almost the same quality.",
    epilog="Exit codes: 2 input, 3 architecture, 4 budget, 5 NaN, 6 disk or checkpoint, 7 package, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA = "recipe task data text text_pair label"
SCORING = f"{DATA} share limit preset criterion queries exclude only examples per_batch max_length offload seed"
CHOOSING = "search parts round_to latency_batch"
PLACE = "device threads dtype"
IMAGES = "image-classification"


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


@command(app, "inspection", f"task data text {PLACE}")
def inspect(
    model: Model,
    run: Run,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens, or pixels of an image side, to count MACs at.")
    ] = None,
) -> Foreign:
    """Show what can be removed from a network, what stays and why, and where its MACs are."""
    from . import commands

    return commands.run_inspect(model, length, run.placement, run.recipe)


@command(app, "entries", f"{SCORING} {PLACE} overwrite")
def score(
    model: Model,
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the scores.")],
    engine: Annotated[
        str, typer.Option(help="local, or ray: units (exact) or calibration batches on many machines.")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster: auto or HOST:PORT.")] = None,
    dry_run: DryRun = False,
) -> Foreign:
    """Score every unit once; `plan` and `prune --scores` then take any budget."""
    from . import commands

    recipe = run.recipe.override(model=model)
    return commands.run_score(
        recipe, out, run.placement, run.track, engine, address, dry_run=dry_run, overwrite=run.overwrite
    )


@command(app, "plan", f"budget recipe preset {CHOOSING} threads overwrite")
def plan(
    model: Model,
    scores: Annotated[Path, typer.Argument(help="Folder written by `optin score` or `prune`.")],
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the plan (JSON).")] = None,
) -> Foreign:
    """Choose the units to keep under a budget, from stored scores, without any data."""
    from . import commands

    recipe = run.recipe.override(model=model)
    return commands.run_plan(recipe, scores, out, run.placement, run.track, overwrite=run.overwrite)


@command(app, "pruning", f"budget {SCORING} {CHOOSING} compensate {PLACE} overwrite")
def prune(
    run: Run,
    model: InRecipe = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pruned network.")] = Path("pruned"),
    scores: ScoresFolder = None,
    plan: Annotated[Path | None, typer.Option(help="Use this plan instead of scoring and searching.")] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure both networks on the task.")] = True,
    dry_run: DryRun = False,
) -> Foreign:
    """Prune a network under a budget, save it, and say what it cost."""
    from . import commands

    return commands.run_prune(
        run.recipe.override(model=model),
        out,
        run.placement,
        scores=scores,
        plan_file=plan,
        quality=evaluate,
        dry_run=dry_run,
        track=run.track,
        say=run.say,
        overwrite=run.overwrite,
    )


@command(app, "sweep", f"{SCORING} {CHOOSING} compensate {PLACE} overwrite")
def sweep(
    run: Run,
    model: InRecipe = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and their picture.")] = Path(
        "sweep"
    ),
    budget: Annotated[
        list[str] | None, typer.Option(help="May be repeated; 80, 65, 50 and 40% if not given.")
    ] = None,
    scores: ScoresFolder = None,
    dry_run: DryRun = False,
) -> Foreign:
    """Show quality against budget, from one scoring (needs optin\\[pictures])."""
    from . import commands

    return commands.run_sweep(
        run.recipe.override(model=model),
        budget or ["80%", "65%", "50%", "40%"],
        out,
        run.placement,
        scores=scores,
        dry_run=dry_run,
        track=run.track,
        say=run.say,
        overwrite=run.overwrite,
    )


@command(app, "entries", f"{DATA} limit per_batch max_length tile {PLACE}")
def evaluate(
    model: Model,
    run: Run,
    reference: Annotated[str | None, typer.Option(help="Dense network to compare the outputs with.")] = None,
    lm_eval: Harness = None,
) -> Foreign:
    """Measure a network, dense or pruned, on a task."""
    from . import commands, harness

    if lm_eval:
        return harness.run_harness(model, lm_eval, run.recipe, run.placement)
    return commands.run_evaluate(model, run.recipe, run.placement, reference, run.track)


@command(app, "speeds", PLACE)
def bench(
    dense: Annotated[str, typer.Argument(help="The network before.")],
    pruned: Annotated[str, typer.Argument(help="The network after.")],
    run: Run,
    batch: Annotated[int, typer.Option(min=1, help="Examples per forward.")] = 32,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens, or pixels of an image side; may be repeated.")
    ] = None,
) -> Foreign:
    """Time two networks side by side."""
    from . import commands

    return commands.run_bench(dense, pruned, batch, length or None, run.placement, run.track)


@command(app, "exports", f"{DATA} limit max_length threads dtype overwrite")
def export(
    model: Annotated[str, typer.Argument(help="Folder of a pruned (or dense) network.")],
    run: Run,
    to: Annotated[
        list[str] | None,
        typer.Option(help="onnx, onnx-int8, openvino or torch-export; may be repeated; onnx if not given."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for one folder per format; the network's own if not given."),
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Examples per timed forward.")] = 8,
    reference: Annotated[str | None, typer.Option(help="Dense network, timed and evaluated beside it.")] = None,
    evaluate: Annotated[bool, typer.Option(help="With data, measure the network in every runtime.")] = True,
) -> Foreign:
    """Write a network for other runtimes, checked against itself and timed beside itself (needs optin\\[export])."""
    from . import exports
    from .placement import Placement

    return exports.run_export(
        model,
        to or ["onnx"],
        run.recipe,
        Placement("cpu", run.dtype or "float32", run.threads),
        out=out,
        batch=batch,
        reference=reference,
        quality=evaluate,
        track=run.track,
        overwrite=run.overwrite,
    )


@command(
    app,
    "entries",
    f"recipe task data epochs batch_size learning_rate head_only seed {PLACE} overwrite",
    task=IMAGES,
)
def finetune(
    model: Model,
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the trained network.")],
    teacher: Annotated[str | None, typer.Option(help="Network of the same classes to follow.")] = None,
) -> Foreign:
    """Take a pruned (or dense) classifier of images to another data set (needs optin\\[finetune])."""
    from . import commands

    return commands.run_finetune(model, run.recipe, out, run.placement, teacher, overwrite=run.overwrite)


@command(app, "entries", f"task {PLACE} overwrite", task=IMAGES)
def draw(
    model: Pruned,
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the pictures; the network's own if not given.")
    ] = None,
    data: DrawnData = None,
    count: Count = 4,
    reference: DrawnReference = None,
) -> Foreign:
    """Draw which units stayed and, for images, which tokens merge or what was segmented (needs optin\\[pictures])."""
    from . import commands

    recipe = run.recipe.override(task__data=data and str(given(data)))
    return commands.run_draw(model, recipe, run.placement, out or model, count, reference, overwrite=run.overwrite)


@command(app, "entries", f"task {PLACE}", task=IMAGES)
def report(
    model: Pruned,
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file; report.html in the folder if not given.")
    ] = None,
    sweep: Annotated[Path | None, typer.Option(help="sweep.json, to show quality against MACs.")] = None,
    data: DrawnData = None,
    count: Count = 4,
    reference: DrawnReference = None,
) -> Foreign:
    """Write the report of a pruned network anew, with a sweep and with pictures: one HTML file."""
    from . import commands

    recipe = run.recipe.override(task__data=data and str(given(data)))
    return commands.run_report(model, recipe, run.placement, out, sweep_file=sweep, count=count, reference=reference)


@command(app, "listing")
def tasks(run: Run) -> Foreign:
    """List the tasks: what each takes, and by what it is measured."""
    from . import commands

    return commands.run_tasks()


@command(app, "listing")
def presets(run: Run) -> Foreign:
    """List the presets, and what each is for."""
    from . import commands

    return commands.run_presets()


@command(app, "demo")
def demo(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what it writes.")] = Path("demo-output"),
) -> Foreign:
    """Run the main job on a real network and real sentences (needs optin\\[demo])."""
    from . import demo as demonstration

    return demonstration.run_demo(out, run.track)


def main() -> None:
    """Entry point: every error that a user can cause becomes one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if wants_help(sys.argv):
        import_help()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
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
