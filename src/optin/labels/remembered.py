"""Counts that a forward remembers, found by experiment.

A module may keep the number of its heads, or of the features of all of them, as an integer. Those that equal the old
count or extent are set to the new one in turn; the choice with which the cut network computes what the gated one does
is the description. There is one choice a role: the place of a module in its block, and the attribute.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..gating import gated, masks
from ..modules import device_of, inference_mode_of
from ..plans import Cost, Plan
from ..surgery import shrink
from ..units import Attribute, UnitGroup, UnitSpace
from .outputs import tensors_of

TRIES = 48  # choices of attributes at most, for one set of groups
EQUAL = 1e-4  # of the largest output
HINTS = ("head", "size", "dim", "width", "inner", "num", "features", "channels", "nf")  # in names of extents

Role = tuple[str, str]
Chosen = Mapping[str, Sequence[Attribute]]
Choose = Callable[[nn.Module, UnitSpace, Mapping[str, Any]], Chosen | None]


def tried(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any]) -> tuple[UnitSpace, dict[str, str]]:
    """A description without the groups that compute something else once they are cut, and by name why."""
    return with_attributes(model, space, inputs, _as_described)


def with_attributes(
    model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any], choose: Choose | None = None
) -> tuple[UnitSpace, dict[str, str]]:
    """The description with the attributes that follow, and by name the reason why some groups stay whole.

    Args:
        choose: how attributes are found, by experiment if not said.
    """
    model, choose = shaken(model), choose or _choice
    inputs = {name: _single(value) for name, value in inputs.items()}
    chosen = choose(model, space, inputs)
    if chosen is not None:
        return _with(space, chosen), {}
    alike: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in space:
        alike[_place(group.name)].append(group)
    whole, groups = dict[str, str](), dict[str, UnitGroup]()
    for some in alike.values():
        part = dataclasses.replace(space, groups=tuple(some))
        chosen = choose(model, part, inputs)
        if chosen is None:
            reason = "no count that its modules remember makes the cut network compute what the gated one does"
            whole |= {group.name: reason for group in some}
        else:
            groups |= {group.name: group for group in _with(part, chosen)}
    kept = dataclasses.replace(space, groups=tuple(groups[group.name] for group in space if group.name in groups))
    if groups and not _Trial(model, kept, inputs).equal(_attributes(kept)):
        return dataclasses.replace(space, groups=()), dict.fromkeys(
            space.sizes, "cut together they compute something else"
        )
    return kept, whole


def shaken(model: nn.Module) -> nn.Module:
    """A copy whose weights are large enough for a wrong cut to show."""
    trial, generator = copy.deepcopy(model).float().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trial.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    return trial


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _place(name: str) -> str:
    return re.sub(r"\b\d+\b", "N", name)


def _choice(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any]) -> Chosen | None:
    """The fewest attributes with which shrunk equals gated."""
    candidates = _candidates(model, space)
    trial = _Trial(model, space, inputs)

    def of(roles: Iterable[Role]) -> dict[str, list[Attribute]]:
        chosen: dict[str, list[Attribute]] = defaultdict(list)
        for role in roles:
            for group, attributes in candidates[role].items():
                chosen[group] += attributes
        return chosen

    roles = sorted(candidates)
    choices = itertools.chain.from_iterable(itertools.combinations(roles, out) for out in range(len(roles) + 1))
    for left_out in itertools.islice(choices, TRIES):
        needed = [role for role in roles if role not in left_out]
        if trial.equal(of(needed)):
            for role in tuple(needed):
                fewer = [other for other in needed if other != role]
                if trial.equal(of(fewer)):
                    needed = fewer
            return of(needed)
    return None


def _as_described(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any]) -> Chosen | None:
    with contextlib.suppress(Exception):  # with a size that it does not expect a forward may fail in any way
        return _attributes(space) if _Trial(model, space, inputs).equal({}) else None
    return None


def _candidates(model: nn.Module, space: UnitSpace) -> dict[Role, dict[str, list[Attribute]]]:
    """By role and group the attributes that may follow."""
    found: dict[Role, dict[str, list[Attribute]]] = defaultdict(lambda: defaultdict(list))
    for group in space:
        extents: dict[str, set[int]] = defaultdict(set)
        made: dict[str, int] = defaultdict(int)  # features of a unit in all that a module makes
        for cut in group.cuts:
            path = cut.parameter.rpartition(".")[0]
            made[path] += cut.block if cut.dim == 0 or type(model.get_submodule(path)).__name__ == "Conv1D" else 0
            for around in _around(path):
                extents[around].add(cut.block)
        for path, blocks in extents.items():
            module = model.get_submodule(path)
            if type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.modules.conv._ConvNd):
                continue
            for name, value in vars(module).items():
                sizes = {group.size * size for size in (1, *blocks, made.get(path, 1))}
                hinted = group.kind == "head" and any(hint in name for hint in HINTS)
                if type(value) is int and value and (value in sizes or (hinted and value % group.size == 0)):
                    attribute = Attribute(path, name, value // group.size)
                    found[_place(path), name][group.name].append(attribute)
    return found


def _around(path: str) -> list[str]:
    """A module and those around it, up to an entry of a list."""
    found = [path]
    while path and not re.search(r"(^|\.)\d+$", path):
        path = path.rpartition(".")[0]
        found.append(path)
    return found


def _with(space: UnitSpace, chosen: Chosen) -> UnitSpace:
    groups = tuple(dataclasses.replace(group, attributes=tuple(chosen.get(group.name, ()))) for group in space)
    return dataclasses.replace(space, groups=groups)


def _attributes(space: UnitSpace) -> Chosen:
    return {group.name: group.attributes for group in space}


class _Trial:
    """The network cut twice, to half of all units and to all but one, beside itself gated."""

    def __init__(self, model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.cut: list[tuple[nn.Module, dict[str, int], list[Tensor]]] = []
        half = {group.name: tuple(range(0, group.size, 2)) for group in space}
        for keep in (half, {group.name: tuple(range(group.size - 1)) for group in space}):
            plan = _plan(space, keep)
            with inference_mode_of(model), gated(model, space, masks(model, plan)):
                expected = _outputs(model, inputs)
            small = copy.deepcopy(model)
            shrink(small, space, plan)
            self.cut.append((small, plan.kept, expected))

    def equal(self, chosen: Chosen) -> bool:
        """Whether both compute what the gated network does."""
        return all(self._equal(chosen, *one) for one in self.cut)

    def _equal(self, chosen: Chosen, small: nn.Module, kept: Mapping[str, int], expected: Sequence[Tensor]) -> bool:
        changed: list[tuple[nn.Module, str, int]] = []
        for name, attributes in chosen.items():
            for attribute in attributes:
                module = small.get_submodule(attribute.module)
                changed.append((module, attribute.name, getattr(module, attribute.name)))
                setattr(module, attribute.name, kept[name] * attribute.per_unit)
        try:
            with inference_mode_of(small):
                got = _outputs(small, self.inputs)
        except Exception:  # with a wrong count a forward may fail in any way
            return False
        finally:
            for module, attribute_name, value in reversed(changed):
                setattr(module, attribute_name, value)
        scale = max((float(value.abs().max()) for value in expected if value.numel()), default=0.0)
        return len(got) == len(expected) and all(
            one.shape == other.shape and (not one.numel() or float((one - other).abs().max()) <= EQUAL * scale)
            for one, other in zip(expected, got, strict=True)
        )


def _plan(space: UnitSpace, keep: Mapping[str, tuple[int, ...]]) -> Plan:
    return Plan(space.architecture, space.sizes, dict(keep), Cost(1, 1), Cost(1, 1), 1)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the caller's draws stay as they are
        torch.manual_seed(0)  # some draw in evaluation too
        found = [value.float() for value in tensors_of(model(**inputs)) if value.is_floating_point()]
    return [value.nan_to_num(0, 0, 0) for value in found]  # classes that are masked; what is broken is said elsewhere
