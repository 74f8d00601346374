"""Remove softly, for a while: multiply what each consumer reads.

    with gated(model, space, {"encoder.layer.0.output.dense.heads": mask}):
        model(**inputs)

A zero is exactly a removal, since a consumer is linear in its input; a one changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.plans import Plan
from ..space.units import Gate, UnitSpace
from .modules import first_of, hooks, with_first


@contextlib.contextmanager
def gated(model: nn.Module, space: UnitSpace, multipliers: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the units of the named groups, until the block ends.

    Args:
        multipliers: per group a tensor of shape (size,), or (batch, size) for one mask per example.
    """
    with hooks(
        *(
            model.get_submodule(gate.module).register_forward_pre_hook(_Multiply(gate, multiplier), with_kwargs=True)
            for name, multiplier in multipliers.items()
            for gate in space[name].gates
        )
    ):
        yield


def masks(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """The plan as multipliers: one for units that stay, zero for units that go."""
    reference = next(model.parameters())
    result = {}
    for name, units in plan.keep.items():
        mask = torch.zeros(plan.sizes[name], dtype=reference.dtype, device=reference.device)
        mask[list(units)] = 1
        result[name] = mask
    return result


class _Multiply:
    """Forward pre-hook: scale the consumer's first argument."""

    def __init__(self, gate: Gate, multiplier: Tensor) -> None:
        self.dim, self.examples, self.start = gate.dim, gate.examples, gate.start
        self.multiplier = multiplier.repeat_interleave(gate.block, dim=-1).repeat(
            *[1] * (multiplier.dim() - 1), gate.times
        )

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        value = first_of(module, args, kwargs)
        shape = [1] * value.dim()
        shape[self.dim] = width = value.shape[self.dim]
        multiplier = self.multiplier
        if width > multiplier.shape[-1]:  # the consumer reads others beside
            multiplier = F.pad(multiplier, (self.start, width - self.start - multiplier.shape[-1]), value=1.0)
        if multiplier.dim() == 2:  # windows of one example follow each other: there may be several rows to each
            multiplier = multiplier.repeat_interleave(value.shape[self.examples] // len(multiplier), 0)
            shape[self.examples] = len(multiplier)
        return with_first(module, args, kwargs, value * multiplier.view(shape).to(value.device))
