"""Maps and products: labels of what they read meet those of their weights."""

from __future__ import annotations

from torch import Tensor

from ..classes import nothing, varying
from ..records import Call, Made, Weight
from ..tracking import Tracking
from .table import rule


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
        track.maps |= {found.name: None for found in (track.weight(one), weight) if found is not None}
        _product(track, one, other, call.out)
        if biased:
            track.forbid_all(track.labels(call.args[0]), "added to a product")


def _mapped(track: Tracking, value: Tensor, weight: Weight, bias: Tensor | None, result: Tensor) -> None:
    last = value.dim() - 1
    labels, into, out = track.labels(value), weight.along(last - 1), weight.along(last)
    ones = (1,) * last
    track.products[-1].parts = [part for part in (into, out) if part is not None]
    track.set_made(result, Made(weight.name))
    track.maps[weight.name] = out
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
    if _mixed(track, one, other, left, right, result):
        return
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


def _mixed(track: Tracking, one: Tensor, other: Tensor, left: Tensor, right: Tensor, result: Tensor) -> bool:
    """A product with a matrix of the inputs, as the graph of a network of graphs: rows are mixed, features go on."""
    last = one.dim() - 1
    for given, labels, rows in ((one, right, last - 1), (other, left, last)):
        plain = track.labels(given) is None and track.weight(given) is None
        if plain and not any(axis < last - 1 or axis == rows for axis in varying(labels)):
            track.products[-1].parts = [labels]
            track.set(result, labels)
            return True
    return False


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
    track.maps[weight.name] = out
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
