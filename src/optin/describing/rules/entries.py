"""Operations on entries one by one: of one value they pass labels on, of several they join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..classes import NONE, nothing, ranked, varying
from ..records import Call, Made, Weight
from ..tracking import Tracking
from .table import rule

ALONE = (
    "relu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu",
    "mish", "softplus", "exp", "neg", "abs", "sqrt", "rsqrt", "reciprocal", "clamp", "clamp_min", "clamp_max",
    "erf", "cos", "sin", "log", "relu6", "logical_not", "bitwise_not", "floor",
    "ceil", "round", "isnan", "isinf", "nan_to_num", "tril", "triu", "log1p", "expm1", "sign", "celu", "selu",
    "hardshrink", "threshold", "log_sigmoid_forward", "square", "isfinite", "erfinv", "_conj", "conj_physical",
)  # fmt: skip

POOLS = (
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "max_pool3d_with_indices", "_adaptive_avg_pool3d",
    "avg_pool3d", "upsample_nearest3d", "upsample_trilinear3d", "avg_pool1d", "adaptive_avg_pool1d",
    "upsample_linear1d", "upsample_nearest1d", "max_pool1d",
)  # fmt: skip

TOGETHER = (
    "add", "sub", "maximum", "minimum", "where", "lt", "gt", "le", "ge", "eq", "ne",
    "bitwise_and", "bitwise_or", "logical_and", "logical_or", "rsub", "atan2", "addcmul", "lerp", "remainder",
    "fmod", "masked_fill", "pow", "prelu", "_prelu_kernel", "floor_divide",
)  # fmt: skip


ALIGNED = {*ALONE, *TOGETHER, "mul", "div", "clone", "_to_copy", "expand"}  # axes stay, counted from the last


@rule(*ALONE)
def alone(track: Tracking, call: Call) -> None:
    """The labels of one value go on as they are."""
    value, result = call.tensors[0], call.first
    labels, weight = track.labels(value), track.weight(value)
    if labels is not None:
        if result.dim() == labels.dim():
            track.set(result, labels)
    elif weight is not None and result.shape == value.shape:
        track.set_weight(result, weight.name, weight.axes)


@rule(*POOLS)
def pooled(track: Tracking, call: Call) -> None:
    """The labels of one value go on, but for those along the axes that are pooled."""
    labels = track.labels(call.tensors[0])
    if labels is None:  # of a parameter that keeps its size, as positions do
        alone(track, call)
        return
    spatial = 3 if "3d" in call.name else 1 if "1d" in call.name else 2
    for axis in range(labels.dim() - spatial, labels.dim()):
        track.forbid(labels, axis, "pooled along it")
        labels = labels.narrow(axis, 0, 1)
    if call.first.dim() == labels.dim():
        track.set(call.first, labels)


@rule(*TOGETHER)
def together(track: Tracking, call: Call) -> None:
    """The labels of several values are joined."""
    if len(call.tensors) == 1:
        alone(track, call)
        return
    _follow(track, call)
    _together(track, call.tensors, call.first)


@rule("mul", "div", "native_dropout", "dropout")
def scaled(track: Tracking, call: Call) -> None:
    """The output of a map times a number is its output still."""
    if len(call.tensors) == 1:
        track.set_made(call.first, *track.made(call.tensors[0]))
    together(track, call)


@rule("copy")
def copied(track: Tracking, call: Call) -> None:
    """What was there before is gone."""
    if call.args[0]._base is not None:
        _write(track, call)
        return
    call.tensors = call.tensors[1:]
    alone(track, call)


def _write(track: Tracking, call: Call) -> None:
    """Entries copied into a part of a value give it their labels."""
    part, base = call.args[0], call.args[0]._base
    new, old = track.labels(call.args[1]), track.labels(base)
    if new is None and old is None:
        return
    size = base.untyped_storage().nbytes() // base.element_size()
    places = torch.full((size,), NONE)
    whole = torch.as_strided(places, base.shape, base.stride(), base.storage_offset())
    if old is not None:
        whole.copy_(old.expand(base.shape))
    if new is not None:
        region = torch.as_strided(places, part.shape, part.stride(), part.storage_offset())
        region.copy_(ranked(new, part.dim()).expand(part.shape))
    track.set(base, _filled(whole))


def _filled(labels: Tensor) -> Tensor:
    """Entries without labels, as of zeros, take those that all others along an axis have."""
    for axis in varying(labels):
        most = labels.amax(axis, keepdim=True)
        if bool(((labels == most) | (labels < 0)).all()):
            labels = most
    return labels


def _follow(track: Tracking, call: Call) -> None:
    """Whose output goes on: scaled by a parameter, or with something added."""
    added: list[Made] = []
    for value, other in (call.tensors[:2], call.tensors[1::-1]):
        origins, weight = track.made(value), track.weight(other)
        if not origins or value.shape != call.first.shape or any(origin.summed for origin in origins):
            continue
        if call.name == "mul" and weight is not None and origins[0].scale is None:
            track.set_made(call.first, replace(origins[0], scale=weight.name))
        elif call.name == "mul" and other.numel() == 1:
            track.set_made(call.first, *origins)
        elif call.name == "add" and weight is None and other.shape == value.shape:
            added += [replace(origin, summed=True) for origin in origins]
    track.set_made(call.first, *added)


def _together(track: Tracking, values: Sequence[Tensor], result: Tensor) -> None:
    rank = result.dim()
    known = [ranked(labels, rank) for labels in map(track.labels, values) if labels is not None]
    if not known:
        weights = [weight for weight in map(track.weight, values) if weight is not None]
        if all(track.weight(value) is not None for value in values if value.dim()):
            _of_parameters(track, weights, result)
            return
    total: Tensor | None = None
    for value in values:
        labels = _in_operation(track, value, rank, known)
        if labels is None:
            shape = (1,) * (rank - value.dim()) + tuple(value.shape)
            for other in known:
                meeting = [axis for axis in varying(other) if shape[axis] > 1]
                if len(meeting) == 1 and _uniform(value, meeting[0] - rank):
                    _adopt(track, value, other, meeting[0])
                    continue
                for axis in meeting:
                    track.forbid(other, axis, "meets a constant of this extent")
            continue
        if total is None:
            total = labels
            continue
        join_operands(track, total, labels)
        if len(varying(labels)) > len(varying(total)):  # the labels that tell more apart go on
            total, labels = labels, total
        shape = torch.broadcast_shapes(total.shape, labels.shape)
        total = torch.where(total.broadcast_to(shape) >= 0, total, labels)
    track.set(result, total)


def _uniform(value: Tensor, axis: int) -> bool:
    """Whether a value is the same all along an axis: made for all units alike, so that another count may follow."""
    if value.is_meta or value.dim() < -axis:
        return False
    return bool((value == value.narrow(axis, 0, 1)).all())


def _adopt(track: Tracking, value: Tensor, labels: Tensor, axis: int) -> None:
    """A constant of as many entries as there are units is cut with them, and with all others that it meets.

    So is what it was made of, that other units may meet: a table of zeros under a mask.
    """
    for other in varying(labels):
        if other != axis:
            labels = labels.narrow(other, 0, 1)
    place = axis - labels.dim()
    track.set(value, labels.reshape(labels.shape[labels.dim() - value.dim() :]))
    name, made_of = track.constant(value)
    for part in made_of if name in ALIGNED else ():
        alike = _uniform(part, place) and part.shape[place] == value.shape[place]
        if alike and track.labels(part) is None and track.weight(part) is None:
            _adopt(track, part, labels, axis)


def _of_parameters(track: Tracking, weights: Sequence[Weight], result: Tensor) -> None:
    rank = result.dim()
    axes = [ranked(labels, rank) for labels in weights[0].axes]
    for other in weights[1:]:
        for labels in (ranked(labels, rank) for labels in other.axes):
            for mine in axes:
                if varying(mine) == varying(labels):
                    track.classes.join(mine, labels)
    track.set_weight(result, weights[0].name, axes)


def _in_operation(track: Tracking, value: Tensor, rank: int, known: Sequence[Tensor]) -> Tensor | None:
    """The labels of an operand, in the rank of the result; of a parameter those along the axis that matters.

    Of several that is the first: where heads and their features meet one of both, the heads are the units.
    """
    labels, weight = track.labels(value), track.weight(value)
    if labels is not None:
        return ranked(labels, rank)
    if weight is None:
        return None
    axes = [ranked(axis, rank) for axis in weight.axes]
    wanted = [axis for axis in axes if any(place in varying(other) for other in known for place in varying(axis))]
    if not wanted and not known:
        wanted = axes[-1:]
    return wanted[0] if wanted else None


def join_operands(track: Tracking, one: Tensor, other: Tensor) -> None:
    """Two operands of an operation on entries."""
    first, second = set(varying(one)), set(varying(other))
    if first == second or not (first >= second or second >= first):
        if first & second or first == second:
            track.classes.join(one, other)
        return
    big, small = (one, other) if first > second else (other, one)
    if not varying(small):
        return
    if min(varying(big)) in varying(small):
        track.classes.join(one, other)
        return
    for axis in varying(small):  # what several units share: rotary angles, a norm inside heads
        track.forbid(big, axis, "meets what units share")


@rule("glu")
def gated(track: Tracking, call: Call) -> None:
    """The halves of one value, entry by entry."""
    labels = track.labels(call.args[0])
    if labels is None:
        return
    axis = call.argument(1, "dim", -1) % labels.dim()
    shape = [call.args[0].shape[axis] if place == axis else length for place, length in enumerate(labels.shape)]
    one, other = labels.expand(shape).chunk(2, axis)
    track.classes.join(one, other)
    track.set(call.out, one)


@rule("cat", "stack")
def joined(track: Tracking, call: Call) -> None:
    """One behind the other: along other axes their entries are joined."""
    parts = [part for part in call.args[0] if part.numel() or part.dim() > 1]  # an empty cache is a vector of nothing
    stacked, rank = call.name == "stack", call.out.dim()
    axis = call.argument(1, "dim", 0) % rank
    weights = [track.weight(part) for part in parts]
    if not stacked and all(weight is not None for weight in weights) and parts[0].dim() == rank:
        _weights_joined(track, [weight for weight in weights if weight is not None], axis, call.out)
        return
    arrays = []
    for part, weight in zip(parts, weights, strict=True):
        labels = track.labels(part)
        if labels is None and weight is not None:
            labels = next((axes for axes in reversed(weight.axes) if varying(axes) != [axis]), weight.axes[-1])
        labels = nothing(part.dim()) if labels is None else labels
        arrays.append(labels.unsqueeze(axis) if stacked else labels)
    sizes = [1 if stacked else part.shape[axis] for part in parts]
    others = torch.broadcast_shapes(*(tuple(1 if d == axis else n for d, n in enumerate(a.shape)) for a in arrays))
    if any(labels.shape[axis] > 1 for labels in arrays):
        full = [
            a.expand([n if d == axis else m for d, m in enumerate(others)])
            for a, n in zip(arrays, sizes, strict=True)
        ]
        track.set(call.out, torch.cat(full, axis))
        return
    first = next(labels for labels in arrays if bool((labels >= 0).any()))
    for labels in arrays:
        if bool((labels >= 0).any()):
            track.classes.join(first, labels)
        else:
            track.forbid_all(first, "joined with values that have no labels")
    track.set(call.out, first)


def _weights_joined(track: Tracking, weights: Sequence[Weight], axis: int, result: Tensor) -> None:
    axes = []
    for place, first in enumerate(weights[0].axes):
        if varying(first) == [axis]:
            axes.append(torch.cat([weight.axes[place] for weight in weights], axis))
            continue
        for weight in weights[1:]:
            track.classes.join(first, weight.axes[place])
        axes.append(first)
    track.set_weight(result, weights[0].name, axes)
