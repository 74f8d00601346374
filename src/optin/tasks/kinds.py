"""Kinds of tasks: how the data of each is loaded, made into calibration batches, and measured.

A new sort of data is one class here and its case in `task_of`; a new task of a known kind is one line in `specs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..errors import InputError
from ..recipe import Recipe
from ..running.batch import Batch
from ..scoring.criteria import criterion
from ..space.options import Task
from ..support.progress import Track, silent
from ..support.untyped import Foreign
from . import prose, segmentation, sounds, text, vision, writing
from .audio import load_recordings
from .comparison import Comparison, Said
from .data import load_examples
from .held_out import Data
from .images import load_images
from .prose import Documents, Windows, load_documents
from .segmentation import load_scenes
from .specs import TaskSpec, task_spec


@dataclass(frozen=True)
class TextTask:
    """Texts that are classified, scored, tagged or embedded."""

    spec: TaskSpec
    handler: ClassVar[Foreign] = text  # makes batches and measures
    read: ClassVar[Callable[..., Data | Documents]] = staticmethod(load_examples)

    def load(self, options: Task, part: str, labelled: bool | None = None) -> Data | Documents:
        """One part of the data, "calibration" or "evaluation"; by default with the labels that the task has.

        Raises:
            InputError: nothing that can be read, or more than one source of it where the task takes one.
        """
        self.check_sources(options)
        return self.read(
            self.spec, options, part, labelled=not self.spec.kind.compared if labelled is None else labelled
        )

    def check_sources(self, options: Task) -> None:
        """Refuse more than one source of data, and shares of it.

        Raises:
            InputError: there are several, and the task is none of documents.
        """
        if (options.more_data or options.shares) and not self.spec.kind.of_prose:
            raise InputError(f"the task {options.name} takes one source of data: pass --data once, and no --share.")

    def prepared(self, examples: Foreign, model: nn.Module, preprocessor: object, recipe: Recipe) -> Data:
        """What was read as examples of this network: batches are made of them, and they are evaluated."""
        found: Data = examples
        return found

    def drawn_batches(
        self, model: nn.Module, examples: object, preprocessor: object, recipe: Recipe, labelled: bool
    ) -> tuple[list[Batch], list[int]]:
        """Calibration batches, and the places of their examples in the data."""
        labels = self.handler.class_indices(model, self.spec, examples) if labelled else None
        drawn: tuple[list[Batch], list[int]] = self.handler.drawn_batches(
            model, examples, preprocessor, recipe.calibration, recipe.seed, labels
        )
        return drawn

    def unreached(self, model: nn.Module, batch: Batch) -> list[str]:
        """Modules that work on nothing that the calibration inputs tell apart, and stay whole."""
        return []

    def evaluate(
        self, model: nn.Module, preprocessor: object, examples: object, recipe: Recipe, **options: object
    ) -> dict[str, float]:
        """The metrics of a network.

        Args:
            options: `track`, and `reference`, a network whose outputs are compared with.
        """
        figures: dict[str, float] = self.handler.evaluate(
            model, preprocessor, self.spec, examples, **self._evaluation(recipe), **options
        )
        return figures

    def compare(
        self,
        dense: nn.Module,
        pruned: nn.Module,
        preprocessor: object,
        examples: object,
        recipe: Recipe,
        track: Track = silent,
    ) -> Comparison:
        """Both networks on the same examples, in one pass over them."""
        return Comparison.of(self.said([pruned, dense], preprocessor, examples, recipe, track))

    def said(
        self, networks: Sequence[nn.Module], preprocessor: object, examples: Foreign, recipe: Recipe, track: Track
    ) -> Said:
        """What networks say of the same examples."""
        found: Said = self.handler.answers(
            networks, preprocessor, self.spec, examples, **self._evaluation(recipe), track=track
        )
        return found

    def _evaluation(self, recipe: Recipe) -> dict[str, object]:
        calibration = recipe.calibration
        return {
            "batch_size": calibration.batch_size,
            "max_length": calibration.max_length,
            "pooling": recipe.trajectory.pooling,
        }

    def check_criterion(self, name: str) -> bool:
        """Whether a criterion needs labels.

        Raises:
            InputError: it does, and the task has not one for each example.
        """
        if not criterion(name).labels:
            return False
        if not self.spec.kind.one_label:
            raise InputError(f"the {name} criterion needs one label per example, and {self.spec.kind} has none.")
        return True


class SaidTask(TextTask):
    """What is measured by what networks say, whether there are one or two of them."""

    def evaluate(
        self, model: nn.Module, preprocessor: object, examples: object, recipe: Recipe, **options: Foreign
    ) -> dict[str, float]:
        """See `TextTask`."""
        reference = options.get("reference")
        networks = [model] if reference is None else [model, reference]
        said = self.said(networks, preprocessor, examples, recipe, options.get("track", silent))
        return said.figures(0, len(networks) - 1 or None)


class ProseTask(SaidTask):
    """Documents that are continued, token by token."""

    read: ClassVar[Callable[..., Data | Documents]] = staticmethod(load_documents)

    def prepared(self, examples: Foreign, model: nn.Module, preprocessor: object, recipe: Recipe) -> Windows:
        """See `TextTask`: windows of the documents' tokens."""
        return prose.windows_of(model, preprocessor, examples, recipe.calibration.max_length)

    def drawn_batches(
        self, model: nn.Module, examples: Foreign, preprocessor: object, recipe: Recipe, labelled: bool
    ) -> tuple[list[Batch], list[int]]:
        """See `TextTask`."""
        return prose.drawn_batches(model, examples, recipe.calibration, recipe.seed)

    def said(
        self, networks: Sequence[nn.Module], preprocessor: object, examples: Foreign, recipe: Recipe, track: Track
    ) -> Said:
        """See `TextTask`; logits of all tokens are too large to keep, so that sums are."""
        return prose.foreseen(networks, examples, batch_size=recipe.calibration.batch_size, track=track)


