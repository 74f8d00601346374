"""Criteria: each turns a network and a calibration set into removal curves.

To add one, write a function from `Scoring` to curves by name, or to `Found`, and give it a line in `CRITERIA`, or
publish it, or a `Criterion` of it, as an entry point `optin.criteria`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from ..errors import InputError, NumericalError, unknown
from ..space.scores import Curve
from . import baselines
from .compensated import compensated
from .exact import exact
from .job import Found, Scoring
from .sketch import sketch

__all__ = ["CRITERIA", "Criterion", "Found", "Scoring", "criterion", "found_by"]


@dataclass(frozen=True)
class Criterion:
    """One criterion, and what it asks for.

    Attributes:
        find: turns a network and a calibration set into curves.
        labels: it needs one label for each example.
        gradients: it keeps the gradients of units, by which those that cancel can be found (`rearrange`).
        resumes: it runs the network from recorded blocks on.
        spread: it has work for many machines.
    """

    find: Callable[[Scoring], Found | Mapping[str, Curve]]
    labels: bool = False
    gradients: bool = False
    resumes: bool = False
    spread: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "compensated": Criterion(compensated, spread=True),
    "sketch": Criterion(sketch, spread=True),
    "exact": Criterion(exact, resumes=True, spread=True),
    "magnitude": Criterion(baselines.magnitude),
    "fisher": Criterion(baselines.fisher, labels=True, gradients=True),
    "random": Criterion(baselines.random),
}


def criterion(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        InputError: no such criterion.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    published = {entry.name: entry for entry in entry_points(group="optin.criteria")}
    if name in published:
        loaded = published[name].load()
        return loaded if isinstance(loaded, Criterion) else Criterion(loaded)
    raise InputError(unknown("criterion", name, [*CRITERIA, *published]))


def found_by(name: str, scoring: Scoring) -> Found:
    """What a criterion finds.

    Raises:
        NumericalError: a group has no removal curve, or one of another shape or type, or with NaN or infinity.
    """
    given = criterion(name).find(scoring)
    found = given if isinstance(given, Found) else Found(given)
    curves = found.curves
    for group in scoring.space:
        if group.name not in curves or (problem := curves[group.name].problem(group.size)):
            said = "no removal curve" if group.name not in curves else f"a removal curve that {problem}"
            raise NumericalError(f"the criterion {name!r} gives {said} for {group.name!r}.")
    return found
