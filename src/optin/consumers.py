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


def is_convolution(module: nn.Module) -> bool:
    """Whether a consumer reads patches: channels along axis 1."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d))


def rows_read(module: nn.Module, gate: Gate, x: Tensor) -> Float[Tensor, "batch *position features"]:
    """What the map reads, a row per position."""
    if not is_convolution(module):
        return x.transpose(0, gate.examples)
    kernel, stride, padding, dilation = _sizes(module)
    x = _as_maps(x)
    step = _step(_output_size(module, x))
    return F.unfold(x, kernel, dilation, padding, tuple(step * size for size in stride)).mT


def rows_made(module: nn.Module, gate: Gate, y: Tensor) -> Float[Tensor, "batch *position out"]:
    """What the map makes, or a gradient of it, at the same positions."""
    if not is_convolution(module):
        return y.transpose(0, gate.examples)
    y = _as_maps(y)
    step = _step(y.shape[2:])
    return y[:, :, ::step, ::step].flatten(2).mT


def without_units(
    module: nn.Module, gate: Gate, x: Tensor, y: Tensor, units: list[int]
) -> Float[Tensor, "unit_batch ..."]:
    """What the map makes without each of some units, y - W_u x_u, one after the other along the batch."""
    index = gate.start + torch.tensor(units, device=x.device)[:, None] * gate.block
    index = index + torch.arange(gate.block, device=x.device)
    if is_convolution(module):
        _, stride, padding, dilation = _sizes(module)
        weight: Any = module.weight
        chosen = _as_maps(weight[:, index.flatten()]).transpose(0, 1).flatten(0, 1).unsqueeze(1)
        groups = len(units)
        lost = F.conv2d(_as_maps(x)[:, index.flatten()], chosen, None, stride, padding, dilation, groups)
        rest: Tensor = y.unsqueeze(1) - lost.unflatten(1, (groups, -1)).reshape(len(y), groups, *y.shape[1:])
        return rest.transpose(0, 1).flatten(0, 1)
    read = x[..., index].movedim(-2, 0).flatten(1, -2)  # (units, batch * token, block)
    lost = read @ matrix(module)[:, index].permute(1, 2, 0)  # (units, batch * token, dim)
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


Pair = tuple[int, int]


def _as_maps(x: Tensor) -> Tensor:
    """A series as a map of one row."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def _sizes(module: Any) -> tuple[Pair, Pair, Pair, Pair]:
    """Kernel, stride, padding and dilation along height and width; a series has a height of one."""
    if isinstance(module.padding, str):
        pairs = zip(module.kernel_size, module.dilation, strict=True)
        padding = tuple(dilation * (size - 1) // 2 if module.padding == "same" else 0 for size, dilation in pairs)
    else:
        padding = module.padding
    sizes = ((module.kernel_size, 1), (module.stride, 1), (padding, 0), (module.dilation, 1))
    return tuple(size if len(size) == 2 else (other, *size) for size, other in sizes)  # type: ignore[return-value]


def _output_size(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    kernel, stride, padding, dilation = _sizes(module)
    return tuple(
        (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis, size in enumerate(x.shape[2:])
    )


def _step(size: tuple[int, ...]) -> int:
    return math.ceil(math.sqrt(math.prod(size) / POSITIONS))
