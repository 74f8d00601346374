"""What becomes of a group of classes: its name, the entries that leave, and the maps that read it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..running.consumers import is_convolution, out_axis, stored_transposed
from ..running.experts import EXPERT, ExpertMap, Experts
from ..running.tensors import hidden_of
from ..running.twins import TWINS
from ..space.removal import Argument, Cut
from ..space.units import KINDS, Gate, Tap, UnitGroup, UnitKind
from .found import Found, Group
from .tracking import Tracking

MIXED = "its units do not lie evenly"

UNREAD = "what reads it runs several times, reads it at several places, or is no plain map"

ROUTED = "what reads it works on rows that values choose, as an expert of a mixture does"


def unit_group(
    model: nn.Module, track: Tracking, group: Group, shared: Collection[str], examples: int
) -> tuple[UnitGroup, str] | str:
    """The units of a group of classes, and the module that places them in their block; or why they stay.

    Args:
        shared: parameters of several names.
        examples: in the forward that was watched.
    """
    cuts, arguments = _cuts(track, group), _arguments(track, group)
    if tied := next((name for name, _ in group.entries if name in shared), None):
        return f"{tied!r} has several names"
    gates = _gates(model, track, group, examples)
    if cuts is None or arguments is None or not gates:
        routed = track.routed & {name.rpartition(".")[0] for name, _ in group.reads}
        return MIXED if cuts is None else ROUTED if routed else MIXED if gates else UNREAD
    makers = _makers(model, track, group)
    kind = KINDS["head" if group.head else _convolved(model, makers or [gate.module for gate in gates])]
    mixture = isinstance(model.get_submodule(gates[0].module), ExpertMap)
    made = UnitGroup(
        _name(track, group, kind, makers, gates[0].module),
        kind.name,
        group.size,
        0,
        cuts,
        gates,
        arguments=arguments,
        twins=_twins(model, cuts),
        multiple=math.gcd(group.size, 8) if mixture else 1,  # grouped products take 16 bytes at once
    )
    return made, makers[0] if makers and not kind.attention else gates[0].module


def tying(track: Tracking, seen: Found) -> list[Argument]:
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


def _name(track: Tracking, group: Group, kind: UnitKind, makers: Sequence[str], reader: str) -> str:
    """Heads are named by the map that reads them, others by the first that makes them; by both if not all is theirs.

    What other groups have lost changes no name: a network that is pruned again keeps those of the first time.
    """
    size = {(name, axis): length for _, name, axis, length in track.origins}

    def whole(path: str) -> bool:
        """Whether all entries of an axis of a map are these units'."""
        of_map = [place for place in group.entries if place[0] == f"{path}.weight"]
        return not of_map or any(group.entries[place].numel() == size[place] for place in of_map)

    if makers and not kind.attention:
        return makers[0] if whole(makers[0]) else f"{makers[0]}.to.{reader}"
    reading = reader.partition(f".{EXPERT}")[0]
    others = [name for name, _ in group.entries if name.rpartition(".")[0] != reader]
    if not others or whole(reader):
        return f"{reading}.{kind.plural}"
    return f"{others[0].rpartition('.')[0] or others[0]}.to.{reading}"


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


def _convolved(model: nn.Module, makers: Sequence[str]) -> str:
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
        if not isinstance(consumer, ExpertMap) and not is_convolution(consumer) and axis == out_axis(consumer):
            return ()  # the weight of a map that is used the other way round elsewhere
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