class WritingTask(SaidTask):
    """Texts or recordings that are answered in texts."""

    handler: ClassVar[Foreign] = writing

    def load(self, options: Task, part: str, labelled: bool | None = None) -> Data | Documents:
        """See `TextTask`; calibration needs no answers."""
        self.check_sources(options)
        read = load_recordings if self.spec.kind.of_sound else load_examples
        wanted = part == "evaluation" if labelled is None else labelled
        return read(self.spec, options, part, labelled=wanted)

    def drawn_batches(
        self, model: nn.Module, examples: object, preprocessor: object, recipe: Recipe, labelled: bool
    ) -> tuple[list[Batch], list[int]]:
        """See `TextTask`."""
        return writing.drawn_batches(model, examples, preprocessor, recipe.calibration, recipe.seed)

    def _evaluation(self, recipe: Recipe) -> Foreign:
        return {"batch_size": recipe.calibration.batch_size, "max_length": recipe.calibration.max_length}


class SoundTask(SaidTask):
    """Recordings that are classified."""

    handler: ClassVar[Foreign] = sounds
    read: ClassVar[Callable[..., Data | Documents]] = staticmethod(load_recordings)

    def _evaluation(self, recipe: Recipe) -> dict[str, object]:
        return {"batch_size": recipe.calibration.batch_size}


class ImageTask(TextTask):
    """Images that are classified, matched with texts or embedded."""

    handler: ClassVar[object] = vision
    read: ClassVar[Callable[..., Data | Documents]] = staticmethod(load_images)

    def unreached(self, model: nn.Module, batch: Batch) -> list[str]:
        """See `TextTask`: of a network that matches images with texts, the tower of the texts."""
        return vision.text_tower(model, batch) if self.spec.kind.matched else []

    def _evaluation(self, recipe: Recipe) -> dict[str, object]:
        return {"batch_size": recipe.calibration.batch_size, "pooling": recipe.trajectory.pooling}


class SceneTask(ImageTask):
    """Scenes that are segmented."""

    read: ClassVar[Callable[..., Data | Documents]] = staticmethod(load_scenes)

    def evaluate(
        self, model: nn.Module, preprocessor: object, examples: Foreign, recipe: Recipe, **options: Foreign
    ) -> dict[str, float]:
        """See `TextTask`."""
        return segmentation.evaluate(model, preprocessor, examples, tile=recipe.task.tile, **options)

    def compare(
        self,
        dense: nn.Module,
        pruned: nn.Module,
        preprocessor: object,
        examples: Foreign,
        recipe: Recipe,
        track: Track = silent,
    ) -> Comparison:
        """See `TextTask`; maps of classes are too large to keep, so that each network has its own pass."""
        return Comparison(
            self.evaluate(dense, preprocessor, examples, recipe, track=track),
            self.evaluate(pruned, preprocessor, examples, recipe, reference=dense, track=track),
        )


def task_of(recipe: Recipe) -> TextTask:
    """The task of a recipe.

    Raises:
        InputError: no such task.
    """
    spec = task_spec(recipe.task.name)
    kind = spec.kind
    found = (
        (SceneTask, kind.of_scenes),
        (ImageTask, kind.of_images),
        (WritingTask, kind.writes),
        (SoundTask, kind.of_sound),
        (ProseTask, kind.of_prose),
    )
    return next((task for task, fits in found if fits), TextTask)(spec)
