"""Kinds of tasks: how the data of each is loaded, made into calibration batches, and measured.

A new kind is one class here and one line in `task_of`; a new task of a known kind is one line in `specs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InputError
from ..recipe import Recipe
from ..running.batch import Batch
from ..space.options import Task
from ..support.progress import Track
from . import segmentation, text, vision
from .data import Examples, load_examples
from .images import Images, load_images
from .segmentation import load_scenes
from .specs import TaskSpec, task_spec


@dataclass(frozen=True)
class TextTask:
    """Texts that are classified, scored, tagged or embedded."""

    spec: TaskSpec

    def load(self, options: Task, part: str, labelled: bool | None = None) -> Examples | Images:
        """One part of the data, "calibration" or "evaluation"; by default with the labels that the task has."""
        return self._load(options, part, self.spec.labelled if labelled is None else labelled)

    def _load(self, options: Task, part: str, labelled: bool) -> Examples | Images:
        return load_examples(self.spec, options, part, labelled=labelled)

    def drawn_batches(
        self, model: nn.Module, examples: Any, preprocessor: Any, recipe: Recipe, labelled: bool
    ) -> tuple[list[Batch], list[int]]:
        """Calibration batches, and the places of their examples in the data."""
        labels = text.class_indices(model, self.spec, examples) if labelled else None
        return text.drawn_batches(model, examples, preprocessor, recipe.calibration, recipe.seed, labels)

    def unreached(self, model: nn.Module, batch: Batch) -> list[str]:
        """Modules that work on nothing that the calibration inputs tell apart, and stay whole."""
        return []

    def evaluate(
        self,
        model: nn.Module,
        preprocessor: Any,
        examples: Any,
        recipe: Recipe,
        reference: nn.Module | None,
        track: Track,
    ) -> dict[str, float]:
        """The metrics of a network; against the outputs of another one if given."""
        return text.evaluate(
            model,
            preprocessor,
            self.spec,
            examples,
            reference=reference,
            batch_size=recipe.calibration.batch_size,
            max_length=recipe.calibration.max_length,
            pooling=recipe.trajectory.pooling,
            track=track,
        )

    def check_criterion(self, name: str) -> bool:
        """Whether a criterion needs labels.

        Raises:
            InputError: it does, and the task has not one for each example.
        """
        if name != "fisher":
            return False
        if not self.spec.one_label:
            raise InputError(f"the fisher criterion needs one label per example, and {self.spec.kind} has none.")
        return True


class ImageTask(TextTask):
    """Images that are classified, matched with texts or embedded."""

    def _load(self, options: Task, part: str, labelled: bool) -> Examples | Images:
        return load_images(self.spec, options, part, labelled=labelled)

    def drawn_batches(
        self, model: nn.Module, examples: Any, preprocessor: Any, recipe: Recipe, labelled: bool
    ) -> tuple[list[Batch], list[int]]:
        """See `TextTask`."""
        labels = vision.class_indices(model, self.spec, examples) if labelled else None
        return vision.drawn_batches(model, examples, preprocessor, recipe.calibration, recipe.seed, labels)

    def unreached(self, model: nn.Module, batch: Batch) -> list[str]:
        """See `TextTask`: of a network that matches images with texts, the tower of the texts."""
        return vision.text_tower(model, batch) if self.spec.kind == "image-zero-shot" else []

    def evaluate(
        self,
        model: nn.Module,
        preprocessor: Any,
        examples: Any,
        recipe: Recipe,
        reference: nn.Module | None,
        track: Track,
    ) -> dict[str, float]:
        """See `TextTask`."""
        return vision.evaluate(
            model,
            preprocessor,
            self.spec,
            examples,
            reference=reference,
            batch_size=recipe.calibration.batch_size,
            pooling=recipe.trajectory.pooling,
            track=track,
        )


class SceneTask(ImageTask):
    """Scenes that are segmented."""

    def _load(self, options: Task, part: str, labelled: bool) -> Examples | Images:
        return load_scenes(self.spec, options, part, labelled=labelled)

    def evaluate(
        self,
        model: nn.Module,
        preprocessor: Any,
        examples: Any,
        recipe: Recipe,
        reference: nn.Module | None,
        track: Track,
    ) -> dict[str, float]:
        """See `TextTask`."""
        tile = recipe.task.tile
        return segmentation.evaluate(model, preprocessor, examples, reference=reference, tile=tile, track=track)


def task_of(recipe: Recipe) -> TextTask:
    """The task of a recipe.

    Raises:
        InputError: no such task.
    """
    spec = task_spec(recipe.task.name)
    return (SceneTask if spec.of_scenes else ImageTask if spec.of_images else TextTask)(spec)
