"""Large networks: what a forward remembers is tried on one block of every kind, not on copies of the whole.

On the meta device a block gets random weights and inputs; all else takes no memory.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..running.modules import call, device_of, hooks, inference_mode_of
from ..space.units import UnitGroup, UnitSpace, lies_in, pattern
from ..support.untyped import Arguments, Hook
from .absences import with_absences
from .remembered import shaken, single, with_attributes

STEP = 7  # places by which one row of a weight is moved against the one before
OUTSIDE = "the network is large, and it lies in no block"
Shape = tuple[object, ...]


def without_masks(inputs: Mapping[str, object]) -> Arguments:
    """Inputs without values; what makes masks of them asks for values, and nothing is masked."""
    return {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if "mask" not in name
    }


def by_blocks(
    model: nn.Module, space: UnitSpace, inputs: Mapping[str, object], parts: bool = False
) -> tuple[UnitSpace, dict[str, str]]:
    """As `remembered.with_attributes`, and for `parts` as `absences.with_absences`, of one block of every kind."""
    inside: dict[str, list[UnitGroup]] = {block: [] for block in space.body}
    whole: dict[str, str] = {}
    for group in space:
        block = next((block for block in inside if _lies(group, block)), None)
        if block is None:
            whole[group.name] = OUTSIDE
        else:
            inside[block].append(group)
    kinds: dict[Shape, list[str]] = {}
    for block, groups in inside.items():
        if groups:
            kinds.setdefault((pattern(block), *(_shape(group, block) for group in groups)), []).append(block)
    if not kinds:  # no lists of blocks
        return with_attributes(shaken(model), space, {name: single(value) for name, value in inputs.items()})
    given = _given(model, [blocks[0] for blocks in kinds.values()], inputs)
    found: dict[str, UnitGroup] = {}
    for blocks in kinds.values():
        first = blocks[0]
        part = dataclasses.replace(space, groups=tuple(_inside(group, first) for group in inside[first]))
        module = model.get_submodule(first)
        trial = _drawn(module) if device_of(module).type == "meta" else shaken(module)
        kept, reasons = with_attributes(trial, part, given[first])
        kept = with_absences(trial, kept, given[first]) if parts else kept
        for block in blocks:
            for group, tried in zip(inside[block], part, strict=True):
                if tried.name in reasons:
                    whole[group.name] = reasons[tried.name]
                else:
                    found[group.name] = _tried(group, kept[tried.name], block)
    left = tuple(found[group.name] for group in space if group.name in found)
    return dataclasses.replace(space, groups=left), whole


def _drawn(block: nn.Module) -> nn.Module:
    """A copy of a block without values that has random ones, which all its weights share: it takes little memory."""
    tensors = {id(value): value for value in (*block.parameters(), *block.buffers())}
    sizes = [value.shape[:1].numel() * STEP + value.numel() // max(len(value), 1) for value in tensors.values()]
    pool = torch.randn(max(sizes), generator=torch.Generator().manual_seed(0))
    pool *= max(value[0].numel() for value in tensors.values()) ** -0.5
    copies: dict[int, object] = {}
    for key, value in tensors.items():
        strides = [STEP, *torch.empty(value.shape[1:], device="meta").stride()][: value.dim()]
        drawn = torch.as_strided(pool, value.shape, strides) if value.dim() else torch.ones(())
        copies[key] = nn.Parameter(drawn) if isinstance(value, nn.Parameter) else drawn.clone()
    return copy.deepcopy(block, copies).eval()


def _lies(group: UnitGroup, block: str) -> bool:
    names = [cut.parameter for cut in group.cuts] + [gate.module for gate in group.gates]
    names += [argument.module for argument in group.arguments]
    return not group.shared and all(lies_in(name, block) for name in names)


def _shape(group: UnitGroup, block: str) -> Shape:
    """What groups of alike blocks have in common."""
    inner = _inside(group, block)
    return inner.kind, inner.size, inner.cuts


def _inside(group: UnitGroup, block: str) -> UnitGroup:
    """A group by the paths of its parts inside its block."""

    def path(name: str) -> str:
        return name[len(block) :].lstrip(".")

    return dataclasses.replace(
        group,
        cuts=tuple(dataclasses.replace(cut, parameter=path(cut.parameter)) for cut in group.cuts),
        gates=tuple(dataclasses.replace(gate, module=path(gate.module)) for gate in group.gates),
        arguments=tuple(dataclasses.replace(one, module=path(one.module)) for one in group.arguments),
        twins=tuple(map(path, group.twins)),
    )


def _tried(group: UnitGroup, tried: UnitGroup, block: str) -> UnitGroup:
    """A group with the counts and the twins that were right for one like it, inside its own block."""

    def path(name: str) -> str:
        return f"{block}.{name}".rstrip(".")

    attributes = tuple(dataclasses.replace(one, module=path(one.module)) for one in tried.attributes)
    twins = tuple(map(path, tried.twins))
    absence = tried.absence and dataclasses.replace(
        tried.absence, module=path(tried.absence.module), consumer=path(tried.absence.consumer)
    )
    return dataclasses.replace(group, attributes=attributes, twins=twins, min_keep=tried.min_keep, absence=absence)


def _given(model: nn.Module, blocks: Sequence[str], inputs: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """What the first run of each block is called with, by name."""
    given: dict[str, dict[str, object]] = {}

    def note(block: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            names = inspect.signature(module.forward).parameters
            named = dict(zip(names, args, strict=False)) | kwargs
            given.setdefault(
                block, {name: tree_map(_valued, value) for name, value in named.items() if _plain(value)}
            )

        return hook

    notes = (model.get_submodule(block).register_forward_pre_hook(note(block), with_kwargs=True) for block in blocks)
    with hooks(*notes), inference_mode_of(model), torch.no_grad():
        call(model, inputs)
    return given


def _plain(value: object) -> bool:
    """Whether an argument is the same at every call; a cache of keys and values is not."""
    return all(isinstance(leaf, (Tensor, bool, int, float, str, type(None))) for leaf in tree_leaves(value))


def _valued(value: object) -> object:
    """A tensor in single precision; one without values with random ones, places of positions in their order."""
    if not isinstance(value, Tensor) or not value.is_meta:
        return single(value.clone()) if isinstance(value, Tensor) else value
    if value.is_floating_point():
        return torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    if value.dtype == torch.bool:
        return torch.ones(value.shape, dtype=torch.bool)
    return torch.arange(value.shape[-1]).expand(value.shape).contiguous() if value.dim() else torch.zeros(())
