"""Operations that move entries: labels move with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..classes import NONE, varying
from ..records import Call
from ..tracking import Tracking
from .entries import join_operands
from .table import rule

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


@rule("view_as_complex")
def as_complex(track: Tracking, call: Call) -> None:
    """Two entries are one number: they leave together."""
    labels = track.labels(call.args[0])
    if labels is not None:
        real = labels[..., :1]
        if labels.shape[-1] > 1:
            track.classes.join(real, labels[..., 1:])
        track.set(call.out, real.squeeze(-1))


@rule("view_as_real")
def as_real(track: Tracking, call: Call) -> None:
    """One number is two entries."""
    labels = track.labels(call.args[0])
    track.set(call.out, None if labels is None else labels.unsqueeze(-1))


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
        join_operands(track, *known)
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
