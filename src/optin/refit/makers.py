"""Makers of units as consumers: the maps to queries, keys, values and into the feed-forward layer, refitted too.

A maker reads the hidden state as it is and makes the units that stay, so its refit repairs what the layers before it
left wrong, before what reads its units is refitted in turn. Its tokens weigh as much as those of that reader.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from ..running.batch import Batch
from ..running.modules import call, inference_mode_of
from ..running.replay import Recorder
from ..space.removal import Cut
from ..space.units import Gate, Tap, UnitGroup, UnitSpace


def makers(model: nn.Module, space: UnitSpace, batch: Batch) -> dict[str, UnitGroup]:
    """The group that each maker makes: linear maps that run once a forward, on the same positions as their reader.

    Maps that hold several others (fused queries, keys and values) and those that are consumers are none. Where blocks
    run many times there are none: every run is given what the dense network reads, and nothing is lacking.
    """
    if any(group.shared for group in space):
        return {}
    consumers = {gate.module for group in space for gate in group.gates}
    found = {
        module: group
        for group in space
        if len(group.gates) == 1
        for cut in group.cuts
        if (module := cut.parameter.removesuffix(".weight")) not in consumers and _makes(model, module, cut, group)
    }
    recorder = Recorder([Tap(name, "input") for name in (*found, *consumers)])
    with inference_mode_of(model), torch.inference_mode(), recorder.recording(model):
        call(model, batch)

    def rows(module: str) -> list[torch.Size]:
        return [value.shape[:-1] for value in recorder.calls[Tap(module, "input")]]

    return {
        module: group
        for module, group in found.items()
        if len(rows(module)) == 1 and rows(module) == rows(group.gates[0].module)
    }


def _makes(model: nn.Module, module: str, cut: Cut, group: UnitGroup) -> bool:
    linear = model.get_submodule(module) if cut.parameter.endswith(".weight") else None
    return isinstance(linear, nn.Linear) and cut.dim == 0 and linear.out_features == group.size * cut.block


def with_makers(space: UnitSpace, made: Mapping[str, UnitGroup]) -> UnitSpace:
    """A description in which makers of the body are consumers as well, each before the reader of its units."""
    groups: list[UnitGroup] = []
    for group in space:
        for module in (name for name, units in made.items() if units is group and space.in_body(name)):
            gate = Gate(module, total=Tap(module, "output"))
            groups.append(UnitGroup(module, "neuron", 1, group.layer, (Cut(f"{module}.weight", 0),), (gate,)))
        groups.append(group)
    return dataclasses.replace(space, groups=tuple(groups))
