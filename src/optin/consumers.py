"""A consumer as a linear map on rows: what statistics, curves and the refit see of it.

A linear map has one row per position as it is, the examples first. A convolution reads unfolded patches, channel by
channel, and makes one row per position of its output map; of large maps a regular part of the positions is enough.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .units import Gate

POSITIONS = 256  # of a map at most, per example


def matrix(module: nn.Module) -> Float[Tensor, "out features"]:
    """The weights of the map."""
    weight: Any = module.weight
    flat: Tensor = weight.detach().flatten(1)
    return flat.mT if stored_transposed(module) else flat


def stored_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored as (features, out), as in the Conv1D of GPT-2."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def out_axis(module: nn.Module) -> int:
    """The axis of the stored weight that runs over the outputs."""
    return 1 if stored_transposed(module) else 0


def features_per_unit(module: nn.Module, gate: Gate) -> int:
    """How many consecutive features of a row belong to a unit."""
    weight: Any = module.weight
    return gate.block * int(weight[0, 0].numel())


def rows_read(module: nn.Module, gate: Gate, x: Tensor) -> Float[Tensor, "batch *position features"]:
    """What the map reads, a row per position."""
    if not isinstance(module, nn.Conv2d):
        return x.transpose(0, gate.examples)
    step = _step(_output_size(module, x))
    stride = tuple(step * size for size in module.stride)
    return F.unfold(x, module.kernel_size, module.dilation, _padding(module), stride).mT


def rows_made(module: nn.Module, gate: Gate, y: Tensor) -> Float[Tensor, "batch *position out"]:
    """What the map makes, or a gradient of it, at the same positions."""
    if not isinstance(module, nn.Conv2d):
        return y.transpose(0, gate.examples)
    step = _step(y.shape[2:])
    return y[:, :, ::step, ::step].flatten(2).mT


def without_units(
    module: nn.Module, gate: Gate, x: Tensor, y: Tensor, units: list[int]
) -> Float[Tensor, "unit_batch ..."]:
    """What the map makes without each of some units, y - W_u x_u, one after the other along the batch."""
    weight = module.weight if isinstance(module, nn.Conv2d) else matrix(module)
    index = torch.tensor(units, device=x.device)[:, None] * gate.block
    index = index + torch.arange(gate.block, device=x.device)
    if isinstance(module, nn.Conv2d):
        chosen = weight[:, index.flatten()].transpose(0, 1).flatten(0, 1).unsqueeze(1)
        lost = F.conv2d(
            x[:, index.flatten()], chosen, None, module.stride, module.padding, module.dilation, groups=len(units)
        )
        rest: Tensor = (y.unsqueeze(1) - lost.unflatten(1, (len(units), -1))).transpose(0, 1)
        return rest.flatten(0, 1)
    read = x[..., index].movedim(-2, 0).flatten(1, -2)  # (units, batch * token, block)
    lost = read @ weight[:, index].permute(1, 2, 0)  # (units, batch * token, dim)
    left: Tensor = (y.flatten(0, -2) - lost).reshape(-1, *y.shape[1:])
    return left


def scale_of(model: nn.Module, gate: Gate) -> Tensor | None:
    """What multiplies each output of a consumer before the residual is added."""
    if gate.scale is None:
        return None
    try:
        return model.get_parameter(gate.scale).detach()
    except AttributeError:
        norm: Any = model.get_submodule(gate.scale)
        factor = 1 if norm.weight is None else norm.weight.detach()
        return torch.as_tensor(factor / (norm.running_var + norm.eps).sqrt())


def add(model: nn.Module, gate: Gate, weight: Tensor, shift: Tensor) -> None:
    """Add to a consumer in place; a shift goes into its bias, or into what is subtracted behind it."""
    module: Any = model.get_submodule(gate.module)
    with torch.no_grad():
        stored = weight.mT if stored_transposed(module) else weight
        module.weight += stored.to(module.weight.dtype).reshape(module.weight.shape)
        if module.bias is not None:
            module.bias += shift.to(module.bias.dtype)
        elif gate.shift is not None:
            buffer = model.get_buffer(gate.shift)
            buffer -= shift.to(buffer.dtype)


def can_shift(module: nn.Module, gate: Gate) -> bool:
    """Whether there is a place for a constant."""
    return module.bias is not None or gate.shift is not None


def _output_size(module: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    padding = _padding(module)
    return tuple(
        (size + 2 * padding[axis] - module.dilation[axis] * (module.kernel_size[axis] - 1) - 1) // module.stride[axis]
        + 1
        for axis, size in enumerate(x.shape[2:])
    )


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        pairs = zip(module.kernel_size, module.dilation, strict=True)
        return tuple(dilation * (size - 1) // 2 if module.padding == "same" else 0 for size, dilation in pairs)
    return module.padding


def _step(size: tuple[int, ...]) -> int:
    return math.ceil(math.sqrt(math.prod(size) / POSITIONS))
