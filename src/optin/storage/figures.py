"""What report.json and sweep.json hold, read from files that need not be what optin wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..support.files import read_json
from ..support.untyped import Figures, Json

HIGHEST = 1e100  # of a figure: beyond it nothing can be drawn
COUNT, NUMBER, FIGURE, WORD = "a count", "a number", "a number or nothing", "a word"
PAIR = {"dense": NUMBER, "pruned": NUMBER}
RATES = {"prefill": NUMBER, "decode": NUMBER}
ANY = "*"  # stands for every name
OPTIONAL = "?"  # ends the name of an entry that may be left out

REPORT: Mapping[str, object] = {
    "budget?": WORD,
    "macs?": PAIR,
    "parameters?": PAIR,
    "bytes?": PAIR,
    "cache?": PAIR,
    "groups?": {ANY: {"kept": COUNT, "of": COUNT}},
    "curves?": {ANY: [NUMBER]},
    "breakdown?": {ANY: PAIR},
    "seconds?": {ANY: NUMBER},
    "quality?": {
        "examples?": COUNT,
        "seen?": COUNT,
        "left_out?": COUNT,
        "dense?": {ANY: FIGURE},
        "pruned?": {ANY: FIGURE},
        "interval?": {ANY: [NUMBER]},
    },
    "original?": {"macs": NUMBER, "parameters": NUMBER},
    "machine?": {ANY: WORD},
    "outlook?": [{"macs": NUMBER, "parameters": NUMBER, "kl": NUMBER}],
    "loss?": {"budget": WORD, "measured": NUMBER, "examples": COUNT, "tried": {ANY: NUMBER}},
    "generation?": [{"batch": COUNT, "length": COUNT, "dense": RATES, "pruned": RATES}],
    "speed?": [{"batch": COUNT, "length": COUNT, "dense_ms": NUMBER, "pruned_ms": NUMBER, "speedup": NUMBER}],
}
SWEEP: Mapping[str, object] = {
    "dense?": {ANY: FIGURE},
    "points": [{"macs": NUMBER, "parameters": NUMBER}],
    "seen?": COUNT,
    "left_out?": COUNT,
}


def read_report(file: Path) -> Figures:
    """report.json of a result.

    Raises:
        InputError: no such file.
        CheckpointError: not what optin writes.
    """
    return _read(file, REPORT)


def read_sweep(file: Path) -> Figures:
    """sweep.json: at least one point, and the same figures at all of them.

    Raises:
        InputError: no such file.
        CheckpointError: not what optin writes.
    """
    found = _read(file, SWEEP)
    if not found["points"]:
        raise CheckpointError(f"{file} holds no points: sweep again.")
    for point in found["points"]:
        for name, value in point.items():
            if name != "budget" and not _fits(value, FIGURE):
                raise CheckpointError(f"{file}: {name!r:.60} of a point must be a number, not {value!r:.60}.")
    return found


def _read(file: Path, shape: Mapping[str, object]) -> Figures:
    found = read_json(file)
    problem = _problem(found, shape, file.name)
    if problem is not None:
        raise CheckpointError(f"{file} is not what optin writes: {problem}.")
    known: dict[str, object] = found
    return known


def _problem(value: object, shape: Json, place: str) -> str | None:
    """What is wrong with a value, in words; None if it has the shape."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} must be a list, not {value!r:.60}"
        found = (_problem(part, shape[0], place) for part in value)
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{place} must be a mapping, not {value!r:.60}"
        found = (_entry(value, name, part, place) for name, part in _named(value, shape))
    else:
        return None if _fits(value, shape) else f"{place} must be {shape}, not {value!r:.60}"
    return next((problem for problem in found if problem is not None), None)


def _named(value: Mapping[str, object], shape: Mapping[str, object]) -> list[tuple[str, object]]:
    return [(name, shape[ANY]) for name in value] if ANY in shape else list(shape.items())


def _entry(value: Mapping[str, object], name: str, shape: object, place: str) -> str | None:
    key = name.removesuffix(OPTIONAL) if name not in value else name
    if key not in value or (value[key] is None and key != name):
        return None if key != name else f"{place} says nothing of {name!r}"
    return _problem(value[key], shape, f"{key!r:.60}")


def _fits(value: object, kind: str) -> bool:
    if kind == WORD:
        return isinstance(value, str)
    if kind == FIGURE and value is None:
        return True
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= HIGHEST
    return numeric and (kind != COUNT or (isinstance(value, int) and value >= 0))
