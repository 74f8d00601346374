"""The options that commands share, each declared once: its help, and its place in a recipe.

A command has parameters of its own, names those that it shares, and gets what they make as one `Run`.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.models import OptionInfo

from ..recipe import Recipe, preset
from ..space.budget import EXAMPLES
from ..space.options import Task
from ..support import interrupts
from ..support.files import json_text, placed

if TYPE_CHECKING:  # these import torch, and the help must answer before it is there
    from ..support.progress import Track
    from .placement import Placement

Model = Annotated[str, typer.Argument(help="Local folder, hub id, timm:NAME, torchvision:NAME or GGUF file.")]
Pruned = Annotated[Path, typer.Argument(help="Folder of a pruned network.")]
InRecipe = Annotated[str | None, typer.Argument(help="As of `optin inspect`; may stand in the recipe.")]
ScoresFolder = Annotated[Path | None, typer.Option("--scores", help="Use these scores instead of scoring.")]
DrawnData = Annotated[str | None, typer.Option(help="Images to show merged tokens on, or scenes to segment.")]
DrawnReference = Annotated[str | None, typer.Option(help="The dense network, to segment the same scenes.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check and count everything, score nothing; about how long, how much memory."),
]
Count = Annotated[int, typer.Option(min=1, help="Images to draw.")]
Harness = Annotated[
    list[str] | None,
    typer.Option(
        "--lm-eval",
        help="Tasks of EleutherAI's harness by name or YAML file, in the place of --data; may be repeated "
        "(needs optin\\[lm-eval]).",
    ),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML recipe; the other options override it.")]
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="One of `optin presets`, to start from; by default that for the task."),
]
Compensate = Annotated[
    bool | None, typer.Option("--refit/--no-refit", "--compensate/--no-compensate", help="Refit what stays.")
]
Parts = Annotated[
    bool | None,
    typer.Option("--parts/--no-parts", help="Let whole attentions and feed-forward layers go, where that is better."),
]
Queries = Annotated[
    bool | None,
    typer.Option(
        "--queries/--no-queries",
        help="Where heads share keys and values, let equally many of every group go: the cache stays as it is.",
    ),
]
Offload = Annotated[
    bool | None,
    typer.Option(
        "--offload/--no-offload",
        help="For models that are large for this machine: score block by block, with what waits on disk.",
    ),
]
PerBatch = Annotated[
    int | None, typer.Option("--batch-size", help="Examples of a calibration or evaluation batch; 32 by default.")
]
Shares = Annotated[
    list[float] | None,
    typer.Option("--share", help="Of each --data in the calibration inputs, in their order; equal if not given."),
]
HeadOnly = Annotated[bool | None, typer.Option("--head-only", help="Train the new classifier alone.")]


def _text(words: str) -> Any:
    return Annotated[str | None, typer.Option(help=words)]


def _texts(words: str) -> Any:
    return Annotated[list[str] | None, typer.Option(help=words)]


def _count(words: str) -> Any:
    return Annotated[int | None, typer.Option(help=words)]


def _number(words: str) -> Any:
    return Annotated[float | None, typer.Option(help=words)]


# By the name of the parameter: where the value stands in a recipe, and how the option is declared.
OF_RECIPES: Mapping[str, tuple[str, Any]] = {
    "budget": ("budget", _text(f"{EXAMPLES}.")),
    "task": ("task__name", _text("One of `optin tasks`; by default what the network is for.")),
    "data": (
        "task__data",
        _texts(
            "File or folder (csv, tsv, jsonl, parquet, txt, images, recordings), or hub:NAME; the task's own if not "
            "given. Of documents it may be repeated."
        ),
    ),
    "share": ("task__shares", Shares),
    "text": ("task__text", _text("Column of the texts.")),
    "text_pair": ("task__text_pair", _text("Column of the second texts of pairs.")),
    "label": ("task__label", _text("Column of the labels.")),
    "tile": ("task__tile", _count("Side in pixels of the parts that scenes are cut into.")),
    "criterion": (
        "criterion",
        _text("How units are scored: compensated (by default), sketch, exact, magnitude, fisher or random."),
    ),
    "exclude": ("exclude", _text("Modules and groups that stay whole, with commas between.")),
    "only": ("only", _text("Modules and groups that alone may lose units, with commas between.")),
    "search": ("search", _text("How the budget is spent: lagrange (by default) or paper.")),
    "parts": ("parts", Parts),
    "queries": ("queries", Queries),
    "offload": ("offload", Offload),
    "compensate": ("refit__enabled", Compensate),
    "round_to": ("round_to", _count("Kept neurons and channels are multiples of this.")),
    "latency_batch": ("latency_batch", _count("Examples in the forward that a budget of latency is for.")),
    "limit": ("task__limit", _count("Held-out examples that are evaluated at most; all if not given.")),
    "per_batch": ("calibration__batch_size", PerBatch),
    "examples": ("calibration__examples", _count("Unlabelled calibration examples; 256 by default.")),
    "max_length": (
        "calibration__max_length",
        _count("Tokens per example at most; by default what the network takes."),
    ),
    "epochs": ("training__epochs", _number("Passes over the data.")),
    "batch_size": ("training__batch_size", _count("Images per step.")),
    "learning_rate": ("training__learning_rate", _number("Of AdamW.")),
    "head_only": ("training__head_only", HeadOnly),
    "seed": ("seed", _count("Of every random draw; 0 by default.")),
}
OF_RUNS: Mapping[str, tuple[Any, Any]] = {  # how the option is declared, and its default
    "recipe": (RecipeFile, None),
    "preset": (Preset, None),
    "device": (_text("cpu, cuda, cuda:1, ..."), None),
    "threads": (_count("Of torch; by default no more than the container's quota, or OMP_NUM_THREADS."), None),
    "dtype": (_text("float32, bfloat16 (bf16), float16 (fp16) or float64; by default that of the network."), None),
    "overwrite": (
        Annotated[
            bool, typer.Option("--overwrite", help="Replace an earlier result of the same kind; other files stay.")
        ],
        False,
    ),
    "as_json": (
        Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")],
        False,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="No progress, no table.")], False),
}


PANELS: Mapping[str, str] = {  # under which heading the help shows an option
    name: panel
    for panel, names in {
        "Model and data": "task data share text text_pair label tile limit examples per_batch max_length length"
        " scores plan reference teacher lm_eval",
        "Budget": "budget parts round_to latency_batch",
        "Method": "recipe preset criterion queries exclude only search compensate seed"
        " epochs batch_size learning_rate head_only",
        "Hardware": "device threads dtype offload batch engine address",
        "Output": "out to dry_run evaluate sweep count overwrite as_json quiet",
    }.items()
    for name in names.split()
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the shared options of a command make.

    Attributes:
        recipe: the file or preset, with what the options change.
        device, dtype, threads: see `Placement`.
        overwrite: replace an earlier result of the same kind.
        silent: no progress.
        quiet: no line for people.
    """

    recipe: Recipe
    device: str | None
    dtype: str | None
    threads: int | None
    overwrite: bool
    silent: bool
    quiet: bool

    @classmethod
    def of(cls, options: Mapping[str, Any], task: str | None, model: str | None = None) -> Run:
        """From the values of the shared options that a command has.

        Args:
            task: of a run whose recipe and options name none; None asks the network.
            model: which says what no recipe or option does, see `guess`.
        """
        file, name = options.get("recipe"), options.get("preset")
        if file is not None and name is not None:
            raise typer.BadParameter("give --recipe or --preset, not both (a recipe may say 'preset: NAME').")
        changes = {place: options[option] for option, (place, _) in OF_RECIPES.items() if option in options}
        said: list[str] = []
        if file is None:
            changes["task__name"], name, said = guess(options, task, model)
        start = Recipe.load(file) if file is not None else preset(name or "default")
        if sources := changes.pop("task__data", None):
            changes["task__data"], *changes["task__more_data"] = [placed(source) for source in sources]
        changes["task__shares"] = changes.get("task__shares") or None
        run = cls(
            start.override(**changes),
            options.get("device"),
            options.get("dtype"),
            options.get("threads"),
            options.get("overwrite", False),
            options["as_json"] or options["quiet"],
            options["quiet"],
        )
        if said:
            run.say(f"as the network says: {' '.join(said)}")
        return run

    @property
    def placement(self) -> Placement:
        """Where networks run."""
        from .placement import Placement

        return Placement(self.device, self.dtype, self.threads)

    @property
    def track(self) -> Track:
        """Bars on the error stream, or none."""
        from ..support.progress import rich_track, silent

        return silent if self.silent else rich_track

    def say(self, line: str) -> None:
        """A line for people, on the error stream."""
        if not self.quiet:
            print(line, file=sys.stderr)  # noqa: T201


