"""A description of any network, from the labels of one forward."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import ArchitectureError
from ..running.batches import size_of
from ..running.consumers import is_convolution, out_axis, stored_transposed
from ..running.modules import (
    call,
    forget,
    hidden_of,
    inference_mode_of,
    shared_names,
)
from ..running.outputs import tensors_of
from ..running.twins import (
    EXPERT,
    TWINS,
    ExpertMap,
    Experts,
)
from ..space.units import (
    Argument,
    Cut,
    Gate,
    Product,
    Tap,
    UnitGroup,
    UnitSpace,
    lies_in,
)
from .blocks import (
    behind,
    chain,
    cover,
    listed,
)
from .found import Found, Group, found
from .tracking import Tracking

MIXED = "its units do not lie evenly"
UNREAD = "what reads it runs several times, or is no plain map"
ROUTED = "what reads it works on rows that values choose, as an expert of a mixture does"


def observed(
    model: nn.Module, inputs: Mapping[str, Any], apart: Collection[Argument] = ()
) -> tuple[Tracking, list[int]]:
    """The labels of one forward, and the values that it returns by number; all of them stay.

    Args:
        apart: what has labels of its own in the module that is called with it.
    """
    track = Tracking(model, apart)
    track.of_examples(*tree_leaves(dict(inputs)))
    forget(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if not buffer.is_meta}
    with inference_mode_of(model), torch.no_grad(), track.watching(model):
        output = call(model, inputs)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in before and not torch.equal(buffer, before[name]):
                buffer.copy_(before[name])
    results = tensors_of(output)
    for value in results:
        track.forbid_all(track.labels(value), "what the network returns")
    return track, [number for number in map(track.number, results) if number is not None]


def described(model: nn.Module, inputs: Mapping[str, Any], architecture: str) -> UnitSpace:
    """What the labels show, before it is tried.

    Raises:
        ArchitectureError: nothing can be cut; names what stands in the way.
    """
    track, results = observed(model, inputs)
    seen = found(track)
    if tying := _tying(track, seen):
        track, results = observed(model, inputs, tying)
        seen = found(track)
    examples, shared = size_of(dict(inputs)), shared_names(model)
    groups: dict[int, UnitGroup] = {}
    first: dict[str, str] = {}  # the module that a group is placed by among those of its block
    for number, group in enumerate(seen.groups):
        cuts = _cuts(track, group)
        arguments = _arguments(track, group)
        if tied := next((name for name, _ in group.entries if name in shared), None):
            seen.whole[f"{tied!r} has several names"].update(name for name, _ in group.reads)
            continue
        gates = _gates(model, track, group, examples)
        if cuts is None or arguments is None or not gates:
            routed = track.routed & {name.rpartition(".")[0] for name, _ in group.reads}
            reason = MIXED if cuts is None else ROUTED if routed else MIXED if gates else UNREAD
            seen.whole[reason].update(name for name, _ in group.reads)
            continue
        makers = _makers(model, track, group)
        kind = "head" if group.head else _kind(model, makers or [gate.module for gate in gates])
        name = _name(track, group, kind, makers, gates[0].module)
        first[name] = makers[0] if makers and kind != "head" else gates[0].module
        mixture = isinstance(model.get_submodule(gates[0].module), ExpertMap)
        groups[number] = UnitGroup(
            name,
            kind,
            group.size,
            0,
            cuts,
            gates,
            arguments=arguments,
            twins=_twins(model, cuts),
            multiple=math.gcd(group.size, 8) if mixture else 1,  # grouped products take 16 bytes at once
        )
    if not groups:
        raise _nothing(model, track, seen)
    channels = any(group.kind == "channel" for group in groups.values()) or _convolves(model, track, groups.values())
    blocks, chained = _blocks(model, track, results, list(groups.values()), channels)
    apart = [
        number
        for number, made in groups.items()
        if not all(_runs_with_a_block(track, gate.module, blocks) for gate in made.gates)
    ]
    for number in apart:
        seen.whole[UNREAD].update(f"{gate.module}.weight" for gate in groups.pop(number).gates)
    if not groups:
        raise _nothing(model, track, seen)
    if apart:
        blocks, chained = _blocks(model, track, results, list(groups.values()), channels)
    placed = [_placed(group, blocks) for group in groups.values()]
    placed.sort(key=lambda group: (group.layer, track.calls.index(first[group.name])))
    return UnitSpace(
        architecture,
        tuple(placed),
        blocks,
        channels_first=channels,
        chained=chained,
        transposed=tuple(block for block in blocks if examples_axis(track.plain.get(block, ()), examples) == 1),
        products=_products(
            track,
            seen.roots,
            {root: group.name for number, group in groups.items() for root in seen.groups[number].classes},
        ),
        whole=_whole(seen, track),
        head=0 if channels else behind(model, blocks),
    )


def _tying(track: Tracking, seen: Found) -> list[Argument]:
    """What several modules are called with that ties their units: one table of biases of all heads for all layers."""
    found = list[Argument]()
    for group in seen.groups:
        for given in track.given.values() if len(group.reads) > 1 else ():
            for axis, labels in given.labels.items() if len(given.to) > 1 else ():
                if sorted(seen.roots[labels.flatten()].tolist()) == sorted(group.classes):
                    found += [Argument(module, *place, axis) for module, place in given.to.items()]
    return found


def _arguments(track: Tracking, group: Group) -> tuple[Argument, ...] | None:
    """Where a module must pick the slices of its units; None where they do not lie in their order."""
    order = torch.argsort(group.entries[group.reads[0]][:, 0])
    places = {
        track.arguments[name]: entries for (name, _), entries in group.entries.items() if name in track.arguments
    }
    in_order = torch.arange(group.size)[:, None]
    return tuple(places) if all(torch.equal(entries[order], in_order) for entries in places.values()) else None


def _nothing(model: nn.Module, track: Tracking, seen: Found) -> ArchitectureError:
    reasons = [f"{reason} ({min(maps)})" for reason, maps in seen.whole.items()]
    reasons += [f"{name} is not understood in {module!r}" for name, module in track.unknown]
    said = "; ".join(reasons[:3]) or "no map reads what another makes"
    return ArchitectureError(f"nothing can be cut from this {type(model).__name__}: {said}.")


def _runs_with_a_block(track: Tracking, consumer: str, blocks: Sequence[str]) -> bool:
    """Whether a consumer runs once each time that its block does."""
    block = next((block for block in blocks if lies_in(consumer, block)), "")
    return blocks.count(block) == track.calls.count(consumer)


def _convolves(model: nn.Module, track: Tracking, groups: Iterable[UnitGroup]) -> bool:
    """Whether blocks that return maps hold convolutions, as those of ConvNeXt do beside their linear maps."""
    blocks = listed(model, track.calls, [gate.module for group in groups for gate in group.gates])
    return any(
        isinstance(module, nn.modules.conv._ConvNd)
        for block in blocks
        if len(track.plain.get(block, ())) == 4
        for module in model.get_submodule(block).modules()
    )


def _blocks(
    model: nn.Module, track: Tracking, results: Sequence[int], groups: Sequence[UnitGroup], channels: bool
) -> tuple[tuple[str, ...], bool]:
    """The blocks, and whether one state can stand in for all before it."""
    consumers = [gate.module for group in groups for gate in group.gates]
    if not channels:
        return listed(model, track.calls, consumers), False
    blocks = chain(track, results)
    if all(any(lies_in(name, block) for block in blocks) for name in consumers):
        return blocks, True
    totals = [(gate.module, gate.total.module) for group in groups for gate in group.gates if gate.total is not None]
    return cover(track, totals), False


def _placed(group: UnitGroup, blocks: Sequence[str]) -> UnitGroup:
    gates = tuple(_within(gate, blocks) for gate in group.gates)
    layer = min(place for gate in gates for place, block in enumerate(blocks) if lies_in(gate.module, block))
    shared = any(blocks.count(block) > 1 for block in blocks if lies_in(gates[0].module, block))
    return dataclasses.replace(group, layer=layer, gates=gates, shared=shared)


def _name(track: Tracking, group: Group, kind: str, makers: Sequence[str], reader: str) -> str:
    """Heads are named by the map that reads them, others by the first that makes them, by both where it makes more.

    What other groups have lost changes no name: a network that is pruned again keeps those of the first time.
    """
    if kind == "head" or not makers:
        return f"{reader.partition(f'.{EXPERT}')[0]}.{kind}s"
    made = f"{makers[0]}.weight"
    size = {(name, axis): length for _, name, axis, length in track.origins}
    whole = any(entries.numel() == size[place] for place, entries in group.entries.items() if place[0] == made)
    return makers[0] if whole else f"{makers[0]}.to.{reader}"


def _makers(model: nn.Module, track: Tracking, group: Group) -> list[str]:
    """The maps whose outputs the units are, in order of execution."""
    made = {
        name.rpartition(".")[0]
        for name, axis in group.entries
        if name.endswith(".weight") and axis == _out_axis(model.get_submodule(name.rpartition(".")[0]))
    }
    return [path for path in dict.fromkeys(track.calls) if path in made]


def _out_axis(module: nn.Module) -> int | None:
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    return out_axis(module) if _known(module) and not depthwise else None


def _kind(model: nn.Module, makers: Sequence[str]) -> str:
    convolve = any(isinstance(model.get_submodule(path), nn.modules.conv._ConvNd) for path in makers)
    return "channel" if convolve else "neuron"


def examples_axis(shape: Sequence[int], examples: int) -> int:
    """The axis of a value that runs over the examples: the first, or the second as in a decoder of queries."""
    return 1 if len(shape) > 2 and shape[0] != examples and shape[1] == examples else 0


def _twins(model: nn.Module, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """The modules that lose units and compute with fewer only as they are now: see `optin.running.twins`."""
    paths = (
        cut.parameter.rsplit(".", depth)[0] for cut in cuts for depth in (1, 2) if cut.parameter.count(".") >= depth
    )
    return tuple(path for path in dict.fromkeys(paths) if isinstance(model.get_submodule(path), TWINS))


def _cuts(track: Tracking, group: Group) -> tuple[Cut, ...] | None:
    """The entries of the units, as runs where they lie evenly; None where they do not where a map reads them.

    Units are in the order in which they are read.
    """
    order = torch.argsort(group.entries[group.reads[0]][:, 0])
    cuts = []
    for (name, axis), entries in group.entries.items():
        if name in track.arguments:
            continue
        entries = entries[order]
        runs = _runs(entries)
        if runs is None and (name, axis) in group.reads:
            return None
        if runs is None:
            cuts.append(Cut(name, axis, entries.shape[1], 0, tuple(entries.flatten().tolist())))
        else:
            cuts += [Cut(name, axis, block, offset) for offset, block in runs]
    return tuple(cuts)


def _runs(entries: Tensor) -> list[tuple[int, int]] | None:
    """Offset and block of each run of entries of the units, one unit's behind the other's; None if they are mixed."""
    first, units = entries[0], len(entries)
    breaks = torch.nonzero(first[1:] != first[:-1] + 1).flatten() + 1
    runs = []
    for run in torch.tensor_split(torch.arange(len(first)), breaks.tolist()):
        offset, block = int(first[run[0]]), len(run)
        if not torch.equal(entries[:, run], offset + torch.arange(units)[:, None] * block + torch.arange(block)):
            return None
        runs.append((offset, block))
    return runs


def _gates(model: nn.Module, track: Tracking, group: Group, examples: int) -> tuple[Gate, ...]:
    """The maps that read the units; none where one is no map that can be refitted, or mixes their entries."""
    gates = []
    for module, name, axis in _readers(model, group):
        if not module:
            return ()
        consumer = model.get_submodule(module)
        entries = group.entries[name, axis]
        runs, shapes = track.calls.count(module), set(track.read.get(module, ()))
        # Else it is a table, the same for all examples, or examples have as many rows as values say.
        alike = track.fed[module] == runs and len(shapes) == 1 and module not in track.routed
        parts = _runs(entries[torch.argsort(entries[:, 0])])
        if not _known(consumer) or not alike or parts is None or len(parts) != 1:
            return ()
        ((start, block),) = parts
        total = track.sums.get(name)
        if total is not None and track.calls.count(total.module) != runs:
            total = None  # read where the module runs as often as the map
        dim = 1 if is_convolution(consumer) else -1
        gates.append(
            Gate(
                module,
                dim,
                block,
                Tap(module, "output") if total is None else Tap(total.module, total.side),  # type: ignore[arg-type]
                None if total is None else total.scale,
                track.shifts.get(name),
                examples_axis(shapes.pop(), examples),
                start,
            )
        )
    return tuple(gates)


def _readers(model: nn.Module, group: Group) -> Iterator[tuple[str, str, int]]:
    """The modules that read the units, each with the parameter and the axis along which it does."""
    for name, axis in group.reads:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, Experts):
            yield from ((f"{path}.{EXPERT}{place}", name, axis) for place in range(module.num_experts))
        else:
            yield path if leaf == "weight" else "", name, axis


def _known(consumer: nn.Module) -> bool:
    """Whether a consumer is a map that can be refitted: of torch, or one that computes what a linear map does."""
    if isinstance(consumer, (nn.Linear, ExpertMap)) or is_convolution(consumer) or stored_transposed(consumer):
        return True
    weight, bias = getattr(consumer, "weight", None), getattr(consumer, "bias", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not hasattr(consumer, "bias"):
        return False
    read = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with contextlib.suppress(Exception):  # a forward that takes something else
        return torch.allclose(hidden_of(consumer(read)), nn.functional.linear(read, weight, bias), atol=1e-5)
    return False


def _whole(seen: Found, track: Tracking) -> dict[str, str]:
    """By the map that reads them why units stay."""
    found = {name.rpartition(".")[0]: reason for reason, maps in seen.whole.items() for name in sorted(maps)}
    order = {name: place for place, name in enumerate(track.calls)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], 0)))


def _within(gate: Gate, blocks: Sequence[str]) -> Gate:
    """A total is read inside the block of its consumer; what is added outside of it is not followed."""
    block = next(block for block in blocks if lies_in(gate.module, block))
    assert gate.total is not None
    inside = lies_in(gate.total.module, block) and (gate.total.module, gate.total.side) != (block, "input")
    return gate if inside else dataclasses.replace(gate, total=Tap(gate.module, "output"), scale=None)


def counted(model: nn.Module, groups: Sequence[UnitGroup], inputs: Mapping[str, Any]) -> tuple[Product, ...]:
    """The products of a forward whose groups were described by hand."""
    track, _ = observed(model, inputs)
    roots = track.classes.roots()
    first = {(name, axis): label for label, name, axis, _ in track.origins}
    owners = dict[int, str]()
    for group in groups:
        for cut in group.cuts:
            entries = cut.indices(group.size).flatten()
            owners |= dict.fromkeys(roots[first[cut.parameter, cut.dim] + entries].tolist(), group.name)
    return _products(track, roots, owners)


def _products(track: Tracking, roots: Any, owners: Mapping[int, str]) -> tuple[Product, ...]:
    """Which groups the MACs of every product grow with.

    Args:
        roots: the class of every label.
        owners: by class the group that it is of.
    """
    products = []
    for product in track.products:
        parts = []
        for labels in product.parts:
            counts: dict[str, int] = defaultdict(int)
            for label in labels.flatten().tolist():
                counts[owners.get(int(roots[label]), "") if label >= 0 else ""] += 1
            if set(counts) != {""}:
                parts.append(tuple(counts.items()))
        products.append(Product(product.module, tuple(parts), product.activations))
    return tuple(products)
