"""Criteria: each turns a network and a calibration set into removal curves.

To add one, write a function from `Scoring` to curves and give it a line in `CRITERIA`, or publish
an entry point `optin.criteria`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from ..errors import InputError, unknown
from ..space.scores import Curve
from . import baselines
from .compensated import compensated
from .exact import exact
from .job import Scoring
from .sketch import sketch

__all__ = ["CRITERIA", "SPREAD", "Criterion", "Scoring", "criterion"]

Criterion = Callable[[Scoring], Mapping[str, Curve]]

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
