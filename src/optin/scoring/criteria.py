"""Criteria: each turns a network and a calibration set into removal curves.

To add one, write a function from `Scoring` to curves by name, or to `Found`, and give it a line in `CRITERIA`, or
publish an entry point `optin.criteria`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from ..errors import InputError, NumericalError, unknown
from ..space.scores import Curve
from . import baselines
from .compensated import compensated
from .exact import exact
from .job import Found, Scoring
from .sketch import sketch

__all__ = ["CRITERIA", "SPREAD", "Criterion", "Found", "Scoring", "criterion", "found_by"]

Criterion = Callable[[Scoring], Found | Mapping[str, Curve]]

CRITERIA: Mapping[str, Criterion] = {
    "compensated": compensated,
    "sketch": sketch,
    "exact": exact,
    "magnitude": baselines.magnitude,
    "fisher": baselines.fisher,
    "random": baselines.random,
}

SPREAD = ("compensated", "sketch", "exact")  # have work for many machines


def criterion(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        InputError: no such criterion.
    """
    published = {entry.name: entry for entry in entry_points(group="optin.criteria")}
    if name in CRITERIA:
        return CRITERIA[name]
    if name in published:
        loaded: Criterion = published[name].load()
        return loaded
    raise InputError(unknown("criterion", name, [*CRITERIA, *published]))


def found_by(name: str, scoring: Scoring) -> Found:
    """What a criterion finds.

    Raises:
        NumericalError: a group has no removal curve, or one of another shape or type, or with NaN or infinity.
    """
    given = criterion(name)(scoring)
    found = given if isinstance(given, Found) else Found(given)
    curves = found.curves
    for group in scoring.space:
        if group.name not in curves or (problem := curves[group.name].problem(group.size)):
            said = "no removal curve" if group.name not in curves else f"a removal curve that {problem}"
            raise NumericalError(f"the criterion {name!r} gives {said} for {group.name!r}.")
    return found
