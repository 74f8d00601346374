"""A description of any network, from the labels of one forward."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..errors import ArchitectureError
from ..running.batch import size_of
from ..running.modules import call, forget, inference_mode_of, shared_names
from ..running.tensors import kind_of, tensors_of
from ..space.removal import Argument
from ..space.units import Block, Gate, Product, Tap, UnitGroup, UnitSpace, lies_in
from ..support.untyped import Foreign
from .blocks import behind, chain, cover, listed
from .found import RETURNED, Found, found, say_unread
from .groups import UNREAD, examples_axis, tying, unit_group
from .rules import rule_of
from .rules.table import not_understood_in
from .tracking import Tracking

COMPUTED = "its weight is computed in the forward, as by a parametrisation or a standardisation: make it a parameter"


def observed(
    model: nn.Module, inputs: Mapping[str, object], apart: Collection[Argument] = ()
) -> tuple[Tracking, list[int]]:
    """The labels of one forward, and the values that it returns by number; all of them stay.

    Args:
        apart: what has labels of its own in the module that is called with it.
    """
    track = Tracking(model, rule_of, apart)
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
    if not results:
        raise ArchitectureError(
            f"no tensor can be seen in what {type(model).__name__} returns, {kind_of(output)}: return tensors, or a "
            "mapping, tuple or dataclass of them."
        )
    for value in results:
        track.forbid_all(track.labels(value), RETURNED)
    return track, [number for number in map(track.number, results) if number is not None]


def described(model: nn.Module, inputs: Mapping[str, object], architecture: str) -> UnitSpace:
    """What the labels show, before it is tried.

    Raises:
        ArchitectureError: nothing can be cut; names what stands in the way.
    """
    track, results = observed(model, inputs)
    seen = found(track)
    if apart := tying(track, seen):
        track, results = observed(model, inputs, apart)
        seen = found(track)
    examples = size_of(dict(inputs))
    groups, first = _groups(model, track, seen, examples)
    groups, blocks, chained, channels = _in_blocks(model, track, results, seen, groups)
    placed = [_placed(group, blocks) for group in groups.values()]
    placed.sort(key=lambda group: (group.layer, track.calls.index(first[group.name])))
    body = len(blocks) - (0 if channels else behind(model, blocks))
    return UnitSpace(
        architecture,
        tuple(placed),
        tuple(
            Block(
                block,
                examples=examples_axis(track.plain.get(block, ()), examples),
                features=1 if channels else -1,
                head=place >= body,
            )
            for place, block in enumerate(blocks)
        ),
        chained=chained,
        products=_products(
            track,
            seen.roots,
            {root: group.name for number, group in groups.items() for root in seen.groups[number].classes},
        ),
        whole=_whole(seen, track),
    )


def _groups(
    model: nn.Module, track: Tracking, seen: Found, examples: int
) -> tuple[dict[int, UnitGroup], dict[str, str]]:
    """Groups by their number, and by name the module that one is placed by among those of its block."""
    groups, first, shared = dict[int, UnitGroup](), dict[str, str](), shared_names(model)
    for number, group in enumerate(seen.groups):
        made = unit_group(model, track, group, shared, examples)
        if isinstance(made, str):
            seen.whole[made].update(name for name, _ in group.reads)
        else:
            groups[number], place = made
            first[groups[number].name] = place
    return groups, first


def _in_blocks(
    model: nn.Module, track: Tracking, results: Sequence[int], seen: Found, groups: Mapping[int, UnitGroup]
) -> tuple[dict[int, UnitGroup], tuple[str, ...], bool, bool]:
    """The groups that run with a block, the blocks, whether these are a chain, and whether features come first.

    Raises:
        ArchitectureError: no group is left.
    """
    if not groups:
        raise _nothing(model, track, seen)
    channels = any(group.of.maps for group in groups.values()) or _convolves(model, track, groups.values())
    blocks, chained = _blocks(model, track, results, list(groups.values()), channels)
    left = {
        number: made
        for number, made in groups.items()
        if all(_runs_with_a_block(track, gate.module, blocks) for gate in made.gates)
    }
    for number in groups.keys() - left.keys():
        seen.whole[UNREAD].update(f"{gate.module}.weight" for gate in groups[number].gates)
    if not left:
        raise _nothing(model, track, seen)
    if len(left) < len(groups):
        blocks, chained = _blocks(model, track, results, list(left.values()), channels)
    return left, blocks, chained, channels


def _nothing(model: nn.Module, track: Tracking, seen: Found) -> ArchitectureError:
    say_unread(track, seen)
    reasons = [f"{reason} ({min(maps)})" for reason, maps in seen.whole.items()]
    reasons += [not_understood_in(*where) for where in track.unknown if not_understood_in(*where) not in seen.whole]
    reasons += [f"{COMPUTED} ({min(track.computed)})"] if track.computed else []
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


def _whole(seen: Found, track: Tracking) -> dict[str, str]:
    """Why units stay, by the map that reads them; by the one that makes them, where nothing tells what reads them.

    Of a map of both kinds, what it makes is said first.
    """
    say_unread(track, seen)
    lost = dict.fromkeys(sorted(track.computed), COMPUTED)
    lost |= {maker: not_understood_in(*where) for where, makers in track.unknown.items() for maker in sorted(makers)}
    reasons: dict[str, dict[str, None]] = {name: {reason: None} for name, reason in lost.items()}
    for reason, maps in seen.whole.items():
        for name in sorted(maps):
            reasons.setdefault(_map(name), {})[reason] = None
    found = {name: "; ".join(said) for name, said in reasons.items()}
    order = {name: place for place, name in enumerate(track.calls)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], 0)))


def _map(weight: str) -> str:
    """The module of a weight; of one that the network itself holds the weight."""
    return weight.rpartition(".")[0] or weight


def _within(gate: Gate, blocks: Sequence[str]) -> Gate:
    """A total is read inside the block of its consumer; what is added outside of it is not followed."""
    block = next(block for block in blocks if lies_in(gate.module, block))
    assert gate.total is not None
    inside = lies_in(gate.total.module, block) and (gate.total.module, gate.total.side) != (block, "input")
    return gate if inside else dataclasses.replace(gate, total=Tap(gate.module, "output"), scale=None)


def counted(model: nn.Module, groups: Sequence[UnitGroup], inputs: Mapping[str, object]) -> tuple[Product, ...]:
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


def _products(track: Tracking, roots: Foreign, owners: Mapping[int, str]) -> tuple[Product, ...]:
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
