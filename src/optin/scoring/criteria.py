"""Criteria: each turns a network and a calibration set into removal curves.

To add one, write a function from `Scoring` to curves by name, or to `Found`, and give it a line in `CRITERIA`, or
publish it, or a `Criterion` of it, as an entry point `optin.criteria`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from ..errors import InputError, NumericalError, unknown
from ..recipe import Recipe
from ..space.scores import Curve
from . import baselines
from .compensated import compensated
from .engines import Engine, local
from .engines import engine as find_engine
from .exact import exact
from .job import Found, Scoring
from .sketch import sketch

__all__ = ["CRITERIA", "Criterion", "Found", "Scoring", "criterion", "engine_for", "found_by"]


@dataclass(frozen=True)
class Criterion:
    """One criterion, and what it asks for.

    Attributes:
        find: turns a network and a calibration set into curves.
        labels: it needs one label for each example.
        gradients: it keeps the gradients of units, by which those that cancel can be found (`rearrange`).
        resumes: it runs the network from recorded blocks on.
        spread: it has work for many machines.
        by_blocks: it scores block by block, if the recipe offloads.
    """

    find: Callable[[Scoring], Found | Mapping[str, Curve]]
    labels: bool = False
    gradients: bool = False
    resumes: bool = False
    spread: bool = False
    by_blocks: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "compensated": Criterion(compensated, spread=True, by_blocks=True),
    "sketch": Criterion(sketch, spread=True, by_blocks=True),
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


def engine_for(recipe: Recipe, engine: str | Engine, address: str | None, output: object) -> Engine:
    """Where a scoring is done.

    Args:
        output: how outputs are read, which not every place can do.

    Raises:
        InputError: no such criterion or engine, or one that is not for the other or for `offload`.
    """
    name, asked = recipe.criterion, criterion(recipe.criterion)
    where = find_engine(engine, address) if isinstance(engine, str) else engine
    if where is not local and callable(output):
        raise InputError("a function that reads outputs reaches no other machine: name a field of the output.")
    if where is not local and not asked.spread:
        raise InputError(
            f"{name!r} has no work for many machines: score it here, without an engine. "
            f"Others have: {', '.join(name for name, one in CRITERIA.items() if one.spread)}."
        )
    if recipe.offload and where is not local:
        raise InputError(
            "'offload' scores block by block on this machine: leave it out where an engine does the work."
        )
    if recipe.offload and not asked.by_blocks:
        known = ", ".join(name for name, one in CRITERIA.items() if one.by_blocks)
        raise InputError(f"{name!r} is not scored block by block, as {known} are. Leave out 'offload'.")
    return where


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
