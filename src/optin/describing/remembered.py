"""Counts that a forward remembers, found by experiment.

A module may keep the number of its heads, or of the features of all of them, as an integer. Those that equal the old
count or extent are set to the new one in turn; the choice with which the cut network computes what the gated one does
is the description. There is one choice a role: the place of a module in its block, and the attribute.
"""

from __future__ import annotations

import copy
import dataclasses
import heapq
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..running.modules import forget, inference_mode_of
from ..running.surgery import is_settings
from ..running.twins import TWINS
from ..space.removal import Attribute
from ..space.units import UnitGroup, UnitSpace, around, pattern
from ..support.untyped import Foreign
from .trial import Chosen, _outputs, _Trial

TRIES = 48  # choices of attributes at most, for all groups that are alike
FEWER_TRIES = 8  # for a part of those for which none was found
MANY = 4  # groups of one size, that are not tried one by one
HINTS = ("head", "size", "dim", "width", "inner", "num", "features", "channels", "nf")  # in names of extents

# Modules of torch whose integers follow: groups, features that they check, parts of an axis.
COUNTING = (nn.modules.conv._ConvNd, nn.modules.instancenorm._InstanceNorm, nn.Unflatten)

Role = tuple[str, str, int | None]


def with_attributes(
    model: nn.Module, space: UnitSpace, inputs: Mapping[str, object]
) -> tuple[UnitSpace, dict[str, str]]:
    """The description with the attributes that follow, and by name the reason why some groups stay whole.

    Args:
        model: with weights large enough for a wrong cut to show, see `shaken`.
    """
    chosen = _choice(model, space, inputs)
    if chosen is not None:
        return _with(space, chosen), {}
    alike: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in space:
        alike[pattern(group.gates[0].module)].append(group)
    groups = dict[str, UnitGroup]()
    for some in alike.values():
        for part in _settled(model, space, some, inputs):
            groups |= {group.name: group for group in part}
    reason = "no count that its modules remember makes the cut network compute what the gated one does"
    whole = {group.name: reason for group in space if group.name not in groups}
    kept = dataclasses.replace(space, groups=tuple(groups[group.name] for group in space if group.name in groups))
    if groups and not _Trial(model, kept, inputs).equal(_attributes(kept)):
        return dataclasses.replace(space, groups=()), dict.fromkeys(
            space.sizes, "cut together they compute something else"
        )
    return kept, whole


def _settled(
    model: nn.Module, space: UnitSpace, some: Sequence[UnitGroup], inputs: Mapping[str, object], tries: int = TRIES
) -> Iterator[UnitSpace]:
    """Parts of groups that are alike, each with the attributes that follow; what there are none for is left out.

    Where one choice is not for all, those of one size are tried by themselves, since stages may differ in their
    number of heads, and a few of one size one by one.
    """
    part = dataclasses.replace(space, groups=tuple(some))
    heads = all(group.of.attention and not group.twins for group in some)
    attempts = [(part, tries)]
    if heads:  # likely counts, an elastic twin, then unlikely counts
        attempts = [(part, FEWER_TRIES), (_elastic(part), FEWER_TRIES), (part, tries)][: 2 + (tries > FEWER_TRIES)]
    for attempt, most in attempts:
        chosen = _choice(model, attempt, inputs, most)
        if chosen is not None:
            yield _with(attempt, chosen)
            return
    sizes: dict[object, list[UnitGroup]] = defaultdict(list)
    for group in some:
        sizes[group.size, *(cut.block for cut in group.cuts)].append(group)
    parts = list(sizes.values())
    if len(parts) == 1:
        parts = [[group] for group in some] if 1 < len(some) < MANY else []
    for alike in parts:
        yield from _settled(model, space, alike, inputs, FEWER_TRIES)


def _elastic(space: UnitSpace) -> UnitSpace:
    """Each group with an elastic twin of the module around all that it owns."""
    groups = []
    for group in space:
        owners = [cut.parameter.rpartition(".")[0] for cut in group.cuts]
        groups.append(dataclasses.replace(group, twins=(around(owners),)))
    return dataclasses.replace(space, groups=tuple(groups))


def shaken(model: nn.Module) -> nn.Module:
    """A copy whose weights are large enough for a wrong cut to show."""
    trial, generator = copy.deepcopy(model).float().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trial.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            if parameter.dim() > 1 and parameter.numel():
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    forget(trial)
    return trial


