"""Networks that peers are compared on: what calibrates them, with or without labels, and how they are measured."""

from __future__ import annotations

from typing import Any, Protocol

import text
import torch
from dinov2 import DATA, SPEC, classifier
from image_tables import Setting
from train_cnn import trained

import optin
from optin.recipe import Recipe
from optin.tasks.vision import calibration_batches, class_indices

Batches = list[dict[str, torch.Tensor]]


class Network(Protocol):
    """A dense classifier and its data.

    Attributes:
        quality: "dense_accuracy".
        ours: our presets by the name of their row.
    """

    model: Any
    quality: dict[str, float]
    ours: dict[str, Recipe]

    def calibration(self, recipe: Recipe) -> Batches:
        """The draw of one seed, without labels."""

    def labelled(self, recipe: Recipe) -> Batches:
        """The same with labels."""

    def measure(self, model: Any) -> dict[str, float]:
        """ "accuracy" and "kl" to the dense outputs on the test data."""


class Sentences(text.Setting):
    """MiniLM on Rotten Tomatoes."""

    ours: dict[str, Recipe]

    def __init__(self) -> None:
        super().__init__()
        self.quality = {"dense_accuracy": self.measure(self.model)["accuracy"]}

    def labelled(self, recipe: Recipe) -> Batches:
        return self.calibration(recipe, labels=True)


class FashionImages(Setting):
    """A network on Fashion-MNIST."""

    ours: dict[str, Recipe]

    def labelled(self, recipe: Recipe) -> Batches:
        labels = class_indices(self.model, SPEC, self.train)
        return calibration_batches(self.model, self.train, self.processor, recipe.calibration, recipe.seed, labels)


def network(name: str) -> Network:
    """A trained network by name."""
    if name == "minilm":
        found: Any = Sentences()
    else:
        found = FashionImages.of_fashion(classifier(DATA) if name == "dinov2" else trained(name, DATA), DATA)
    found.ours = {row: optin.PRESETS[preset] for row, preset in OURS[name].items()}
    return found


OURS = {
    "minilm": {"optin": "default", "optin, thorough": "thorough"},
    "dinov2": {"optin, beta": "beta", "optin, tau": "tau"},
    "resnet56": {"optin, beta": "beta"},
}
NETWORKS = {"minilm": "1,000 held-out sentences", "dinov2": "2,000 test images", "resnet56": "2,000 test images"}
