"""Look at a network without changing it: what can be removed, and where its costs are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from .accounting import costs
from .checks import check_sample
from .describing import describe as describe_network
from .describing.inputs import completed, default_length, forward_names, planned_inputs
from .describing.queries import QUERIES
from .describing.refusals import check_network
from .recipe import limits_of
from .result import shown
from .running.batches import Batches
from .running.modules import device_of
from .running.twins import on_twins
from .space.plans import Plan
from .space.scores import Scores
from .space.units import UnitSpace
from .support.listing import Listed, Listing
from .support.untyped import Figures


def describe(
    model: nn.Module, inputs: Mapping[str, object] | None = None, *, parts: bool = False, queries: bool = False
) -> UnitSpace:
    """What can be removed from a network: groups of heads, neurons and channels, and why the rest stays (`whole`).

        space = optin.describe(model, batch)
        space.sizes, space.whole

    Args:
        model: any module with its weights; left untouched.
        inputs: a batch of its keyword inputs; without one, random inputs are made as its configuration says.
        parts, queries: as in `Recipe`.

    Raises:
        InputError: no network, or inputs that it does not take.
        ArchitectureError: a forward that cannot be followed, or nothing that can be cut; names what is in the way.
    """
    if inputs is None:
        return describe_network(model, parts=parts, queries=queries)
    return described_by(model, calibration_of(model, [inputs]), parts=parts, queries=queries)


class Inspection(dict[str, Any], Listed):
    """The figures of `inspect` by their names, which show themselves as a table."""

    def __repr__(self) -> str:
        return (
            f"Inspection({self['architecture']}: {shown(self['macs'])} MACs, {shown(self['parameters'])} parameters, "
            f"{len(self['groups'])} groups of units; {len(self['whole'])} maps stay whole)"
        )

    def listing(self) -> Listing:
        """A row for every group: its units, and what one costs."""
        names = ("units", "macs_per_unit", "parameters_per_unit")
        rows = [(group["name"], *(f"{group[name]:,}" for name in names)) for group in self["groups"]]
        return Listing(repr(self), ("group", "units", "MACs each", "parameters each"), rows)


@on_twins
def inspect(
    model: nn.Module, length: int | None = None, *, example: Mapping[str, object] | None = None
) -> Inspection:
    """What can be removed from a network, and where its MACs and parameters are.

        found = optin.inspect(model)
        print(found.summary())
        found["macs"], found["whole"]

    Args:
        length: tokens of a text (128 by default) or pixels of an image side (the model's own) at which MACs
            are counted.
        example: a batch of the network's inputs, for one whose configuration does not say what it takes.

    Returns:
        Costs in all, per unit of each group, and by module ("breakdown").
    """
    space, known, width = describe(model, example), None, None
    if example is not None:
        seen = calibration_of(model, [example])
        known = Scores(space.architecture, {}, seen.positions, {"data": seen.provenance}, width=seen.width)
        length, width = length or seen.positions, None if length else seen.width
    length = length or default_length(model)
    macs, parameters = costs(model, space, length, width, known)
    least = {group.name: group.min_keep for group in space}
    found: Figures = {
        "architecture": space.architecture,
        "length": length,
        "macs": macs.dense,
        "parameters": parameters.dense,
        "smallest": {"macs": macs(least), "parameters": parameters(least)},
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "units": group.size,
                "macs_per_unit": macs.prices(macs.sizes)[group.name],
                "parameters_per_unit": parameters.prices(parameters.sizes)[group.name],
            }
            for group in space
        ],
        "whole": dict(space.whole),
        "breakdown": macs.breakdown(macs.sizes),
    }
    return Inspection(found)


def calibration_of(model: nn.Module, batches: Iterable[object]) -> Batches:
    """The calibration set on the device of a network, as its forward takes it."""
    check_network(model)
    return Batches.of(batches, device_of(model), forward_names(model), partial(completed, model))


def described_by(model: nn.Module, calibration: Batches, *, parts: bool = False, queries: bool = False) -> UnitSpace:
    """The description of a network from two of its calibration inputs."""
    sample = calibration.sample()
    check_sample(model, sample, next(iter(calibration)))
    return describe_network(model, sample, parts=parts, queries=queries)


def described_for(model: nn.Module, plan: Plan, calibration: Batches | None, *, parts: bool = False) -> UnitSpace:
    """The network that a plan is for, without what was excluded from it."""
    parts = parts or not all(plan.keep.values())
    made = plan.provenance.get("recipe")
    queries = any(name.endswith(QUERIES) for name in plan.keep)
    queries = queries or bool(isinstance(made, Mapping) and made.get("queries"))
    if calibration is None:
        space = describe_network(model, planned_inputs(model, plan, 2), parts=parts, queries=queries)
    else:
        space = described_by(model, calibration, parts=parts, queries=queries)
    return space.restricted(**limits_of(plan.provenance))
