"""Remove for good: cut the tensors of a network down to the units that a plan keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..space.plans import Plan
from ..space.removal import Argument, Attribute
from ..space.units import UnitGroup, UnitSpace
from ..support.untyped import Arguments, Foreign
from .absent import can_pass_over, pass_over
from .modules import forget, tensor_of
from .twins import become_twin, twin_of

# Sizes that modules remember beside their tensors: attribute -> (parameter, dimension).
_REMEMBERED: dict[type[nn.Module], dict[str, int]] = {
    nn.Linear: {"out_features": 0, "in_features": 1},
    nn.Embedding: {"num_embeddings": 0, "embedding_dim": 1},
    nn.Conv1d: {"out_channels": 0, "in_channels": 1},
    nn.Conv2d: {"out_channels": 0, "in_channels": 1},
    nn.Conv3d: {"out_channels": 0, "in_channels": 1},
    nn.ConvTranspose1d: {"out_channels": 1, "in_channels": 0},
    nn.ConvTranspose2d: {"out_channels": 1, "in_channels": 0},
    nn.modules.batchnorm._BatchNorm: {"num_features": 0},
}


def shrink(model: nn.Module, space: UnitSpace, plan: Plan) -> None:
    """Cut `model` in place to the units kept by `plan`.

    The result computes what `gated` computes with the plan's masks. A plan that keeps everything changes
    nothing. Works on a network without weights (meta device), which is how checkpoints are loaded.

    Raises:
        CheckpointError: the plan does not fit the network.
    """
    plan.validate(space)
    changed = [group for group in space if len(plan.keep[group.name]) < group.size]
    kept: dict[tuple[str, int], Tensor] = {}
    for group in changed:
        removed = _removed(group, plan)
        for cut in group.cuts:
            parameter = tensor_of(model, cut.parameter)
            key = (cut.parameter, cut.dim)
            # Indices live on the CPU even when the network is built on the meta device.
            mask = kept.setdefault(key, torch.ones(parameter.shape[cut.dim], dtype=torch.bool, device="cpu"))
            if cut.last(group.size) >= mask.numel():
                raise CheckpointError(f"{cut.parameter!r} is too small for {group.size} units of {group.name!r}.")
            mask[cut.indices(group.size)[removed].flatten()] = False
    for (name, dim), mask in kept.items():
        _cut(model, name, dim, mask)
    forget(model)
    for group in changed:
        _adjust(model, group, plan.keep[group.name])


def _removed(group: UnitGroup, plan: Plan) -> Tensor:
    removed = torch.ones(group.size, dtype=torch.bool, device="cpu")
    removed[torch.tensor(plan.keep[group.name], dtype=torch.long, device="cpu")] = False
    return removed


def _cut(model: nn.Module, name: str, dim: int, mask: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = tensor_of(model, name)
    index = mask.nonzero().squeeze(1).to(old.device)
    with torch.no_grad():
        new = old.index_select(dim, index).contiguous()
    parameter = isinstance(old, nn.Parameter)
    setattr(module, leaf, nn.Parameter(new, requires_grad=old.requires_grad) if parameter else new)
    for kind, attributes in _REMEMBERED.items():
        if isinstance(module, kind) and leaf == "weight":
            for attribute, axis in attributes.items():
                if axis == dim:
                    setattr(module, attribute, new.shape[axis])


def _adjust(model: nn.Module, group: UnitGroup, units: tuple[int, ...]) -> None:
    if group.absence is not None and not units:
        pass_over(model, group.absence)
        return
    for attribute in group.attributes:
        write_count(model, attribute, len(units) * attribute.per_unit)
        module: object = model.get_submodule(attribute.module)
        if attribute.name == "groups" and isinstance(module, nn.modules.conv._ConvNd):
            module.in_channels = module.weight.shape[1] * module.groups
    for path in group.twins:
        become_twin(model, path, group.size, len(units), max(cut.block for cut in group.cuts))
    for argument in group.arguments:
        select = _Select(argument, units)
        model.get_submodule(argument.module).register_forward_pre_hook(select, with_kwargs=True)


class _Select:
    """Forward pre-hook: pick the kept units' slices of an argument computed for all of them."""

    def __init__(self, argument: Argument, units: Iterable[int]) -> None:
        self.argument = argument
        self.units = tuple(units)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        name, position = self.argument.name, self.argument.position
        if name in kwargs:
            kwargs = {**kwargs, name: self._select(kwargs[name])}
        elif len(args) > position:
            args = (*args[:position], self._select(args[position]), *args[position + 1 :])
        return args, kwargs

    def _select(self, value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value.index_select(self.argument.dim, torch.tensor(self.units, device=value.device))


OWN = "_optin_own"  # marks settings that one module alone holds


def is_settings(value: object) -> bool:
    """Whether an attribute of a module holds plain values by name, as a configuration does."""
    plain = not isinstance(value, (nn.Module, Tensor, type, dict, Enum)) and not callable(value)
    return plain and any(type(entry) is int for entry in getattr(value, "__dict__", {}).values())


def read_count(model: nn.Module, attribute: Attribute) -> Foreign:
    """What an attribute holds now; None where its module has no such attribute of its own."""
    holder, leaf = _holder(model, attribute)
    value = getattr(holder, "__dict__", {}).get(leaf)
    if attribute.place is None:
        return value
    return value[attribute.place] if isinstance(value, (tuple, list)) and attribute.place < len(value) else None


def write_count(model: nn.Module, attribute: Attribute, value: object) -> None:
    """Have an attribute hold another integer."""
    holder, leaf = _holder(model, attribute, own=True)
    if attribute.place is not None:
        old = getattr(holder, leaf)
        value = type(old)([*old[: attribute.place], value, *old[attribute.place + 1 :]])
    setattr(holder, leaf, value)


def _holder(model: nn.Module, attribute: Attribute, own: bool = False) -> tuple[object, str]:
    """The module, or the settings that it holds; those that others hold too are exchanged for a copy."""
    module = model.get_submodule(attribute.module)
    settings, dot, leaf = attribute.name.rpartition(".")
    if not dot:
        return module, leaf
    holder = vars(module).get(settings)
    if not is_settings(holder):
        return None, leaf
    if own and not getattr(holder, OWN, False):
        holder = copy.copy(holder)
        setattr(holder, OWN, True)
        setattr(module, settings, holder)
    return holder, leaf


def fits(model: nn.Module, space: UnitSpace) -> bool:
    """Whether a network has all that a description names: its modules may be called otherwise by another version."""
    tensors = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    named = [cut.parameter for group in space for cut in group.cuts]
    held = [attribute.module for group in space for attribute in group.attributes]
    held += [argument.module for group in space for argument in group.arguments]
    held += [path for group in space for path in group.twins]
    held += [path for group in space if group.absence for path in (group.absence.module, group.absence.consumer)]
    return tensors.issuperset(named) and modules.issuperset(held)


def check_description(model: nn.Module, space: UnitSpace) -> None:
    """Refuse a description that reaches anything but shapes and counts of a network: its author need not be a friend.

    Raises:
        CheckpointError: names what it reaches for.
    """
    shapes = {name: tensor.shape for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    for group in space:
        for cut in group.cuts:
            shape = shapes.get(cut.parameter)
            if shape is None or cut.dim >= len(shape) or cut.last(group.size) >= shape[cut.dim]:
                raise CheckpointError(
                    f"the description cuts {cut.parameter!r:.80} where the network has nothing: it is for the dense "
                    "network, with all its units."
                )
        for attribute in group.attributes:
            if read_count(model, attribute) != group.size * attribute.per_unit:
                raise CheckpointError(
                    f"the description sets {attribute.name!r:.40} of {attribute.module!r:.80}, which is no count of "
                    f"the units of {group.name!r:.80}."
                )
        if group.absence is not None and not can_pass_over(model, group, group.absence):
            raise CheckpointError(f"the description passes over {group.absence.module!r:.80}, which is no part.")
        for path in group.twins:
            if type(model.get_submodule(path)).__module__.startswith("torch.") and not twin_of(
                model.get_submodule(path)
            ):
                raise CheckpointError(f"the description exchanges {path!r:.80}, for which there is no twin.")
    if space.tokens is not None:
        inside = {space.tokens.keys, space.tokens.attention}
        wanted = {f"{block}.{part}" for block in space.tokens.blocks for part in inside}
        wanted |= {space.tokens.averaged} - {None}  # type: ignore[arg-type]
        if missing := sorted(wanted - {name for name, _ in model.named_modules()}):
            raise CheckpointError(f"the description merges tokens at {missing[0]!r:.80}, which the network has not.")
