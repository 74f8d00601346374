"""The known tasks and their kinds, as tables: columns, parts, metrics, and where the hub has the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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

# Names that others give to the columns of tasks without a data set of their own.
MEANT: Mapping[str, tuple[str, ...]] = {
    "text": ("sentence", "content", "review", "tweet", "comment", "document", "message", "body"),
    "label": ("labels", "class", "target", "category", "sentiment", "stars", "rating"),
    "tokens": ("words",),
    "target": ("targets", "answer", "summary", "translation", "output", "completion"),
    "tags": ("ner_tags", "pos_tags", "labels"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What the tasks of one kind have in common.

    Attributes:
        name: what messages call it.
        gives: what a network of the kind says, in words.
        loader: the class of transformers that loads such networks; None for the one that a checkpoint names.
        labels: what is known of an example; "next" where the text itself is what is to be said, "text" where another
            is, "none" where outputs are compared with the dense network's.
        of_images, of_sound: whether inputs are images, or recordings, and not texts.
        matched: whether images are matched with texts, each through a tower of its own.
    """

    name: str
    gives: str
    loader: str | None
    labels: Literal["class", "number", "tags", "mask", "next", "text", "none"] = "class"
    of_images: bool = False
    of_sound: bool = False
    matched: bool = False

    @property
    def compared(self) -> bool:
        """Whether outputs are measured against the dense network's, without labels."""
        return self.labels == "none"

    @property
    def numeric(self) -> bool:
        """Whether an output is a number and no class."""
        return self.labels == "number"

    @property
    def tagged(self) -> bool:
        """Whether every word has a label."""
        return self.labels == "tags"

    @property
    def of_prose(self) -> bool:
        """Whether documents are continued, token by token."""
        return self.labels == "next"

    @property
    def writes(self) -> bool:
        """Whether networks answer in texts."""
        return self.labels == "text"

    @property
    def of_scenes(self) -> bool:
        """Whether labels are masks."""
        return self.labels == "mask"

    @property
    def one_label(self) -> bool:
        """Whether every example has one label, that a loss of the network's output can be taken with."""
        return self.labels in ("class", "number") and not self.matched

    def __str__(self) -> str:
        return self.name


_CLASSIFIER = "AutoModelForSequenceClassification"
CLASSES = Kind("classification", "one row of logits per text", _CLASSIFIER)
NUMBERS = Kind("regression", "one value per text", _CLASSIFIER, "number")
TAGS = Kind("tokens", "one row of logits per token", "AutoModelForTokenClassification", "tags")
PROSE = Kind("language modelling", "one row of logits per token", "AutoModelForCausalLM", "next")
WRITING = Kind("sequence to sequence", "logits of the tokens of an answer", "AutoModelForSeq2SeqLM", "text")
SPEECH = Kind("speech recognition", "logits of the tokens of what is said", None, "text", of_sound=True)
SOUNDS = Kind("sounds", "one row of logits per recording", "AutoModelForAudioClassification", of_sound=True)
SENTENCES = Kind("embedding", "hidden states of tokens", "AutoModel", "none")
IMAGES = Kind("images", "one row of logits per image", "AutoModelForImageClassification", of_images=True)
MATCHES = Kind("image-zero-shot", "embeddings of images and texts", "AutoModel", of_images=True, matched=True)
PICTURES = Kind("image-embedding", "embeddings or hidden states of images", "AutoModel", "none", of_images=True)
SCENES = Kind("image-segmentation", "one row of logits per pixel", None, "mask", of_images=True)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task.

    Attributes:
        kind: what it has in common with others.
        text, text_pair, label: column names.
        metrics: keys of `optin.tasks.metrics.METRICS`, the main one first.
        splits: (calibration, evaluation) parts of the data.
        hub: (data set, configuration) on the hub.
        names: class names in the order of the hub's labels, for files that write names.
        header: columns of tab-separated files as first published without a header.
    """

    kind: Kind
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


def _glue(name: str, text: str, pair: str | None = None, **other: object) -> TaskSpec:
    options = {"kind": CLASSES, "hub": ("nyu-mll/glue", name)} | other
    return TaskSpec(text=text, text_pair=pair, **options)  # type: ignore[arg-type]


def _images(hub: tuple[str, str] | None = None, evaluation: str = "test") -> TaskSpec:
    return TaskSpec(IMAGES, metrics=("accuracy", "top5"), splits=("train", evaluation), hub=hub)


_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")

_SCENES = TaskSpec(SCENES, metrics=("miou", "pixel-accuracy"), splits=("train", "validation"))

TASKS: Mapping[str, TaskSpec] = {
    "cola": _glue(
        "cola", "sentence", metrics=("matthews", "accuracy"), header=("source", "label", "mark", "sentence")
    ),
    "sst2": _glue("sst2", "sentence"),
    "mrpc": _glue("mrpc", "sentence1", "sentence2", metrics=("accuracy", "f1")),
    "stsb": _glue("stsb", "sentence1", "sentence2", kind=NUMBERS, metrics=("spearman", "pearson")),
    "qqp": _glue("qqp", "question1", "question2", metrics=("accuracy", "f1")),
    "mnli": _glue("mnli", "premise", "hypothesis", splits=("train", "validation_matched"), names=_NLI),
    "mnli-mm": _glue("mnli", "premise", "hypothesis", splits=("train", "validation_mismatched"), names=_NLI),
    "qnli": _glue("qnli", "question", "sentence", names=_ENTAILMENT),
    "rte": _glue("rte", "sentence1", "sentence2", names=_ENTAILMENT),
    "wnli": _glue("wnli", "sentence1", "sentence2"),
    "text-classification": TaskSpec(CLASSES),
    "text-regression": TaskSpec(NUMBERS, metrics=("spearman", "pearson")),
    "token-classification": TaskSpec(TAGS, text="tokens", label="tags", metrics=("accuracy", "macro-f1")),
    "language-modelling": TaskSpec(PROSE, metrics=("perplexity", "accuracy")),
    "seq2seq": TaskSpec(WRITING, text="text", label="target", metrics=("chrf", "exact", "perplexity")),
    "speech-recognition": TaskSpec(SPEECH, metrics=("wer", "perplexity")),
    "audio-classification": TaskSpec(SOUNDS),
    "image-classification": _images(evaluation="validation"),
    "imagenet-1k": _images(("ILSVRC/imagenet-1k", "default"), "validation"),
    "cifar10": _images(("uoft-cs/cifar10", "plain_text")),
    "cifar100": _images(("uoft-cs/cifar100", "cifar100")),
    "mnist": _images(("ylecun/mnist", "mnist")),
    "fashion-mnist": _images(("zalando-datasets/fashion_mnist", "fashion_mnist")),
    "zero-shot-image-classification": TaskSpec(MATCHES, metrics=("accuracy", "top5")),
    "cityscapes": _SCENES,
    "semantic-segmentation": _SCENES,
    "image-embedding": TaskSpec(PICTURES, metrics=("cosine", "overlap@10"), splits=("train", "validation")),
    "sentence-embedding": TaskSpec(SENTENCES, metrics=("cosine", "overlap@10")),
}


def task_spec(name: str) -> TaskSpec:
    """A task by name.

    Raises:
        InputError: no such task.
    """
    if name not in TASKS:
        raise InputError(unknown("task", name, TASKS))
    return TASKS[name]
