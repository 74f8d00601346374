"""What calibration saw is kept out of the evaluation, where one file serves for both."""

from __future__ import annotations

from collections.abc import Sequence

from .audio import Recordings
from .data import Examples
from .images import Images
from .prose import Windows

Data = Examples | Images | Recordings | Windows  # what networks are measured on
LEAST = 100  # examples that must remain, or as many as are evaluated at most; else all are, and it is said


def held_out(
    seen: Data, drawn: Sequence[int], examples: Data, limit: int | None = None
) -> tuple[Data, dict[str, int]]:
    """The examples to evaluate, and what is to be said of them.

    Args:
        seen: the part that calibration drew from, and `drawn` its examples.
        examples: the part to evaluate.
        limit: how many of them at most.

    Returns:
        Where calibration saw some of them and enough remain, those that were not drawn, and how many were left out
        ("left_out"). With fewer any of them, and how many of these calibration saw ("seen"). Else any, and nothing.
    """
    known = {_identity(seen, index) for index in drawn} - {None}
    rest = [index for index in range(len(examples)) if _identity(examples, index) not in known]
    left_out = len(examples) - len(rest)
    if left_out == 0:
        return at_most(examples, limit), {}
    if len(rest) >= min(LEAST, limit or LEAST):
        return at_most(examples.select(rest), limit), {"left_out": left_out}
    places = _evenly(len(examples), limit)
    return examples.select(places), {"seen": sum(_identity(examples, index) in known for index in places)}


def _identity(examples: Data, index: int) -> object:
    """What tells an example from those of other parts; None where it is not known."""
    if isinstance(examples, Windows):
        return examples.identity(index)
    return None if examples.origin is None else (examples.origin, index)


def at_most(examples: Data, limit: int | None) -> Data:
    """So many of the examples, evenly drawn: data may be sorted by class."""
    return examples if limit is None or limit >= len(examples) else examples.select(_evenly(len(examples), limit))


def _evenly(count: int, limit: int | None) -> list[int]:
    least = min(count, limit or count)
    return [place * count // least for place in range(least)]
