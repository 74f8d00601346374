"""What each operation does with labels: a table from the names of ATen operations to rules.

What has no rule is not understood: whatever meets it stays whole. To teach one, `@rule("name")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .classes import NONE
from .tracking import (
    Call,
    Made,
    Tracking,
    Weight,
    nothing,
    ranked,
    varying,
)

Rule = Callable[[Tracking, Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Put a rule into the table under the names of operations, without the underscore of those in place."""

    def put(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return put


def rule_of(name: str) -> Rule:
    """The rule of an operation; what is not understood stays whole."""
    return RULES.get(name, not_understood)


def not_understood(track: Tracking, call: Call) -> None:
    """No cut through anything that comes here."""
    track.unknown[call.name, track.module] += 1
    for value in call.tensors:
        track.forbid_all(track.labels(value), f"{call.name} is not understood")


@rule(
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "new_zeros", "new_ones", "new_empty",
    "new_full", "_local_scalar_dense", "sym_size", "bernoulli", "empty_strided", "new_empty_strided",
    "is_same_size", "item", "equal",
)  # fmt: skip
def makes_anew(track: Tracking, call: Call) -> None:
    """Nothing of the values goes on, but their shape."""


# Data that is moved.


STAYS = ("clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh")
VIEWS = ("view", "_unsafe_view", "_reshape_alias", "reshape")


@rule(*STAYS)
def stays(track: Tracking, call: Call) -> None:
    """The same entries in the same places."""
    _move(track, call, lambda labels, full: [labels])


@rule(
    "permute", "transpose", "t", "movedim", "unsqueeze", "squeeze", "flip", "roll", "select", "slice", "narrow",
    "split", "split_with_sizes", "unbind", "unfold", "index", "index_select", "diagonal", "gather", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
)  # fmt: skip
def moved(track: Tracking, call: Call) -> None:
    """Executed on the labels."""
    light = call.name in ("permute", "transpose", "t")

    def move(labels: Tensor, full: Callable[[], Tensor]) -> Sequence[Tensor]:
        given = labels if light else full()
        keywords = {name: value for name, value in call.kwargs.items() if name in ("dim", "dims")}
        found = call.func(given.contiguous() if "shuffle" in call.name else given, *call.args[1:], **keywords)
        return list(found) if isinstance(found, (tuple, list)) else [found]

    _move(track, call, move)


@rule(*VIEWS)
def viewed(track: Tracking, call: Call) -> None:
    """The same entries in order."""
    _move(track, call, lambda labels, full: [full().reshape(call.out.shape)])


@rule("expand")
def expanded(track: Tracking, call: Call) -> None:
    """Repeated along axes of one entry."""
    _move(track, call, lambda labels, full: [full().expand(call.out.shape)])


@rule("as_strided")
def strided(track: Tracking, call: Call) -> None:
    """Where the value lies as its shape says."""
    value, start = call.args[0], call.args[0].storage_offset()
    offset = call.argument(3, "storage_offset")

    def move(labels: Tensor, full: Callable[[], Tensor]) -> Sequence[Tensor]:
        places = torch.full((value.untyped_storage().nbytes() // value.element_size(),), NONE)
        torch.as_strided(places, value.shape, value.stride(), start).copy_(full())
        size, stride = call.args[1:3]
        return [torch.as_strided(places, size, stride, start if offset is None else offset)]

    _move(track, call, move)


@rule("constant_pad_nd")
def padded(track: Tracking, call: Call) -> None:
    """Along axes on which nothing is told apart."""
    pads, rank = call.args[1], call.args[0].dim()
    longer = {rank - 1 - place // 2 for place, size in enumerate(pads) if size}
    _move(track, call, lambda labels, full: [None if longer & set(varying(labels)) else labels])


@rule("index_put", "_index_put_impl")
def put(track: Tracking, call: Call) -> None:
    """Some entries of a value by others: along axes that are not indexed their labels are joined."""
    value, indices, others = call.args[:3]
    labels, new, rank = track.labels(value), track.labels(others), value.dim()
    indexed = [axis for axis, index in enumerate(indices) if index is not None]
    plain = indexed == list(range(len(indexed))) and not (labels is not None and set(varying(labels)) & set(indexed))
    rest = rank - len(indexed)
    if new is not None and (rest > others.dim() or any(axis < others.dim() - rest for axis in varying(new))):
        plain = False
    if not plain:
        for given in (labels, new):
            track.forbid_all(given, "index_put is not understood")
        return
    if new is not None:
        new = new.reshape((1,) * len(indexed) + tuple(new.shape[others.dim() - rest :]))
        if labels is not None:
            track.classes.join(labels, new)
    track.set(call.out, new if labels is None else labels)


@rule("index_add", "index_copy")
def put_along(track: Tracking, call: Call) -> None:
    """Some entries along one axis by others, or with them added: along the other axes their labels are joined."""
    value, dim, _, source = call.args[:4]
    known = []
    for labels in (track.labels(value), track.labels(source)):
        if labels is not None:
            track.forbid(labels, dim % labels.dim(), f"{call.name} along it")
            known.append(labels.narrow(dim, 0, 1))
    if len(known) == 2:
        _join(track, *known)
    track.set(call.out, max(known, key=lambda labels: len(varying(labels)), default=None))


def _move(
    track: Tracking, call: Call, move: Callable[[Tensor, Callable[[], Tensor]], Sequence[Tensor | None]]
) -> None:
    value = call.args[0]
    results = call.out if isinstance(call.out, (tuple, list)) else [call.out]
    labels, weight = track.labels(value), track.weight(value)
    if len(results) == 1 and (
        call.name in STAYS or (call.name in VIEWS and results[0].shape[-1:] == value.shape[-1:])
    ):
        track.set_made(results[0], *track.made(value))
    if labels is not None:
        for result, found in zip(results, move(labels, lambda: labels.expand(value.shape)), strict=True):
            if found is None:
                track.forbid_all(labels, f"{call.name} is not understood")
            else:
                track.set(result, found)
    elif weight is not None:
        made = [move(axis, lambda axis=axis: axis.expand(value.shape)) for axis in weight.axes]  # type: ignore[misc]
        for place, result in enumerate(results):
            axes = [moved[place] for moved in made]
            track.set_weight(result, weight.name, [axis for axis in axes if axis is not None])


# Entries one by one.

ALONE = (
    "relu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu",
    "mish", "softplus", "exp", "neg", "abs", "sqrt", "rsqrt", "reciprocal", "clamp", "clamp_min", "clamp_max",
    "native_dropout", "dropout", "erf", "cos", "sin", "log", "relu6", "logical_not", "bitwise_not", "floor",
    "ceil", "round", "isnan", "isinf", "nan_to_num", "tril", "triu", "log1p", "expm1", "sign", "celu", "selu",
    "hardshrink", "threshold", "log_sigmoid_forward", "square", "isfinite", "erfinv",
)  # fmt: skip
POOLS = (
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "max_pool3d_with_indices", "_adaptive_avg_pool3d",
    "avg_pool3d", "upsample_nearest3d", "upsample_trilinear3d", "avg_pool1d", "adaptive_avg_pool1d",
    "upsample_linear1d", "upsample_nearest1d", "max_pool1d",
)  # fmt: skip
TOGETHER = (
    "add", "sub", "mul", "div", "maximum", "minimum", "where", "lt", "gt", "le", "ge", "eq", "ne",
    "bitwise_and", "bitwise_or", "logical_and", "logical_or", "rsub", "atan2", "addcmul", "lerp", "remainder",
    "fmod", "masked_fill", "pow", "prelu", "_prelu_kernel", "floor_divide", "copy",
)  # fmt: skip


@rule(*ALONE, *POOLS, *TOGETHER)
def on_entries(track: Tracking, call: Call) -> None:
    """Of one value they pass labels on, of several they join them."""
    if call.name == "copy":
        if call.args[0]._base is not None:
            _write(track, call)
            return
        call.tensors = call.tensors[1:]  # what was there before is gone
    if len(call.tensors) > 1 and call.name in TOGETHER:
        _follow(track, call)
        _together(track, call.tensors, call.first)
        return
    value, result = call.tensors[0], call.first
    labels, weight = track.labels(value), track.weight(value)
    if call.name in ("native_dropout", "dropout", "mul", "div"):
        track.set_made(result, *track.made(value))
    if labels is not None:
        if call.name in POOLS:
            spatial = 3 if "3d" in call.name else 1 if "1d" in call.name else 2
            for axis in range(labels.dim() - spatial, labels.dim()):
                track.forbid(labels, axis, "pooled along it")
                labels = labels.narrow(axis, 0, 1)
        if result.dim() == labels.dim():
            track.set(result, labels)
    elif weight is not None and result.shape == value.shape:
        track.set_weight(result, weight.name, weight.axes)


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
        _join(track, total, labels)
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
    """A constant of as many entries as there are units is cut with them, and with all others that it meets."""
    for other in varying(labels):
        if other != axis:
            labels = labels.narrow(other, 0, 1)
    track.set(value, labels.reshape(labels.shape[labels.dim() - value.dim() :]))


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
    """The labels of an operand, in the rank of the result; of a parameter those along the axes that matter."""
    labels, weight = track.labels(value), track.weight(value)
    if labels is not None:
        return ranked(labels, rank)
    if weight is None:
        return None
    axes = [ranked(axis, rank) for axis in weight.axes]
    wanted = [axis for axis in axes if any(place in varying(other) for other in known for place in varying(axis))]
    if not wanted and not known:
        wanted = axes[-1:]
    return wanted[-1] if wanted else None


def _join(track: Tracking, one: Tensor, other: Tensor) -> None:
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


# Several values as one.


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


# Along an axis.


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "norm", "linalg_vector_norm",
    "argmax", "argmin", "prod", "any", "all", "logsumexp", "median",
)  # fmt: skip
def reduced(track: Tracking, call: Call) -> None:
    """All entries of an axis are one: no cut goes through it."""
    value, labels, result = call.args[0], track.labels(call.args[0]), call.first
    if labels is None:
        return
    dims = call.argument(2 if call.name in ("norm", "linalg_vector_norm") else 1, "dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(value.dim()))
    dims = sorted((dim % value.dim() for dim in dims), reverse=True)
    for dim in dims:
        track.forbid(labels, dim, f"{call.name} over it")
        labels = labels.narrow(dim, 0, 1)
    if isinstance(result, Tensor) and result.dim() != labels.dim():
        for dim in dims:
            labels = labels.squeeze(dim)
    if isinstance(result, Tensor) and result.dim() == labels.dim():
        track.set(result, labels)


@rule("cumsum", "sort", "topk")
def along(track: Tracking, call: Call) -> None:
    """Entries of an axis depend on each other."""
    labels = track.labels(call.args[0])
    if labels is not None:
        place = 2 if call.name == "topk" else 1
        axis = call.argument(place, "dim", -1) % labels.dim()
        track.forbid(labels, axis, f"{call.name} along it")
        track.set(call.first, labels.narrow(axis, 0, 1))


@rule("_softmax", "_log_softmax", "_safe_softmax")
def softmax(track: Tracking, call: Call) -> None:
    """All entries of an axis together."""
    labels = track.labels(call.args[0])
    if labels is not None:
        track.forbid(labels, call.args[1] % labels.dim(), "softmax over it")
        track.set(call.out, labels)


@rule("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm")
def normalised(track: Tracking, call: Call) -> None:
    """The last axis together; its scale and shift are joined entry by entry."""
    value = call.args[0]
    labels, last = track.labels(value), value.dim() - 1
    for weight in (track.weight(given) for given in call.args[2:4] if isinstance(given, Tensor)):
        if weight is None:
            continue
        own = ranked(weight.axes[-1], value.dim())
        if labels is None:
            labels = own
        elif varying(labels) == [last]:
            track.classes.join(labels, own)
        else:
            track.forbid(labels, last, "meets a scale that units share")
    if labels is not None:
        track.forbid(labels, last, "normalised together")
        track.set(call.first, labels)


@rule("native_group_norm")
def group_normalised(track: Tracking, call: Call) -> None:
    """Channels in groups."""
    labels = track.labels(call.args[0])
    if labels is not None:
        track.forbid(labels, 1, "normalised in groups")
        track.set(call.first, labels)


@rule(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_batch_norm_no_update", "batch_norm",
)  # fmt: skip
def batch_normalised(track: Tracking, call: Call) -> None:
    """Channel by channel, with scale, shift and statistics."""
    labels, rank = track.labels(call.args[0]), call.args[0].dim()
    for weight in (track.weight(given) for given in call.args[1:5] if isinstance(given, Tensor)):
        if weight is not None:
            own = weight.axes[-1].reshape((1, -1) + (1,) * (rank - 2))
            labels = own if labels is None else labels
            track.classes.join(labels, own)
    track.set(call.first, labels)
    means = track.weight(call.args[3])
    for origin in track.made(call.args[0]):
        if origin.scale is None and not origin.summed:
            shift = None if means is None else means.name
            track.set_made(call.first, replace(origin, scale=track.module, shift=shift))


# Maps and products.


@rule("embedding")
def looked_up(track: Tracking, call: Call) -> None:
    """Rows of a table: the features go on."""
    weight = track.weight(call.args[0])
    features = None if weight is None else weight.along(1)
    if features is not None:
        track.set(call.out, features.reshape((1,) * (call.out.dim() - 1) + (-1,)))


@rule("mm", "addmm", "bmm", "baddbmm", "matmul")
def multiplied(track: Tracking, call: Call) -> None:
    """An activation with a weight, or two activations."""
    biased = call.name in ("addmm", "baddbmm")
    one, other = call.args[1:3] if biased else call.args[:2]
    weight = track.weight(other)
    expanded = other.dim() == 2 or other.stride(0) == 0  # torch repeats a weight for inputs that do not lie in a row
    if weight is not None and track.labels(other) is None and expanded:
        _mapped(track, one, weight, call.args[0] if biased else None, call.out)
    else:
        _product(track, one, other, call.out)
        if biased:
            track.forbid_all(track.labels(call.args[0]), "added to a product")


def _mapped(track: Tracking, value: Tensor, weight: Weight, bias: Tensor | None, result: Tensor) -> None:
    last = value.dim() - 1
    labels, into, out = track.labels(value), weight.along(last - 1), weight.along(last)
    ones = (1,) * last
    track.products[-1].parts = [part for part in (into, out) if part is not None]
    track.set_made(result, Made(weight.name))
    if labels is not None:
        for axis in varying(labels)[:-1] if labels.shape[-1] > 1 else varying(labels):
            track.forbid(labels, axis, "mapped along another axis")
            labels = labels.narrow(axis, 0, 1)
        if into is None:
            track.forbid_all(labels, "a matrix product that is not understood")
        else:
            track.classes.join(labels, into.reshape(*ones, -1))
            track.reads.append(into)
    if out is not None:
        made = out.reshape(*ones, -1)
        shift = track.weight(bias)
        if shift is not None:
            track.classes.join(made, shift.axes[-1].reshape(*ones, -1))
        track.set(result, made)


def _product(track: Tracking, one: Tensor, other: Tensor, result: Tensor) -> None:
    """All that is multiplied in one slice of the batch leaves together: that is a head.

    What is the same in all slices, one key for all heads, is shared by them and stays.
    """
    left, right = track.labels(one), track.labels(other)
    if left is None and right is None:
        return
    left = nothing(one.dim()) if left is None else left
    right = nothing(other.dim()) if right is None else right
    if one.dim() != other.dim() or one.dim() < 2:
        track.forbid_all(left, "a product of other ranks")
        track.forbid_all(right, "a product of other ranks")
        return
    last = one.dim() - 1
    sliced = [any(axis < last - 1 for axis in varying(labels)) for labels in (left, right)]
    if track.weight(other) is not None and last - 1 in varying(left):
        sliced[0] = True  # a table for all rows, each of which belongs to a unit
    for labels, units in ((left, sliced[0]), (right, sliced[1])):
        if not units:
            track.forbid_all(labels, "multiplied with what units share" if any(sliced) else "a product without heads")
    if not any(sliced):
        return

    def coarse(labels: Tensor, axis: int) -> Tensor:
        if labels.shape[axis] == 1:
            return labels
        first = labels.narrow(axis, 0, 1)
        track.classes.join(first, labels)
        return first

    left, right = coarse(left, last), coarse(right, last - 1)
    if all(sliced):
        track.classes.join(left, right)
        found = right if len(varying(right)) >= len(varying(left)) else left
    else:
        found = left if sliced[0] else right
    track.products[-1].parts, track.products[-1].activations = [found], True
    track.set(result, found)


@rule("grid_sampler_2d", "grid_sampler_3d")
def sampled(track: Tracking, call: Call) -> None:
    """Values at places that are computed: all in one slice of the batch leaves together."""
    value, grid = call.args[:2]
    labels, places = track.labels(value), track.labels(grid)
    for axis in range(2, value.dim()):
        track.forbid(labels, axis, "sampled along it")
    if labels is not None:
        labels = labels[(slice(None), slice(None), *[slice(0, 1)] * (value.dim() - 2))]
        if labels.shape[0] > 1:  # with the slices of a batch every channel of one leaves
            track.classes.join(labels[:, :1], labels)
            labels = labels[:, :1]
    track.sampled += [part for part in (labels, places) if part is not None]
    if places is not None:
        first = places[(slice(None), *[slice(0, 1)] * (places.dim() - 1))]
        track.classes.join(first, places)
        if labels is not None and len(first) > 1:
            track.classes.join(labels, first)
        labels = first if labels is None else labels
    track.set(call.out, labels)


@rule("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable", "thnn_conv2d")
def convolved(track: Tracking, call: Call) -> None:
    """Channels are read and made; depth-wise they go through."""
    value, kernel, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    labels, weight = track.labels(value), track.weight(kernel)
    if weight is None:
        track.forbid_all(labels, "convolved with what is computed")
        return
    out, into = (weight.along(1), weight.along(0)) if transposed else (weight.along(0), weight.along(1))
    channels = (1, -1) + (1,) * (call.out.dim() - 2)
    track.products[-1].parts = [part for part in (into if groups == 1 else None, out) if part is not None]
    track.set_made(call.out, Made(weight.name))
    if groups == 1:
        if labels is not None and into is not None:
            track.classes.join(labels, into.reshape(channels))
            track.reads.append(into)
    elif groups == value.shape[1] and out is not None and len(out) == groups:
        if labels is not None:
            track.classes.join(labels, out.reshape(channels))
    else:
        track.forbid(labels, 1, f"convolved in {groups} groups")
        if out is not None:
            made = out.reshape(channels)
            track.set(call.out, made)
            track.forbid(made, 1, f"convolved in {groups} groups")
        return
    if out is not None:
        made, shift = out.reshape(channels), track.weight(bias)
        if shift is not None:
            track.classes.join(made, shift.axes[-1].reshape(channels))
        track.set(call.out, made)
