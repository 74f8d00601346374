"""The known tasks, as a table: columns, parts, metrics, and where the hub has the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError, unknown
from ..space.options import Task

# Names that the files as first published use for the columns that the hub renamed.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "label": ("gold_label", "is_duplicate", "Quality", "score"),
    "sentence1": ("#1 String",),
    "sentence2": ("#2 String",),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
}


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task.

    Attributes:
        kind: "classification", "regression", "tokens" or "embedding" of texts; "images" (their classes),
            "image-zero-shot", "image-embedding" or "image-segmentation".
        text, text_pair, label: column names.
        metrics: keys of `optin.tasks.metrics.METRICS`, the main one first.
        splits: (calibration, evaluation) parts of the data.
        hub: (data set, configuration) on the hub.
        names: class names in the order of the hub's labels, for files that write names.
        header: columns of tab-separated files as first published without a header.
    """

    kind: str
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    metrics: tuple[str, ...] = ("accuracy",)
    splits: tuple[str, str] = ("train", "validation")
    hub: tuple[str, str] | None = None
    names: tuple[str, ...] = ()
    header: tuple[str, ...] = ()

    def split(self, options: Task, part: str) -> str:
        """The name of one part ("calibration" or "evaluation") of the data.

        Raises:
            InputError: it is no plain name, and would lead out of the folder.
        """
        named = options.calibration_split if part == "calibration" else options.evaluation_split
        name = named or self.splits[part == "evaluation"]
        if len(name) > 100 or name.startswith(".") or any(letter in name for letter in "/\\\0"):
            raise InputError(f"the option 'task.{part}_split' must be the plain name of a part, not {name!r:.60}.")
        return name

    @property
    def labelled(self) -> bool:
        """Whether an evaluation needs labels; embeddings are compared with those of the dense network."""
        return not self.kind.endswith("embedding")

    @property
    def one_label(self) -> bool:
        """Whether every example has one label."""
        return self.kind in ("classification", "regression", "images")

    @property
    def of_scenes(self) -> bool:
        """Whether labels are masks."""
        return self.kind == "image-segmentation"

    @property
    def of_images(self) -> bool:
        """Whether inputs are images and not texts."""
        return self.kind.startswith("image")


def _glue(name: str, text: str, pair: str | None = None, **other: object) -> TaskSpec:
    options = {"kind": "classification", "hub": ("nyu-mll/glue", name)} | other
    return TaskSpec(text=text, text_pair=pair, **options)  # type: ignore[arg-type]


def _images(hub: tuple[str, str] | None = None, evaluation: str = "test") -> TaskSpec:
    return TaskSpec("images", metrics=("accuracy", "top5"), splits=("train", evaluation), hub=hub)


_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")

_SCENES = TaskSpec("image-segmentation", metrics=("miou", "pixel-accuracy"), splits=("train", "validation"))

TASKS: Mapping[str, TaskSpec] = {
    "cola": _glue(
        "cola", "sentence", metrics=("matthews", "accuracy"), header=("source", "label", "mark", "sentence")
    ),
    "sst2": _glue("sst2", "sentence"),
    "mrpc": _glue("mrpc", "sentence1", "sentence2", metrics=("accuracy", "f1")),
    "stsb": _glue("stsb", "sentence1", "sentence2", kind="regression", metrics=("spearman", "pearson")),
    "qqp": _glue("qqp", "question1", "question2", metrics=("accuracy", "f1")),
    "mnli": _glue("mnli", "premise", "hypothesis", splits=("train", "validation_matched"), names=_NLI),
    "mnli-mm": _glue("mnli", "premise", "hypothesis", splits=("train", "validation_mismatched"), names=_NLI),
    "qnli": _glue("qnli", "question", "sentence", names=_ENTAILMENT),
    "rte": _glue("rte", "sentence1", "sentence2", names=_ENTAILMENT),
    "wnli": _glue("wnli", "sentence1", "sentence2"),
    "text-classification": TaskSpec("classification"),
    "text-regression": TaskSpec("regression", metrics=("spearman", "pearson")),
    "token-classification": TaskSpec("tokens", text="tokens", label="tags", metrics=("accuracy", "macro-f1")),
    "image-classification": _images(evaluation="validation"),
    "imagenet-1k": _images(("ILSVRC/imagenet-1k", "default"), "validation"),
    "cifar10": _images(("uoft-cs/cifar10", "plain_text")),
    "cifar100": _images(("uoft-cs/cifar100", "cifar100")),
    "mnist": _images(("ylecun/mnist", "mnist")),
    "fashion-mnist": _images(("zalando-datasets/fashion_mnist", "fashion_mnist")),
    "zero-shot-image-classification": TaskSpec("image-zero-shot", metrics=("accuracy", "top5")),
    "cityscapes": _SCENES,
    "semantic-segmentation": _SCENES,
    "image-embedding": TaskSpec("image-embedding", metrics=("cosine", "overlap@10"), splits=("train", "validation")),
    "sentence-embedding": TaskSpec("embedding", metrics=("cosine", "overlap@10")),
}


def task_spec(name: str) -> TaskSpec:
    """A task by name.

    Raises:
        InputError: no such task.
    """
    if name not in TASKS:
        raise InputError(unknown("task", name, TASKS))
    return TASKS[name]
