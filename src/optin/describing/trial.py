"""One experiment: a few units of a group leave, and the shrunk network is compared with the gated one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..running.gating import gated, masks
from ..running.modules import call, device_of, inference_mode_of
from ..running.surgery import read_count, shrink, write_count
from ..running.tensors import tensors_of
from ..space.plans import Cost, Plan
from ..space.removal import Attribute
from ..space.units import UnitSpace

EQUAL = 1e-4  # of the largest output

Keep = Mapping[str, tuple[int, ...]]
Chosen = Mapping[str, Sequence[Attribute]]


class _Trial:
    """The network cut to some plans beside itself gated.

    By default these are two, half of all units and other numbers in every second group. Of groups that lie in one
    parameter every second one is cut otherwise too: what splits it must follow each.
    """

    def __init__(
        self, model: nn.Module, space: UnitSpace, inputs: Mapping[str, object], keeps: Sequence[Keep] = ()
    ) -> None:
        self.inputs = inputs
        self.cut: list[tuple[nn.Module, dict[str, int], list[Tensor]]] = []
        half = {group.name: tuple(range(0, group.size, 2)) for group in space}
        # Of two counts that follow each other one is odd and one even, and so are the dense count and one less.
        apart = {
            group.name: tuple(range(group.size - 1 if place % 2 else min((group.size + 1) // 2 + 1, group.size - 1)))
            for group, place in zip(space, _turns(space), strict=True)
        }
        for keep in keeps or (half, apart):
            plan = _plan(space, keep)
            with inference_mode_of(model), gated(model, space, masks(model, plan)):
                expected = _outputs(model, inputs)
            small = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
            shrink(small, space, plan)
            self.cut.append((small, plan.kept, expected))

    def equal(self, chosen: Chosen) -> bool:
        """Whether both compute what the gated network does."""
        return all(self._equal(chosen, *one) for one in self.cut)

    def _equal(self, chosen: Chosen, small: nn.Module, kept: Mapping[str, int], expected: Sequence[Tensor]) -> bool:
        changed: list[tuple[Attribute, int]] = []
        for name, attributes in chosen.items():
            for attribute in attributes:
                changed.append((attribute, read_count(small, attribute)))
                write_count(small, attribute, kept[name] * attribute.per_unit)
        try:
            with inference_mode_of(small), _NoEmptyAttention():
                got = _outputs(small, self.inputs)
        except Exception:  # with a wrong count a forward may fail in any way
            return False
        finally:
            for attribute, value in reversed(changed):
                write_count(small, attribute, value)
        scale = max((float(value.abs().max()) for value in expected if value.numel()), default=0.0)
        return len(got) == len(expected) and all(
            one.shape == other.shape and (not one.numel() or float((one - other).abs().max()) <= EQUAL * scale)
            for one, other in zip(expected, got, strict=True)
        )


class _NoEmptyAttention(TorchFunctionMode):
    """Refuses attention without heads, to which a wrong count may lead: torch up to 2.13 divides by their number."""

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        given = (*args, *(kwargs or {}).values())
        if func is nn.functional.scaled_dot_product_attention and any(
            isinstance(value, Tensor) and value.dim() > 2 and not value.shape[-3] for value in given
        ):
            raise ValueError("attention without heads")
        return func(*args, **(kwargs or {}))


def _turns(space: UnitSpace) -> Iterator[int]:
    """Of each group a number: that after the one before it in the same axis of a parameter, or its place."""
    latest: dict[tuple[str, int], int] = {}
    for place, group in enumerate(space):
        axes = {(cut.parameter, cut.dim) for cut in group.cuts}
        turn = max((latest[axis] + 1 for axis in axes if axis in latest), default=place)
        latest |= dict.fromkeys(axes, turn)
        yield turn


def _plan(space: UnitSpace, keep: Keep) -> Plan:
    return Plan(space.architecture, space.sizes, dict(keep), Cost(1, 1), Cost(1, 1), 1)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Mapping[str, object]) -> list[Tensor]:
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the caller's draws stay as they are
        torch.manual_seed(0)  # some draw in evaluation too
        found = [value.float() for value in tensors_of(call(model, inputs)) if value.is_floating_point()]
    return [value.nan_to_num(0, 0, 0) for value in found]  # classes that are masked; what is broken is said elsewhere
