"""What calibration saw is kept out of the evaluation, where one file serves for both."""

from __future__ import annotations

from collections.abc import Sequence

from .data import Examples
from .images import Images

LEAST = 100  # examples that must remain; with fewer, all are evaluated, and it is said


def keep_apart(
    seen: Examples | Images, drawn: Sequence[int], examples: Examples | Images
) -> tuple[Examples | Images, dict[str, int]]:
    """The examples to evaluate, and what is to be said of them.

    Args:
        seen: the part that calibration drew from, and `drawn` its examples.
        examples: the part to evaluate.

    Returns:
        Where both are one part and enough remain, the examples that were not drawn, and how many were left out
        ("left_out"). With fewer all of them, and how many calibration saw ("seen"). Otherwise all, and nothing.
    """
    if examples.origin is None or seen.origin != examples.origin:
        return examples, {}
    known = set(drawn)
    rest = [index for index in range(len(examples)) if index not in known]
    if len(rest) < LEAST:
        return examples, {"seen": len(known)}
    return examples.select(rest), {"left_out": len(known)}


def at_most(examples: Examples | Images, limit: int | None) -> Examples | Images:
    """So many of the examples, evenly drawn: data may be sorted by class."""
    if limit is None or limit >= len(examples):
        return examples
    return examples.select([place * len(examples) // limit for place in range(limit)])
