"""Where networks run, and what a recipe names: the network, what prepares its inputs, its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from ..describing.inputs import image_input
from ..describing.refusals import check_network
from ..errors import InputError, first_line
from ..recipe import Recipe, names_in
from ..running.batch import Batch
from ..space.options import Trajectory
from ..storage.untrusted import check_source
from ..support.files import HUB, given
from ..support.threads import use_threads
from ..tasks import (
    Data,
    Kind,
    SentenceTokenizer,
    check_evaluation,
    check_fit,
    check_pooling,
    held_out,
    load_model,
    load_preprocessor,
    task_of,
)

DTYPES = ("float32", "bfloat16", "float16", "float64")
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "double": "float64"}
LONGEST = 2**16  # tokens, or pixels of a side, of inputs that are made

MOST_VALUES = 2**28  # numbers in them


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

    def load(self, source: str, kind: Kind | None = None) -> nn.Module:
        """Load a network and put it there.

        Raises:
            InputError: no such device or dtype, or an absurd number of threads.
        """
        options = {}
        if self.dtype is not None:
            name = SHORT.get(self.dtype, self.dtype)
            if name not in DTYPES:
                raise InputError(f"unknown dtype {self.dtype!r:.60}. Use {', '.join(DTYPES)}.")
            options["dtype"] = getattr(torch, name)
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
    preprocessor: object
    batches: Iterable[Batch]
    evaluation: Data | None = None
    overlap: dict[str, int] = dataclasses.field(default_factory=dict)  # with calibration, as `held_out` says it

    @classmethod
    def of(cls, recipe: Recipe, placement: Placement, evaluated: bool = False) -> Job:
        """Load everything; all that can be wrong with the inputs is found here, before any scoring."""
        task = task_of(recipe)
        spec, labelled = task.spec, task.check_criterion(recipe.criterion)
        examples = task.load(recipe.task, "calibration", labelled)
        evaluation = task.load(recipe.task, "evaluation") if evaluated else None
        source = model_of(recipe)
        model = placement.load(source, spec.kind)
        check_network(model)
        check_fit(model, spec)
        preprocessor = load_preprocessor(source, spec, model)
        recipe = as_pooled(recipe, preprocessor)
        check_pooling(model, recipe.trajectory.pooling)
        read, examples = examples, task.prepared(examples, model, preprocessor, recipe)
        batches, drawn = task.drawn_batches(model, examples, preprocessor, recipe, labelled)
        if unreached := task.unreached(model, batches[0]):
            recipe = recipe.override(exclude=",".join(dict.fromkeys([*names_in(recipe.exclude), *unreached])))
        if evaluation is None:
            return cls(recipe, model, preprocessor, batches)
        same = evaluation == read  # one file serves both parts
        measured = examples if same else task.prepared(evaluation, model, preprocessor, recipe)
        check_evaluation(model, spec, measured, preprocessor, recipe.trajectory.pooling)
        evaluated_on, overlap = held_out(examples, drawn, measured, recipe.task.limit)
        return cls(recipe, model, preprocessor, batches, evaluated_on, overlap)


def check_size(model: nn.Module, batch: int, length: int | None) -> None:
    """Refuse random inputs that no machine holds, before it is tried.

    Raises:
        InputError: says how many numbers they would be.
    """
    side = length or 1
    values = batch * (3 * side**2 if image_input(model) else side)
    if side > LONGEST or values > MOST_VALUES:
        raise InputError(f"{batch} examples of length {side} are {values:,} numbers: ask for less.")


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


def what_is_read(recipe: Recipe) -> list[str | Path | None]:
    """What a recipe reads: files and folders that no result may touch."""
    sources = [recipe.task.data, *recipe.task.more_data]
    data = [source for source in sources if source is not None and not source.startswith(HUB)]
    return [None if recipe.model is None else local(recipe.model), *data]


def as_pooled(recipe: Recipe, preprocessor: object) -> Recipe:
    """The recipe with the pooling of a folder of sentence-transformers; one that is no default wins."""
    if not isinstance(preprocessor, SentenceTokenizer) or recipe.trajectory.pooling != Trajectory().pooling:
        return recipe
    return recipe.override(trajectory__pooling=preprocessor.pooling)
