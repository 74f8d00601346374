"""A recipe: every option of a run, as one frozen value, to and from YAML."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, unknown
from .space.budget import Budget
from .support.files import given, write_text
from .support.yaml_text import read_options

MANY = 10**6  # more than any run asks for, of batches, lengths and draws
SHARES = 10**9  # above any weight, temperature or floor


def _require(option: str, value: object, condition: bool, expected: str) -> None:
    if not condition:
        raise InputError(f"the option {option!r} must be {expected}, not {str(value)[:60]!r}.")


def _within(option: str, value: float, low: float, high: float) -> None:
    _require(option, value, low <= value <= high, f"between {low:,} and {high:,}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check_types(options: Any, path: str) -> None:
    """Refuse what Python lets pass into a dataclass."""
    kind: Any = type(options)
    for name, hint in _hints(kind).items():
        value, allowed = getattr(options, name), typing.get_args(hint) or (hint,)
        number = numbers.Real if float in allowed else numbers.Integral if int in allowed else ()
        fits = isinstance(value, number) if number and not isinstance(value, bool) else False
        if not (fits or isinstance(value, tuple(kind for kind in allowed if kind not in (int, float)))):
            raise InputError(_wrong(path + name, allowed, value))


def _wrong(option: str, allowed: typing.Iterable[Any], value: Any) -> str:
    names = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in allowed)
    return f"the option {option!r} must be {names}, not {value!r:.60}."


POOLINGS = ("mean", "first", "pooler")
EMBEDDINGS = ("all", "last")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """How the trajectory of a unit is measured (METHOD section 2).

    Attributes:
        rows: K, the token rows that each Gram matrix compares.
        temperature: tau, divides the logits.
        balance: lambda, the weight of the manifold part against the output part (both at equal mean).
        coupling: exponent of what a unit's trajectory says beyond the means that its cost under compensation is
            made of; 0 leaves it out.
        draws: random projections of the sketch, at least one a micro-batch.
        stack: units that `exact` evaluates in one forward.
        embeddings: which are compared: "all" from the unit's block on, or the "last" block's alone.
        pooling: how a bare encoder's output is read: mean over tokens, the first token, or its own pooler.
        output: the field of the network's output that is compared ("out", "0", "boxes.scores"); empty leaves it to
            `optin.running.outputs`.
    """

    rows: int = 64
    temperature: float = 4.0
    balance: float = 1.0
    coupling: float = 0.0
    draws: int = 128
    stack: int = 32
    embeddings: str = "all"
    pooling: str = "mean"
    output: str = ""

    def __post_init__(self) -> None:
        _check_types(self, "trajectory.")
        _within("trajectory.rows", self.rows, 2, 2**16)
        _require("trajectory.temperature", self.temperature, 0 < self.temperature <= SHARES, "above 0")
        _within("trajectory.balance", self.balance, 0, SHARES)
        _require("trajectory.coupling", self.coupling, 0 <= self.coupling <= 1, "between 0 and 1")
        _within("trajectory.draws", self.draws, 1, MANY)
        _within("trajectory.stack", self.stack, 1, MANY)
        _require("trajectory.embeddings", self.embeddings, self.embeddings in EMBEDDINGS, "'all' or 'last'")
        _require("trajectory.pooling", self.pooling, self.pooling in POOLINGS, "'mean', 'first' or 'pooler'")

    def compared(self, blocks: int, since: int = 0) -> range:
        """The places, among so many blocks, of those whose embeddings are compared from one place on."""
        return range(blocks - 1 if self.embeddings == "last" else since, blocks)


@dataclass(frozen=True, slots=True)
class Refit:
    """How consumers are refitted (METHOD section 4).

    Attributes:
        enabled: refit at all.
        kind: "weights" of every consumer, or only the "scales" of the units that it reads (mask tuning).
        ridge: ridge relative to the mean diagonal of the second moment.
        floor: added to the sensitivity weight of every token, whose mean is 1.
        folds: 2 or more choose the ridge of every consumer by cross-validation over so many parts of the calibration
            set, starting from `ridge`; a consumer that no refit helps stays as it is. 1 takes `ridge` everywhere.
        makers: refit the linear maps that make units as well, each before what reads its units.
        head: refit the linear maps behind the last block (pooler, classifier), after all others.
    """

    enabled: bool = True
    kind: str = "weights"
    ridge: float = 3e-2
    floor: float = 0.1
    folds: int = 1
    makers: bool = False
    head: bool = False

    def __post_init__(self) -> None:
        _check_types(self, "refit.")
        _require("refit.kind", self.kind, self.kind in ("weights", "scales"), "'weights' or 'scales'")
        _require("refit.ridge", self.ridge, 0 < self.ridge <= SHARES, "above 0")
        _within("refit.floor", self.floor, 0, SHARES)
        _within("refit.folds", self.folds, 1, MANY)
        for name in ("makers", "head"):
            apart = not (getattr(self, name) and self.kind == "scales")
            _require(f"refit.{name}", getattr(self, name), apart, "false where refit.kind is 'scales'")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Whether tokens merge on their way through a vision transformer (METHOD section 7).

    Attributes:
        merge: "none"; "search", jointly with heads and neurons; "constant", as many before every block, with
            all units kept.
        examples: calibration images that schedules are evaluated on.
    """

    merge: str = "none"
    examples: int = 64

    def __post_init__(self) -> None:
        _check_types(self, "tokens.")
        kinds = ("none", "search", "constant")
        _require("tokens.merge", self.merge, self.merge in kinds, "'none', 'search' or 'constant'")
        _within("tokens.examples", self.examples, 1, 10**9)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which inputs a run looks at: `examples` of them, in batches of similar length."""

    examples: int = 256
    batch_size: int = 32
    max_length: int | None = None

    def __post_init__(self) -> None:
        _check_types(self, "calibration.")
        _within("calibration.examples", self.examples, 2, 10**9)
        _within("calibration.batch_size", self.batch_size, 1, MANY)
        if self.max_length is not None:
            _within("calibration.max_length", self.max_length, 1, MANY)

    def check(self, available: int) -> None:
        """Refuse data with fewer examples than are asked for.

        Raises:
            InputError: says how many there are.
        """
        if available < self.examples:
            raise InputError(
                f"the data has {available} examples and calibration asks for {self.examples}. "
                f"Ask for --examples {available}, or give more data."
            )


@dataclass(frozen=True, slots=True)
class Training:
    """How `optin finetune` takes a network to another data set.

    Attributes:
        epochs, batch_size: passes over the data, images per step.
        learning_rate: of AdamW, with linear decay after a tenth of the steps.
        head_only: leave everything but the classifier as it is.
        temperature: of the teacher's and the student's outputs, if there is a teacher.
    """

    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 1e-4
    head_only: bool = False
    temperature: float = 4.0

    def __post_init__(self) -> None:
        _check_types(self, "training.")
        _require("training.epochs", self.epochs, 0 < self.epochs <= MANY, f"above 0 and at most {MANY:,}")
        _within("training.batch_size", self.batch_size, 1, MANY)
        _require("training.learning_rate", self.learning_rate, 0 < self.learning_rate <= MANY, "above 0")
        _require("training.temperature", self.temperature, 0 < self.temperature <= SHARES, "above 0")


@dataclass(frozen=True, slots=True)
class Task:
    """Data in, metric out. `name` is a key of `optin.tasks.TASKS`; columns default to the task's own.

    Attributes:
        name: task ("sst2", "text-classification", ...).
        data: file or folder; empty takes the task's data set from the hub.
        text, text_pair, label: column names of the file.
        calibration_split, evaluation_split: names of the parts of the data.
        tile: pixels of the sides of the squares that larger scenes are cut into when they are evaluated.
    """

    name: str = "text-classification"
    data: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    calibration_split: str | None = None
    evaluation_split: str | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        _check_types(self, "task.")
        if self.tile is not None:
            _within("task.tile", self.tile, 16, MANY)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every option of a run.

    Attributes:
        model: local folder or hub id.
        budget: see `optin.space.budget.Budget`.
        criterion: key of `CRITERIA` in `scoring/criteria.py`.
        search: key of `optin.choosing.search.SEARCHES`.
        rearrange: choose the units of each group anew for the counts found, by how their removals add up; needs
            scores of the fisher criterion.
        round_to: kept counts of neurons and channels are multiples of this; None takes what processors like
            under a budget of latency and on a GPU, and 1 otherwise.
        length: tokens per example at which MACs are counted; None takes the calibration set's mean.
        latency_batch: examples of that length in the forward that a budget of latency is for.
        seed: of every random draw.
        exclude: modules and groups that stay whole, by their names, with commas between.
    """

    model: str | None = None
    budget: str | None = None
    criterion: str = "compensated"
    search: str = "lagrange"
    rearrange: bool = False
    round_to: int | None = None
    length: int | None = None
    latency_batch: int = 1
    seed: int = 0
    exclude: str = ""
    trajectory: Trajectory = field(default_factory=Trajectory)
    refit: Refit = field(default_factory=Refit)
    tokens: Tokens = field(default_factory=Tokens)
    calibration: Calibration = field(default_factory=Calibration)
    task: Task = field(default_factory=Task)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check_types(self, "")
        if self.round_to is not None:
            _within("round_to", self.round_to, 1, MANY)
        _within("latency_batch", self.latency_batch, 1, MANY)
        _require("seed", self.seed, 0 <= self.seed < 2**63, "between 0 and 2^63")
        if self.length is not None:
            _within("length", self.length, 1, MANY)
        if self.budget is not None:
            Budget.parse(self.budget)

    @property
    def excluded(self) -> list[str]:
        """The names in `exclude`."""
        return names_in(self.exclude)

    def override(self, **changes: Any) -> Recipe:
        """A copy with some options changed; a nested option is written `section__option`.

        None leaves an option as it is, so that the flags of a command line can be passed on unread.

        Raises:
            InputError: an unknown option or a value out of range.
        """
        data = self.to_dict()
        for key, value in changes.items():
            if value is not None:
                *sections, last = key.split("__")
                place = data
                for section in sections:
                    place = place.get(section, {})
                if last not in place:
                    raise InputError(unknown("option", key.replace("__", "."), data))
                place[last] = value
        return Recipe.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """All options as plain nested data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """Read nested data; what is not named keeps its default.

        Raises:
            InputError: an unknown option, a value of the wrong type or out of range.
        """
        recipe: Recipe = _build(cls, data, "")
        return recipe

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, atomically."""
        write_text(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML recipe; `preset: NAME` at its top starts from that preset.

        Raises:
            InputError: no such file, not YAML, or an option that is wrong or there twice.
        """
        if not isinstance(path, (str, Path)):
            raise InputError(f"a recipe file must be a path, not {type(path).__name__}.")
        file = given(path)
        if str(path) in PRESETS and not file.exists():
            raise InputError(f"no such file: {path}. A preset has that name: --preset {path} (optin.PRESETS).")
        data = read_options(file)
        start = preset(str(data.pop("preset"))) if "preset" in data else cls()
        recipe = cls.from_dict(_merge(start.to_dict(), data))
        place = recipe.task.data
        return recipe if place is None else recipe.override(task__data=str(given(place)))


BETA = Recipe(trajectory=Trajectory(balance=0.1, coupling=0.5), refit=Refit(floor=1.0, folds=2))
PRESETS: Mapping[str, Recipe] = types.MappingProxyType(
    {
        "default": Recipe(),
        # More time for the last bit of quality: more inputs, every ridge and every map fitted.
        "thorough": Recipe(refit=Refit(folds=2, makers=True, head=True), calibration=Calibration(examples=1024)),
        # Vision transformers: heads and neurons alone, or tokens too (where coupling made no difference); maps of
        # classes, which are read at their highest score.
        "beta": BETA,
        "segmentation": dataclasses.replace(BETA, trajectory=dataclasses.replace(BETA.trajectory, temperature=1.0)),
        "tau": dataclasses.replace(BETA, trajectory=Trajectory(balance=0.1), tokens=Tokens(merge="search")),
        # The paper's recipe: one masked forward per unit on one batch of 32, global ranking, masks only.
        "paper": Recipe(
            criterion="exact",
            search="paper",
            refit=Refit(enabled=False),
            calibration=Calibration(examples=32),
        ),
        # Kwon et al., NeurIPS 2022: labels, mask search, mask rearrangement, mask tuning with all tokens alike.
        "kwon": Recipe(
            criterion="fisher",
            search="paper",
            rearrange=True,
            refit=Refit(kind="scales", ridge=1e-6, floor=1e3),
            calibration=Calibration(examples=2048),
        ),
    }
)


def preset(name: str) -> Recipe:
    """A named recipe.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(unknown("preset", name, PRESETS))
    return PRESETS[name]


def recipe_of(value: Any) -> Recipe:
    """A recipe as a caller gives it; None is the default.

    Raises:
        InputError: it is none, for example the name of a preset or a file.
    """
    if value is None:
        return Recipe()
    if isinstance(value, Recipe):
        return value
    hint = f" Pass optin.PRESETS[{value!r}]." if isinstance(value, str) and value in PRESETS else ""
    raise InputError(
        f"a recipe must be an optin.Recipe, not {value!r:.60}.{hint or ' Read a file with optin.Recipe.load.'}"
    )


def names_in(text: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _build(kind: type, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"the option {path or 'recipe'!r} must be a mapping, not {data!r:.60}.")
    hints = _hints(kind)
    for key in data:
        if key not in hints:
            raise InputError(unknown("option", f"{path}{key}"[:200], [f"{path}{name}" for name in hints]))
    return kind(**{key: _convert(hints[key], value, f"{path}{key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{path}.")
    allowed = typing.get_args(hint) or (hint,)
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed and abs(value) < 2**63:
        value = float(value)
    if type(value) not in allowed or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(_wrong(path, allowed, value))
    return value


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
