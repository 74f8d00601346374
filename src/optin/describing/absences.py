"""Whole parts that may go: an attention, a feed-forward layer, found by experiment.

Where a group keeps nothing, what reads its units makes its bias, and what made them need not run. The smallest module
around both is passed over if what it returns is what the reader makes; else the module whose output the reader reads,
and the reader makes a constant; else, of neurons, the reader alone, for maps to no features run as any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..running.absent import lies_flat, places
from ..running.caches import generates
from ..running.modules import first_of, hooks, inference_mode_of
from ..space.removal import Absence
from ..space.units import UnitGroup, UnitSpace, lies_in, pattern
from ..support.untyped import Arguments, Foreign
from .trial import EQUAL, Keep, _outputs, _Trial


def with_absences(model: nn.Module, space: UnitSpace, inputs: Mapping[str, object]) -> UnitSpace:
    """The description with what takes the place of parts that are gone.

    Args:
        model: with weights large enough for a wrong cut to show, see `shaken`.
    """
    possible = {group.name: list(_places(model, space, group)) for group in space if _beside(space, group)}
    calls = _calls(model, inputs, {path for some in possible.values() for path in itertools.chain(*some)})
    alike: dict[object, list[UnitGroup]] = defaultdict(list)
    for name, some in possible.items():
        absence = next(filter(None, (_absence(calls, *place) for place in some)), None)
        if absence is not None:
            group = dataclasses.replace(space[name], absence=absence)
            alike[pattern(name), pattern(absence.module)].append(group)
    found = dict[str, UnitGroup]()
    for groups in alike.values():
        for part in (groups, groups[1:]):  # the first may make what all of them read, a bias of positions
            gone = {group.name: group for group in part}
            if _same(model, _with(space, gone), inputs, gone):
                found |= gone
                break
    return _with(space, found)


def _with(space: UnitSpace, groups: Mapping[str, UnitGroup]) -> UnitSpace:
    return dataclasses.replace(space, groups=tuple(groups.get(group.name, group) for group in space))


def _same(model: nn.Module, space: UnitSpace, inputs: Mapping[str, object], gone: Mapping[str, UnitGroup]) -> bool:
    """Whether the network without some parts computes what the gated one does, and without one tells examples apart.

    What lies on the only way to an output is no part that could go.
    """
    whole = {group.name: tuple(range(group.size)) for group in space}
    keeps: list[Keep] = [whole | dict.fromkeys(names, ()) for names in (gone, [*gone][:1], ())]
    with contextlib.suppress(Exception):  # without a part a forward may fail in any way
        trial = _Trial(model, space, inputs, keeps)
        (_, _, without), (_, _, dense) = trial.cut[1:]
        return trial.equal({}) and all(map(_apart, (a for a, b in zip(without, dense, strict=True) if _apart(b))))
    return False


def _apart(values: Tensor) -> bool:
    """Whether an output differs from one example to the next."""
    return bool(values.dim() and (values - values[:1]).abs().max() > EQUAL * values.abs().max())


def _beside(space: UnitSpace, group: UnitGroup) -> bool:
    """Whether a group may be a part: it is read once, in a block of the body."""
    gate, *others = group.gates
    return (not space.runs or space.in_body(gate.module)) and not others and not group.shared


def _places(model: nn.Module, space: UnitSpace, group: UnitGroup) -> Iterator[tuple[str, str]]:
    """What may be passed over, and the map that reads the units: the likeliest first. Units of others stay."""
    gate = group.gates[0]
    if group.of.maps or gate.shift or not lies_flat(model, group, gate.module):
        return
    others = [cut.parameter for other in space if other.name != group.name for cut in other.cuts]
    for place in places(group, gate.module):
        alone = place == gate.module or not any(lies_in(name, place) for name in others)
        if alone and (place != gate.module or not group.of.attention):
            yield place, gate.module


Call = tuple[object, object]  # what a module read first, and what it returned


def _calls(model: nn.Module, inputs: Mapping[str, object], paths: set[str]) -> dict[str, list[Call]]:
    """The calls of some modules in one forward."""
    calls: dict[str, list[Call]] = defaultdict(list)

    def note(path: str) -> Foreign:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: Arguments, output: object) -> None:
            if args or kwargs:
                calls[path].append((first_of(module, args, kwargs), output))

        return hook

    notes = [model.get_submodule(path).register_forward_hook(note(path), with_kwargs=True) for path in sorted(paths)]
    with hooks(*notes), inference_mode_of(model):
        _outputs(model, inputs)
    return calls


def _absence(calls: Mapping[str, Sequence[Call]], module: str, consumer: str) -> Absence | None:
    """How a module can be passed over, if it can."""
    if len(calls[module]) != 1 or len(calls[consumer]) != 1:
        return None
    (read, output), (reads, makes) = calls[module][0], calls[consumer][0]
    first, outputs = output, 0
    if type(output) is tuple and output:
        first, outputs = output[0], len(output)
    if not isinstance(first, Tensor) or not isinstance(read, Tensor) or read.shape[:-1] != first.shape[:-1]:
        return None
    expected = makes if lies_in(consumer, module) else reads
    if not isinstance(expected, Tensor) or expected.shape != first.shape or not torch.equal(expected, first):
        return None
    return Absence(module, consumer, outputs)


def kept_for_caches(model: nn.Module, space: UnitSpace) -> UnitSpace:
    """The description of a network that generates: by its first attention of every kind it knows how far it is."""
    if not generates(model):
        return space
    config: Foreign = getattr(model, "config", None)
    kinds = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "layer_types", None)
    passed: dict[str, int] = defaultdict(int)
    first, groups = set[object](), []
    for group in space:
        alike = pattern(group.name)
        place, passed[alike] = passed[alike], passed[alike] + 1
        kind = (alike, kinds[place] if kinds and place < len(kinds) else None)
        stays = group.of.attention and kind not in first
        first.add(kind)
        groups.append(dataclasses.replace(group, absence=None) if stays else group)
    return dataclasses.replace(space, groups=tuple(groups))
