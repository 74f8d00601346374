"""Criteria: each turns a network and a calibration set into removal curves.

To add one, write a function with the signature of `Criterion` and give it a line in `CRITERIA`, or publish
an entry point `optin.criteria`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from torch import nn

from ..batches import Batches
from ..errors import InputError, unknown
from ..progress import Track
from ..recipe import Recipe
from ..scores import Curve
from ..units import UnitSpace
from . import baselines
from .compensated import compensated
from .exact import exact
from .sketch import sketch


class Criterion(Protocol):
    """Score every unit of `space` on the calibration set; `resume` is a file for partial results."""

    def __call__(
        self,
        model: nn.Module,
        space: UnitSpace,
        batches: Batches,
        recipe: Recipe,
        track: Track,
        resume: Path | None,
    ) -> Mapping[str, Curve]: ...


CRITERIA: Mapping[str, Criterion] = {
    "compensated": compensated,
    "sketch": sketch,
    "exact": exact,
    "magnitude": baselines.magnitude,
    "fisher": baselines.fisher,
    "random": baselines.random,
}


def criterion(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        InputError: no such criterion.
    """
    known = {**CRITERIA, **{entry.name: entry for entry in entry_points(group="optin.criteria")}}
    if name not in known:
        raise InputError(unknown("criterion", name, known))
    return CRITERIA[name] if name in CRITERIA else entry_points(group="optin.criteria")[name].load()
