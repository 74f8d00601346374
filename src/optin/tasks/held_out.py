"""What calibration saw is kept out of the evaluation, where one file serves for both."""

from __future__ import annotations

from collections.abc import Sequence

from .audio import Recordings
from .data import Examples
from .images import Images
from .prose import Windows

Data = Examples | Images | Recordings | Windows  # what networks are measured on
LEAST = 100  # examples that must remain; with fewer, all are evaluated, and it is said


def keep_apart(seen: Data, drawn: Sequence[int], examples: Data) -> tuple[Data, dict[str, int]]:
    """The examples to evaluate, and what is to be said of them.

    Args:
        seen: the part that calibration drew from, and `drawn` its examples.
        examples: the part to evaluate.

    Returns:
        Where calibration saw some of them and enough remain, those that were not drawn, and how many were left out
        ("left_out"). With fewer all of them, and how many calibration saw ("seen"). Otherwise all, and nothing.
    """
    known = {_identity(seen, index) for index in drawn} - {None}
    rest = [index for index in range(len(examples)) if _identity(examples, index) not in known]
    left_out = len(examples) - len(rest)
    if left_out == 0:
        return examples, {}
    if len(rest) < LEAST:
        return examples, {"seen": left_out}
    return examples.select(rest), {"left_out": left_out}


def _identity(examples: Data, index: int) -> object:
    """What tells an example from those of other parts; None where it is not known."""
    if isinstance(examples, Windows):
        return examples.identity(index)
    return None if examples.origin is None else (examples.origin, index)


def at_most(examples: Data, limit: int | None) -> Data:
    """So many of the examples, evenly drawn: data may be sorted by class."""
    if limit is None or limit >= len(examples):
        return examples
    return examples.select([place * len(examples) // limit for place in range(limit)])
