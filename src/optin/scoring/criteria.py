"""Criteria: each turns a network and a calibration set into removal curves.

To add one, write a function from `Scoring` to curves and give it a line in `CRITERIA`, or publish
an entry point `optin.criteria`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from ..errors import InputError, NumericalError, unknown
from ..space.scores import Curve
from ..space.units import UnitSpace
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


def check_curves(criterion: str, space: UnitSpace, curves: Mapping[str, Curve]) -> None:
    """Refuse what a criterion gives that is no removal curve of every group: a search would make something of it.

    Raises:
        NumericalError: names the group.
    """
    for group in space:
        if group.name not in curves or (problem := curves[group.name].problem(group.size)):
            said = "no removal curve" if group.name not in curves else f"a removal curve that {problem}"
            raise NumericalError(f"the criterion {criterion!r} gives {said} for {group.name!r}.")
