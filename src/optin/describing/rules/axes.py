"""Operations along an axis: entries that depend on each other."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..classes import ranked, varying
from ..records import Call
from ..tracking import Tracking
from .table import rule


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "norm", "linalg_vector_norm",
    "argmax", "argmin", "prod", "any", "all", "logsumexp", "median",
)  # fmt: skip
def reduced(track: Tracking, call: Call) -> None:
    """All entries of an axis are one: no cut goes through it.

    What attention hands out beside its output are means over its heads, mostly thrown away: a trial tells.
    """
    value, labels, result = call.args[0], track.labels(call.args[0]), call.first
    if labels is None or track.module in track.averaging:
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