def single(value: object) -> Any:
    """In the precision of `shaken`."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _choice(model: nn.Module, space: UnitSpace, inputs: Mapping[str, object], tries: int = TRIES) -> Chosen | None:
    """The fewest attributes with which shrunk equals gated."""
    candidates = _candidates(model, space, inputs)
    trial = _Trial(model, space, inputs)

    def of(roles: Iterable[Role]) -> dict[str, list[Attribute]]:
        chosen: dict[str, list[Attribute]] = defaultdict(list)
        for role in roles:
            for group, attributes in candidates[role].items():
                chosen[group] += attributes
        return chosen

    odds = {role: _odds(role, space, found) for role, found in sorted(candidates.items())}
    for needed in itertools.islice(likeliest(odds), tries):
        if trial.equal(of(needed)):
            for role in tuple(needed):
                fewer = [other for other in needed if other != role]
                if trial.equal(of(fewer)):
                    needed = fewer
            return of(needed)
    return None


def _odds(role: Role, space: UnitSpace, found: Mapping[str, Sequence[Attribute]]) -> float:
    """How likely an attribute is to follow, as the logarithm of the odds: by what it holds and by its name."""
    name, attribute = next((name, attributes[0]) for name, attributes in found.items())
    if attribute.per_unit == 1:  # the count itself
        return 3.0 if "head" in role[1] or role[1] == "groups" else 0.5
    blocks = {cut.block for cut in space[name].cuts}
    if attribute.per_unit in blocks:
        return 1.0
    return -0.2 if "head" in role[1] or attribute.per_unit in _heads_each(blocks) else -2.0


def likeliest(odds: Mapping[Role, float]) -> Iterator[list[Role]]:
    """All sets of roles, the likeliest first: those of positive odds, then with ever more unlikely ones exchanged."""
    order = sorted(odds, key=lambda role: abs(odds[role]))
    costs = [abs(odds[role]) for role in order]
    waiting: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while waiting:  # every set of places is met once: its last is moved on, or one more is put behind it
        cost, flipped = heapq.heappop(waiting)
        yield [role for place, role in enumerate(order) if (odds[role] > 0) != (place in flipped)]
        after = flipped[-1] + 1 if flipped else 0
        if after < len(order):
            heapq.heappush(waiting, (cost + costs[after], (*flipped, after)))
            if flipped:
                heapq.heappush(waiting, (cost - costs[after - 1] + costs[after], (*flipped[:-1], after)))


def _candidates(
    model: nn.Module, space: UnitSpace, inputs: Mapping[str, object]
) -> dict[Role, dict[str, list[Attribute]]]:
    """By role and group the attributes that may follow: those that the forward reads."""
    possible: list[tuple[str, Attribute]] = []
    for group in space:
        extents: dict[str, set[int]] = defaultdict(set)
        made: dict[str, int] = defaultdict(int)  # features of a unit in all that a module makes
        for cut in group.cuts:
            path = cut.parameter.rpartition(".")[0]
            made[path] += cut.block if cut.dim == 0 or type(model.get_submodule(path)).__name__ == "Conv1D" else 0
            for near in [*_around(path), *_unflattens(model, path)]:
                extents[near].add(cut.block)
        for path, blocks in extents.items():
            module = model.get_submodule(path)
            if _of_torch(module):
                continue
            sizes = {group.size * size for size in (1, *blocks, *_heads_each(blocks), made.get(path, 1))}
            for name, place, value in _integers(module, own=bool(path)):
                hinted = group.of.attention and any(hint in name for hint in HINTS)
                if value in sizes or (hinted and value % group.size == 0):
                    possible.append((group.name, Attribute(path, name, value // group.size, place)))
    read = _read(model, inputs, {attribute.module for _, attribute in possible})
    # One integer counts the units of one group: heads before what else is as wide.
    possible.sort(key=lambda entry: not space[entry[0]].of.attention)
    owners: dict[Role, str] = {}
    for group_name, attribute in possible:
        owners.setdefault(_held(attribute), group_name)
    found: dict[Role, dict[str, list[Attribute]]] = defaultdict(lambda: defaultdict(list))
    for group_name, attribute in possible:
        if (attribute.module, attribute.name) in read and owners[_held(attribute)] == group_name:
            role = (pattern(attribute.module), attribute.name, attribute.place)
            found[role][group_name].append(attribute)
    return found


def _heads_each(blocks: Collection[int]) -> set[int]:
    """How many heads may be one unit, with one head of keys among them: by the features of both."""
    return {large // small for small, large in itertools.permutations(blocks, 2) if large % small == 0}


def _held(attribute: Attribute) -> Role:
    """The module, the name and the place of what an attribute holds."""
    return attribute.module, attribute.name, attribute.place


def _unflattens(model: nn.Module, path: str) -> list[str]:
    """The modules beside one that make parts of an axis of what it makes."""
    parent = path.rpartition(".")[0]
    beside = model.get_submodule(parent).named_children()
    return [f"{parent}.{name}".lstrip(".") for name, module in beside if isinstance(module, nn.Unflatten)]


def _of_torch(module: nn.Module) -> bool:
    """Whether its forward counts nothing by integers that may follow."""
    plain = type(module).__module__.startswith("torch.nn") and not isinstance(module, COUNTING)
    return plain or isinstance(module, TWINS)


def _integers(module: nn.Module, own: bool) -> Iterator[tuple[str, int | None, int]]:
    """The positive integers that a module holds: by name, in tuples by place, and in its settings by both names.

    Args:
        own: look into its settings; those of a whole network are what it is saved with.
    """
    for name, value in vars(module).items():
        if _counts(value):
            yield name, None, value
        elif isinstance(value, (tuple, list)) and value and all(map(_counts, value)):
            yield from ((name, place, entry) for place, entry in enumerate(value))
        elif is_settings(value) and own:
            yield from ((f"{name}.{key}", None, entry) for key, entry in vars(value).items() if _counts(entry))


def _counts(value: object) -> bool:
    return type(value) is int and value > 0


def _read(model: nn.Module, inputs: Mapping[str, object], paths: Iterable[str]) -> set[tuple[str, str]]:
    """Which attributes of some modules, and of their settings, one forward reads."""
    seen, unseen = set[tuple[str, str]](), set[tuple[str, str]]()
    watched: list[tuple[object, type]] = []
    owners: dict[int, list[str]] = defaultdict(list)

    def watch(holder: object, prefix: str, path: str) -> None:
        owners[id(holder)].append(path)
        if len(owners[id(holder)]) == 1:
            kind: Foreign = type(holder)

            names = getattr(kind, "attribute_map", {})  # under which transformers keeps settings

            def reading(self: object, name: str) -> Any:
                seen.update((owner, prefix + names.get(name, name)) for owner in owners[id(self)])
                return kind.__getattribute__(self, name)

            members = {"__getattribute__": reading, "__module__": kind.__module__}
            try:
                holder.__class__ = type(kind.__name__, (kind,), members)
            except TypeError:  # a class that is made in C: what it holds may all be read
                unseen.update((path, prefix + entry) for entry in vars(holder))
            else:
                watched.append((holder, kind))

    for path in paths:
        module = model.get_submodule(path)
        for name, value in list(vars(module).items()):
            if is_settings(value):
                watch(value, f"{name}.", path)
        watch(module, "", path)
    try:
        with inference_mode_of(model):
            seen.clear()
            _outputs(model, inputs)
    finally:
        for holder, kind in watched:
            holder.__class__ = kind
    return seen | unseen


def _around(path: str) -> list[str]:
    """A module and those around it, up to an entry of a list."""
    found = [path]
    while path and not re.search(r"(^|\.)\d+$", path):
        path = path.rpartition(".")[0]
        found.append(path)
    return found


def _with(space: UnitSpace, chosen: Chosen) -> UnitSpace:
    return dataclasses.replace(space, groups=tuple(_counted(group, chosen.get(group.name, ())) for group in space))


def _counted(group: UnitGroup, attributes: Sequence[Attribute]) -> UnitGroup:
    """A depth-wise convolution of one channel would be taken for an ordinary one: two stay."""
    depthwise = any(attribute.name == "groups" for attribute in attributes)
    return dataclasses.replace(group, attributes=tuple(attributes), min_keep=2 if depthwise else group.multiple)


def _attributes(space: UnitSpace) -> Chosen:
    return {group.name: group.attributes for group in space}
