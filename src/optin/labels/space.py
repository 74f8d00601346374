"""A description of any network, from the labels of one forward."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..consumers import stored_transposed
from ..errors import ArchitectureError
from ..modules import inference_mode_of
from ..units import Cut, Gate, Product, Tap, UnitGroup, UnitSpace, lies_in
from .found import Found, Group, found
from .outputs import tensors_of
from .tracking import Tracking


def observed(model: nn.Module, inputs: Mapping[str, Any]) -> Tracking:
    """The labels of one forward; all that comes out of the network stays."""
    track = Tracking(model)
    with inference_mode_of(model), torch.no_grad(), track.watching(model):
        output = model(**inputs)
    for value in tensors_of(output):
        track.forbid_all(track.labels(value), "what the network returns")
    return track


def described(model: nn.Module, inputs: Mapping[str, Any], architecture: str) -> UnitSpace:
    """What the labels show, before it is tried.

    Raises:
        ArchitectureError: nothing can be cut; names what stands in the way.
    """
    track = observed(model, inputs)
    seen = found(track)
    groups: dict[int, UnitGroup] = {}
    named: dict[int, str] = {}
    for number, group in enumerate(seen.groups):
        cuts = _cuts(group)
        gates = _gates(model, track, group)
        if cuts is None or not gates:
            reason = "its units do not lie evenly" if cuts is None else "what reads it reads more, or is no plain map"
            seen.whole[reason].update(name for name, _ in group.reads)
            continue
        kind = (
            "head"
            if group.head
            else "channel"
            if isinstance(model.get_submodule(gates[0].module), nn.Conv2d)
            else "neuron"
        )
        name = f"{gates[0].module}.{kind}s"
        named[number] = name
        groups[number] = UnitGroup(name, kind, group.size, 0, cuts, gates)
    if not groups:
        reasons = [f"{reason} ({min(maps)})" for reason, maps in seen.whole.items()]
        reasons += [f"{name} is not understood in {module!r}" for name, module in track.unknown]
        said = "; ".join(reasons[:3]) or "no map reads what another makes"
        raise ArchitectureError(f"nothing can be cut from this {type(model).__name__}: {said}.")
    blocks = blocks_of(track.calls, [gate.module for group in groups.values() for gate in group.gates])
    placed = []
    for unplaced in groups.values():
        layer = min((blocks.index(block) for block in blocks if lies_in(unplaced.gates[0].module, block)), default=0)
        gates = tuple(_within(gate, blocks) for gate in unplaced.gates)
        placed.append(dataclasses.replace(unplaced, layer=layer, gates=gates))
    placed.sort(key=lambda group: (group.layer, track.calls.index(group.gates[0].module)))
    channels = any(group.kind == "channel" for group in placed)
    return UnitSpace(
        architecture,
        tuple(placed),
        blocks,
        channels_first=channels,
        chained=False,
        products=_products(track, seen, named),
    )


def _cuts(group: Group) -> tuple[Cut, ...] | None:
    """The entries of the units as runs; None where those of the units do not follow on each other."""
    order = torch.argsort(next(iter(group.entries.values()))[:, 0])
    cuts = []
    for (name, axis), entries in group.entries.items():
        entries = entries[order]
        first = entries[0]
        breaks = torch.nonzero(first[1:] != first[:-1] + 1).flatten() + 1
        for run in torch.tensor_split(torch.arange(len(first)), breaks.tolist()):
            offset, block = int(first[run[0]]), len(run)
            expected = offset + torch.arange(group.size)[:, None] * block + torch.arange(block)
            if not torch.equal(entries[:, run], expected):
                return None
            cuts.append(Cut(name, axis, block, offset))
    return tuple(cuts)


def _gates(model: nn.Module, track: Tracking, group: Group) -> tuple[Gate, ...]:
    """The maps that read the units; none where one reads something else too, or is no map that can be refitted."""
    gates = []
    for name, axis in group.reads:
        module, _, leaf = name.rpartition(".")
        consumer = model.get_submodule(module)
        entries = group.entries[name, axis]
        weight = getattr(consumer, leaf)
        known = isinstance(consumer, (nn.Linear, nn.Conv2d)) or stored_transposed(consumer)
        if not known or leaf != "weight" or track.calls.count(module) != 1 or entries.numel() != weight.shape[axis]:
            return ()
        total = track.sums.get(name)
        tap = Tap(module, "output") if total is None else Tap(total.module, total.side)  # type: ignore[arg-type]
        dim = 1 if isinstance(consumer, nn.Conv2d) else -1
        gates.append(Gate(module, dim, entries.shape[1], tap, None if total is None else total.scale))
    return tuple(gates)


def _within(gate: Gate, blocks: Sequence[str]) -> Gate:
    """A total is read inside the block of its consumer; what is added outside of it is not followed."""
    block = next(block for block in blocks if lies_in(gate.module, block))
    assert gate.total is not None
    inside = lies_in(gate.total.module, block) and (gate.total.module, gate.total.side) != (block, "input")
    return gate if inside else dataclasses.replace(gate, total=Tap(gate.module, "output"), scale=None)


def blocks_of(calls: Sequence[str], consumers: Sequence[str]) -> tuple[str, ...]:
    """The outermost entries of lists in which consumers lie, in order of execution; else the modules around them."""
    blocks: dict[str, None] = {}
    for consumer in consumers:
        listed = re.match(r"(.*?\.\d+|\d+)(?:\.|$)", consumer)
        blocks[listed.group(1) if listed else consumer.rpartition(".")[0] or consumer] = None
    ordered = [name for name in dict.fromkeys(calls) if name in blocks]
    return tuple(name for name in ordered if not any(name != other and lies_in(name, other) for other in ordered))


def _products(track: Tracking, seen: Found, named: Mapping[int, str]) -> tuple[Product, ...]:
    """Which groups the MACs of every product grow with."""
    group_of = {
        root: named[number] for number, group in enumerate(seen.groups) if number in named for root in group.classes
    }
    products = []
    for product in track.products:
        parts = []
        for labels in product.parts:
            counts: dict[str, int] = defaultdict(int)
            for label in labels.flatten().tolist():
                counts[group_of.get(int(seen.roots[label]), "") if label >= 0 else ""] += 1
            if set(counts) != {""}:
                parts.append(tuple(counts.items()))
        products.append(Product(product.module, tuple(parts)))
    return tuple(products)