def guess(
    options: Mapping[str, Any], task: str | None, model: str | None
) -> tuple[str | None, str | None, list[str]]:
    """The task and the preset of a run, as the options name them or the network says; and what was guessed."""
    from ..tasks.guess import guessed_preset, guessed_task

    named, name = options.get("task") or task, options.get("preset")
    said: list[str] = []
    asked = "preset" in options or bool(options.get("data"))
    if named is None and model is not None and asked:
        named = guessed_task(model)
        said += [f"--task {named}"] if named not in (None, Task().name) and "task" in options else []
    if name is None and "preset" in options and named is not None:
        name = guessed_preset(named)
        said += [f"--preset {name}"] if name != "default" else []
    return named, name, said


def _in_panel(parameter: inspect.Parameter) -> int:
    """Put an option into its panel; its place in the help, behind all arguments, as `PANELS` has it."""
    info = parameter.annotation.__metadata__[0]
    if not isinstance(info, OptionInfo):
        return -1
    info.rich_help_panel = PANELS[parameter.name]
    return list(PANELS).index(parameter.name)


def show(result: Any, table: Callable[[Any], Any], *, as_json: bool, quiet: bool) -> None:
    """Print what a command found."""
    if as_json:
        print(json_text(result), end="")  # noqa: T201
    elif not quiet:
        Console().print(table(result))


def command(
    app: typer.Typer, table: str, shared: str = "", *, task: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function, whose last parameter is a `Run`.

    Args:
        table: the function of `tables` that shows what it returns.
        shared: names of the options that it takes beside its own parameters; all take --json and --quiet.
        task: see `Run.of`.
    """
    names = [*shared.split(), "as_json", "quiet"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=declared, default=default)
        for name in names
        for declared, default in [OF_RUNS[name] if name in OF_RUNS else (OF_RECIPES[name][1], None)]
    ]

    def declare(function: Callable[..., Any]) -> Callable[..., None]:
        own = [part for part in inspect.signature(function, eval_str=True).parameters.values() if part.name != "run"]

        def run(**values: Any) -> None:
            from . import tables

            interrupts.loaded()
            options = {name: values.pop(name) for name in names}
            result = function(**values, run=Run.of(options, task, values.get("model")))
            show(result, getattr(tables, table), as_json=options["as_json"], quiet=options["quiet"])

        parameters = [*(part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in own), *added]
        parameters.sort(key=_in_panel)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {part.name: part.annotation for part in parameters}
        usage = "--budget BUDGET [OPTIONS]" if "budget" in names else "[OPTIONS]"
        app.command(name=function.__name__, help=function.__doc__, options_metavar=usage)(run)
        return run

    return declare
