"""Answers in texts against those that are wanted: words, letters, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..support.untyped import Foreign
from .audio import Recordings
from .comparison import DRAWS, LEAST, RARE
from .metrics import chrf, word_errors

Normalise = Callable[[str], str]


@dataclass(frozen=True)
class Written:
    """What networks write of the same examples.

    Attributes:
        parts: by metric, numerators of shape (network, example) and denominators of shape (example,).
        tokens: of the wanted answers, of shape (example,); none are counted where answers have no tokens.
        surprise: sums of -ln p of them, of shape (network, example).
        divergence: sums of the KL divergence from the last network, of shape (network, example).
        rows: how many distributions each sum of it is over, of shape (example,).
    """

    parts: Mapping[str, tuple[Tensor, Tensor]]
    tokens: Tensor
    surprise: Tensor
    divergence: Tensor
    rows: Tensor
    alone: ClassVar[bool] = True

    def figures(self, place: int = 0, reference: int | None = None) -> dict[str, float]:
        """See `Said`; a reference is the last of all networks."""
        found = {name: float(above[place].sum() / below.sum()) for name, (above, below) in self.parts.items()}
        if self.tokens.sum() > 0:
            found["perplexity"] = float((self.surprise[place].sum() / self.tokens.sum()).exp())
        if reference is not None and self.rows.sum() > 0:
            found["kl"] = float(self.divergence[place].sum() / self.rows.sum())
        return found

    def sure(self, one: int, other: int) -> dict[str, tuple[float, float]]:
        """See `Said` and `Answers.interval`."""
        generator = torch.Generator().manual_seed(0)
        name, (above, below) = next(iter(self.parts.items()))
        if len(below) < LEAST:
            return {}
        if torch.equal(above[one], above[other]):
            return {name: (-RARE / len(below), RARE / len(below))}
        drawn = torch.randint(len(below), (DRAWS, len(below)), generator=generator)
        differences = (above[one] - above[other])[drawn].sum(1) / below[drawn].sum(1)
        low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return {name: (low, high)}


def wanted_of(examples: Foreign) -> list[str]:
    """What is to be written.

    Raises:
        InputError: it is not known, or no text, or there are no words in all of it.
    """
    texts = examples.texts if isinstance(examples, Recordings) else examples.labels
    if texts is None:
        raise InputError("evaluation needs the answers: name their column with --label COLUMN.")
    if (row := next((row for row, text in enumerate(texts, 1) if not isinstance(text, str)), None)) is not None:
        raise InputError(f"answers must be texts; row {row} has {texts[row - 1]!r:.60}.")
    if not any(any(map(str.isalnum, text)) for text in texts):
        raise InputError(f"none of the {len(texts)} answers holds a word.")
    return list(texts)


def normaliser(tokenizer: Foreign) -> Normalise:
    """Whisper's own: small letters, no punctuation; numbers and spellings too where the tokenizer knows English."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    spelling = getattr(tokenizer, "english_spelling_normalizer", None)
    found: Normalise = EnglishTextNormalizer(spelling) if spelling else BasicTextNormalizer()
    return found


def measured(
    name: str, said: Sequence[Sequence[str]], wanted: Sequence[str], normalise: Normalise
) -> tuple[Tensor, Tensor]:
    """Numerators of every network, and denominators."""
    right = [normalise(text) for text in wanted]
    found = [
        [METRICS[name](normalise(one), other) for one, other in zip(texts, right, strict=True)] for texts in said
    ]
    parts = torch.tensor(found, dtype=torch.float64)
    return parts[..., 0], parts[0, :, 1]


def exact(said: str, wanted: str) -> tuple[float, float]:
    """Whether an answer is what is wanted, letter by letter."""
    return float(said == wanted), 1.0


METRICS: Mapping[str, Callable[[str, str], tuple[float, float]]] = {
    "chrf": chrf,
    "exact": exact,
    "wer": word_errors,
}
