"""The sections of a recipe: options that belong together, checked when they are made."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from ..errors import InputError
from ..support.checked import check_types, require, within

MANY = 10**6  # more than any run asks for, of batches, lengths and draws

SHARES = 10**9  # above any weight, temperature or floor

POOLINGS = ("mean", "first", "last", "pooler")

EMBEDDINGS = ("all", "last")


def check_examples(count: int) -> None:
    """Refuse fewer inputs than a calibration needs.

    Raises:
        InputError: there are fewer than two.
    """
    if count < 2:
        raise InputError("calibration needs at least 2 examples, and does well with 256.")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """How the trajectory of a unit is measured (docs/method.md, Trajectory).

    Attributes:
        rows: K, the token rows that each Gram matrix compares.
        temperature: tau, divides the logits.
        balance: lambda, the weight of the manifold part against the output part (both at equal mean).
        coupling: exponent kappa of the factor by which a unit's own trajectory corrects its compensated cost
            (docs/adr/0008-coupling.md); 0 is no correction.
        draws: random projections of the sketch, at least one a micro-batch.
        stack: units that `exact` evaluates in one forward.
        embeddings: which are compared: "all" from the unit's block on, or the "last" block's alone.
        pooling: how a bare encoder's output is read: mean over tokens, the first or the last
            token, or its own pooler.
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
        check_types(self, "trajectory.")
        within("trajectory.rows", self.rows, 2, 2**16)
        require("trajectory.temperature", self.temperature, 0 < self.temperature <= SHARES, "above 0")
        within("trajectory.balance", self.balance, 0, SHARES)
        require("trajectory.coupling", self.coupling, 0 <= self.coupling <= 1, "between 0 and 1")
        within("trajectory.draws", self.draws, 1, MANY)
        within("trajectory.stack", self.stack, 1, MANY)
        require("trajectory.embeddings", self.embeddings, self.embeddings in EMBEDDINGS, "'all' or 'last'")
        require("trajectory.pooling", self.pooling, self.pooling in POOLINGS, "'mean', 'first', 'last' or 'pooler'")

    def compared(self, blocks: int, since: int = 0) -> range:
        """The places, among so many blocks, of those whose embeddings are compared from one place on."""
        return range(blocks - 1 if self.embeddings == "last" else since, blocks)


@dataclass(frozen=True, slots=True)
class Refit:
    """How consumers are refitted (docs/method.md, Compensation).

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
        check_types(self, "refit.")
        require("refit.kind", self.kind, self.kind in ("weights", "scales"), "'weights' or 'scales'")
        require("refit.ridge", self.ridge, 0 < self.ridge <= SHARES, "above 0")
        within("refit.floor", self.floor, 0, SHARES)
        within("refit.folds", self.folds, 1, MANY)
        for name in ("makers", "head"):
            apart = not (getattr(self, name) and self.kind == "scales")
            require(f"refit.{name}", getattr(self, name), apart, "false where refit.kind is 'scales'")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Whether tokens merge between the blocks of a vision transformer (docs/method.md, Tokens).

    Attributes:
        merge: "none"; "search", jointly with heads and neurons; "constant", as many before every block, with
            all units kept.
        examples: calibration images that schedules are evaluated on.
    """

    merge: str = "none"
    examples: int = 64

    def __post_init__(self) -> None:
        check_types(self, "tokens.")
        kinds = ("none", "search", "constant")
        require("tokens.merge", self.merge, self.merge in kinds, "'none', 'search' or 'constant'")
        within("tokens.examples", self.examples, 1, 10**9)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration inputs: `examples` in batches of `batch_size`, cut to `max_length` tokens (None: the model's)."""

    examples: int = 256
    batch_size: int = 32
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_types(self, "calibration.")
        within("calibration.examples", self.examples, 2, 10**9)
        within("calibration.batch_size", self.batch_size, 1, MANY)
        if self.max_length is not None:
            within("calibration.max_length", self.max_length, 1, MANY)

    def taken(self, available: int) -> int:
        """How many examples are taken of so many; where there are fewer than asked for, all of them, with a warning.

        Raises:
            InputError: there are fewer than two.
        """
        check_examples(available)
        if available < self.examples:
            warnings.warn(
                f"the data has {available} examples, and calibration asks for {self.examples}: all are used.",
                stacklevel=2,
            )
        return min(available, self.examples)


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
        check_types(self, "training.")
        require("training.epochs", self.epochs, 0 < self.epochs <= MANY, f"above 0 and at most {MANY:,}")
        within("training.batch_size", self.batch_size, 1, MANY)
        require("training.learning_rate", self.learning_rate, 0 < self.learning_rate <= MANY, "above 0")
        require("training.temperature", self.temperature, 0 < self.temperature <= SHARES, "above 0")


@dataclass(frozen=True, slots=True)
class Task:
    """Data in, metric out. `name` is a key of `optin.tasks.TASKS`; columns default to the task's own.

    Attributes:
        name: task ("sst2", "text-classification", ...).
        data: file or folder; empty takes the task's data set from the hub.
        more_data: further sources, of documents alone.
        shares: of every source in the calibration windows, `data` first; equal ones if empty.
        text, text_pair, label: column names of the file.
        calibration_split, evaluation_split: names of the parts of the data.
        limit: examples that are evaluated at most, evenly drawn; empty takes all.
        tile: pixels of the sides of the squares that larger scenes are cut into when they are evaluated.
    """

    name: str = "text-classification"
    data: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    calibration_split: str | None = None
    evaluation_split: str | None = None
    limit: int | None = None
    tile: int | None = None
    more_data: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_types(self, "task.")
        for share in self.shares:
            require("task.shares", share, 0 < share <= SHARES, "above 0")
        if self.limit is not None:
            within("task.limit", self.limit, 1, 10**9)
        if self.tile is not None:
            within("task.tile", self.tile, 16, MANY)
