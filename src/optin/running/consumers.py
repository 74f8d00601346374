"""A consumer as a linear map on rows: what statistics, curves and the refit see of it.

A linear map has one row per position as it is, the examples first. A convolution reads unfolded patches, channel by
channel, and makes one row per position of its output map; of large maps a regular part of the positions is enough. A
transposed convolution is a plain one, its kernel turned round, of a map with zeros between its entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.units import Gate
from ..support.untyped import Foreign

POSITIONS = 256  # of a map at most, per example
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def matrix(module: nn.Module) -> Float[Tensor, "out features"]:
    """The weights of the map."""
    weight: Foreign = module.weight
    if stored_transposed(module):
        turned: Tensor = weight.detach().mT
        return turned
    return _kernel(module).flatten(1)


def stored_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored as (features, out), as in the Conv1D of GPT-2."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is a transposed convolution."""
    return isinstance(module, TRANSPOSED)


def out_axis(module: nn.Module) -> int:
    """The axis of the stored weight that runs over the outputs."""
    return 1 if stored_transposed(module) or is_transposed(module) else 0


def features_per_unit(module: nn.Module, gate: Gate) -> int:
    """How many features of a row belong to a unit."""
    return gate.block * gate.times * _each(module)


def features_of_units(module: nn.Module, gate: Gate, size: int) -> Tensor:
    """Which features of a row belong to each of `size` units: shape (unit, feature)."""
    return gate.features(size, _each(module))


def _each(module: nn.Module) -> int:
    """Features of a row to a channel that is read."""
    weight: Foreign = module.weight
    return int(weight[0, 0].numel())


def is_convolution(module: nn.Module) -> bool:
    """Whether a consumer reads patches: channels along axis 1."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED))


def rows_read(module: nn.Module, gate: Gate, x: Tensor) -> Float[Tensor, "batch *position features"]:
    """What the map reads, a row per position."""
    if not is_convolution(module):
        return x.transpose(0, gate.examples)
    plain = _plain(module, x)
    step = _step(module, plain.made)
    stride = tuple(step * size for size in plain.stride)
    if len(stride) == 2:
        return F.unfold(plain.x, plain.kernel, plain.dilation, plain.padding, stride).mT
    return _patches(plain, stride)


def rows_made(module: nn.Module, gate: Gate, y: Tensor) -> Float[Tensor, "batch *position out"]:
    """What the map makes, or a gradient of it, at the same positions."""
    if not is_convolution(module):
        return y.transpose(0, gate.examples)
    y = _as_maps(module, y)
    step = _step(module, y.shape[2:])
    return y[(slice(None), slice(None), *[slice(None, None, step)] * (y.dim() - 2))].flatten(2).mT


def without_units(
    module: nn.Module, gate: Gate, size: int, x: Tensor, y: Tensor, units: list[int]
) -> Float[Tensor, "unit_batch ..."]:
    """What the map makes without each of some units, y - W_u x_u, one after the other along the batch."""
    index = gate.features(size)[units].to(x.device)
    if is_convolution(module):
        plain, groups = _plain(module, x), len(units)
        kernel = _as_maps(module, _kernel(module))[:, index.flatten()]
        chosen = kernel.unflatten(1, index.shape).transpose(0, 1).flatten(0, 1)  # (units * out, block, *kernel)
        convolve = F.conv2d if len(plain.stride) == 2 else F.conv3d
        read = plain.x[:, index.flatten()]
        lost = convolve(read, chosen, None, plain.stride, plain.padding, plain.dilation, groups)
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
        return model.get_parameter(gate.scale).detach().flatten()  # of maps it may have axes for height and width
    except AttributeError:
        norm: Foreign = model.get_submodule(gate.scale)
        factor = 1 if norm.weight is None else norm.weight.detach()
        return torch.as_tensor(factor / (norm.running_var + norm.eps).sqrt())


def add(model: nn.Module, gate: Gate, weight: Tensor, shift: Tensor) -> None:
    """Add to a consumer in place; a shift goes into its bias, or into what is subtracted behind it."""
    module: Foreign = model.get_submodule(gate.module)
    with torch.no_grad():
        if is_convolution(module):
            stored = _turned(module, weight.reshape(_kernel(module).shape))
        else:
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


Sizes = tuple[int, ...]


@dataclass(frozen=True)
class _Plain:
    """A plain convolution that makes what a consumer does, along two or three axes.

    Attributes:
        x: what it reads.
        made: the size of what it makes.
    """

    x: Tensor
    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes

    @property
    def made(self) -> Sizes:
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                self.x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )


def _plain(module: Foreign, x: Tensor) -> _Plain:
    kernel, stride, padding, dilation = module.kernel_size, module.stride, module.padding, module.dilation
    if is_transposed(module):
        x = _stuffed(x, stride, module.output_padding)
        stride = (1,) * len(kernel)
        padding = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True))
        if min(padding) < 0:
            x = F.pad(x, [side for p in reversed(padding) for side in (min(p, 0),) * 2])
            padding = tuple(max(p, 0) for p in padding)
    elif isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode), (0,) * len(kernel)
    if len(kernel) > 1:
        return _Plain(x, kernel, stride, padding, dilation)
    return _Plain(_as_maps(module, x), (1, *kernel), (1, *stride), (0, *padding), (1, *dilation))


def _as_maps(module: Foreign, x: Tensor) -> Tensor:
    """A series as a map of one row."""
    return x.unsqueeze(2) if len(module.kernel_size) == 1 else x


def _kernel(module: Foreign) -> Tensor:
    """The weights of the plain form: shape (out, in, *kernel)."""
    return _turned(module, module.weight.detach())


def _turned(module: nn.Module, weight: Tensor) -> Tensor:
    """From the weights of a module to those of its plain form, and back."""
    return weight.transpose(0, 1).flip(*range(2, weight.dim())) if is_transposed(module) else weight


def _stuffed(x: Tensor, stride: Sizes, more: Sizes) -> Tensor:
    """A map with zeros between its entries, and some behind."""
    sizes = [(size - 1) * step + 1 + end for size, step, end in zip(x.shape[2:], stride, more, strict=True)]
    stuffed = x.new_zeros(*x.shape[:2], *sizes)
    ends = [size - end for size, end in zip(sizes, more, strict=True)]
    places = tuple(slice(0, end, step) for end, step in zip(ends, stride, strict=True))
    stuffed[(slice(None), slice(None), *places)] = x
    return stuffed


def _patches(plain: _Plain, stride: Sizes) -> Float[Tensor, "batch position features"]:
    """What `F.unfold` gives, of maps with any number of axes."""
    x = F.pad(plain.x, [side for size in reversed(plain.padding) for side in (size, size)])
    sizes = zip(plain.kernel, plain.dilation, stride, strict=True)
    for axis, (kernel, dilation, step) in enumerate(sizes):
        x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, step)[..., ::dilation]
    axes = len(stride)
    return x.movedim(1, 1 + axes).flatten(1 + axes).flatten(1, axes)


def _step(module: Foreign, size: Sizes) -> int:
    """Between the positions that are taken; those of a transposed convolution reach all entries of its kernel."""
    step = math.ceil(math.pow(math.prod(size) / POSITIONS, 1 / len(size)))
    while is_transposed(module) and any(math.gcd(step, stride) > 1 for stride in module.stride):
        step += 1
    return step
