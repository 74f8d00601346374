"""What a network says: the one place that reads whatever a forward returns.

A network returns a tensor, or tensors by name, in tuples, or in lists of these. Of what is known by name the answer
is read: classes are compared as distributions, embeddings at unit length. Of anything else all tensors are compared,
each at unit variance. `output` of the recipe's trajectory, or of `optin.prune`, says otherwise.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..errors import ArchitectureError, InputError, OptinError, first_line
from .batch import Batch, size_of
from .tensors import kind_of, named_tensors, unread

MASKED = -1e4  # logit of what can be no answer
PIXELS = 256  # of a map of classes that are compared, per example
VALUES = 1024  # of any other tensor that are compared, per example
KINDS = {"distribution": "KL divergence", "point": "squared error", "values": "squared error at unit variance"}

Reader = Callable[[object], object]
_reader: contextvars.ContextVar[Reader | None] = contextvars.ContextVar("reader", default=None)


@runtime_checkable
class Compared(Protocol):
    """Which positions of an output are compared: `trajectory.Positions`."""

    batch: Batch

    def mask(self, hidden: Tensor) -> Tensor:
        """Positions that are not padding."""

    def rows(self, hidden: Tensor) -> Tensor:
        """Some of them, as indices into the flattened positions."""


@dataclass(frozen=True, slots=True)
class Output:
    """The final output of `stack` networks: one row per example, or per chosen token.

    Attributes:
        kind: "distribution" (values are logits), "point", or "values" (each segment at unit variance).
        values: shape (stack, row, class or feature), float32.
        segments: how many features of "values" belong to each tensor.
        name: what was read, for people.
        beside: another part of what the network says.
    """

    kind: str
    values: Float[Tensor, "stack row feature"]
    segments: tuple[int, ...] = ()
    name: str = "the output"
    beside: Output | None = None

    @property
    def scaled(self) -> Float[Tensor, "1 1 feature"]:
        """What brings the values of each tensor to unit variance over rows and features.

        Where all are one value, as the one number of one example is, to unit size; zeros stay what they are.
        """
        parts = self.values.detach().split(self.segments, -1)
        return torch.cat([_unit_scale(part).expand(part.shape[-1]) for part in parts])[None, None]

    @property
    def said(self) -> str:
        """What is compared, and how, for people."""
        own = f"{self.name} by {KINDS[self.kind]}"
        return own if self.beside is None else f"{own}, {self.beside.said}"


def _unit_scale(values: Tensor) -> Tensor:
    size, spread = values.square().mean(), values.var(unbiased=False)
    square = torch.where(spread > torch.finfo(values.dtype).eps * size, spread, size)
    return torch.where(square > torch.finfo(values.dtype).tiny, square.rsqrt(), 1.0)


@contextlib.contextmanager
def reading(output: str | Reader | None) -> Iterator[None]:
    """Read outputs by a function until the block ends; the name of a field is an option of the recipe."""
    token = _reader.set(output if callable(output) else None)
    try:
        yield
    finally:
        _reader.reset(token)


def field_reader(path: str) -> Reader:
    """A function that takes a field of an output: names and places, with dots between them."""

    def read(output: object) -> Any:
        for part in path.split("."):
            try:
                if isinstance(output, Mapping):
                    output = output[part]
                elif isinstance(output, (tuple, list)) and not hasattr(output, part):
                    output = output[int(part)]
                else:
                    output = getattr(output, part)
            except (KeyError, IndexError, AttributeError, ValueError):
                raise ArchitectureError(
                    f"the network's output has no field {part!r}: it is {kind_of(output)}."
                ) from None
        return output

    return read


def read_output(
    output: Any,
    positions: Compared,
    *,
    stack: int = 1,
    pooling: str = "mean",
    problem: str | None = None,
) -> Output:
    """Read what a network returns.

    Args:
        positions: of the unstacked batch: where per-token outputs are compared.
        pooling: "mean", "first", "last" or "pooler", for a bare encoder.
        problem: `config.problem_type`: "regression" and "multi_label_classification" are honoured.

    Raises:
        ArchitectureError: no tensor in it has the examples along its first axis.
    """
    if (reader := _reader.get()) is not None:
        output = _read_by(reader, output)
    if hasattr(output, "start_logits"):
        both = torch.cat([_unstack(output.start_logits, stack), _unstack(output.end_logits, stack)], 1)
        mask = positions.mask(both[0, : both.shape[1] // 2, :, None])
        return Output("distribution", both.masked_fill(~mask.repeat(2, 1), MASKED), name="start and end logits")
    if embeddings := projected(output):
        joined = F.normalize(_unstack(torch.cat(embeddings, -1), stack), dim=-1)
        return Output("point", joined, name="embeddings")
    if hasattr(output, "masks_queries_logits"):
        return _classes(semantic_logits(output), positions, stack, problem, "classes of pixels")
    named = _named(output)
    if named is not None:
        boxes = _boxes(output)
        beside = _values(boxes, positions, stack) if boxes else None
        return replace(_classes(named[1], positions, stack, problem, named[0]), beside=beside)
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:  # maps of features are no tokens
        return _values(output, positions, stack)
    if pooling == "pooler":
        return Output("point", F.normalize(_unstack(pooled(output), stack), dim=-1), name="pooler output")
    values = _unstack(hidden, stack)
    return Output("point", pool(values, positions.mask(values[0]), pooling), name="embeddings")


def _read_by(reader: Reader, output: object) -> Any:
    try:
        return reader(output)
    except OptinError:
        raise
    except Exception as error:  # a function of the user's may fail in any way
        raise InputError(
            f"output= cannot read what the network returns, {kind_of(output)}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _named(output: object) -> tuple[str, Tensor] | None:
    """The tensor that is known to hold classes, and its name; None if there is none."""
    if isinstance(output, Tensor):
        return "the output", output
    for name in ("logits", "out"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return name, value
    return None


def _boxes(output: object) -> dict[str, Tensor]:
    """What a detector says beside its classes."""
    fields = output.items() if isinstance(output, Mapping) else ()
    return {name: value for name, value in fields if name.startswith("pred_") and isinstance(value, Tensor)}


def _classes(logits: Tensor, positions: Compared, stack: int, problem: str | None, name: str) -> Output:
    """Classes of examples, tokens or pixels; numbers where the problem or the shape say so."""
    values = _unstack(logits, stack)
    if _is_image_to_image(logits, positions.batch, stack) or values.dim() > 5:
        return _values(logits, positions, stack)
    if values.dim() == 2:
        return Output("point", values.unsqueeze(-1), name=name)
    if values.dim() == 5:  # one class per pixel: a regular part of the pixels
        step = math.ceil(math.sqrt(values[0, 0, 0].numel() / PIXELS))
        values = values[..., ::step, ::step].movedim(2, -1).flatten(1, 3)
    if values.dim() == 4:
        values = values.flatten(1, 2)[:, positions.rows(values[0])]
    if problem == "regression" or values.shape[-1] == 1:
        return Output("point", values, name=name)
    if problem == "multi_label_classification":
        values = torch.stack([values, torch.zeros_like(values)], -1).flatten(1, 2)
    # A class that is masked has a probability of zero, and no gradient.
    return Output("distribution", values.masked_fill(values == -torch.inf, MASKED), name=name)


def _is_image_to_image(output: Tensor, batch: Batch, stack: int) -> bool:
    """Whether a network makes an image of the shape of one that it was given."""
    shapes = [value.shape for value in batch.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return output.dim() == 4 and (output.shape[0] // stack, *output.shape[1:]) in shapes


def _values(output: object, positions: Compared, stack: int) -> Output:
    """All tensors that have the examples along their first axis, a regular part of each."""
    examples = size_of(positions.batch) * stack
    fields = named_tensors(output)
    rows = {name: value for name, value in fields.items() if value.dim() and value.shape[0] == examples}
    if not rows:
        raise ArchitectureError(unread(output))
    parts = []
    for value in rows.values():
        flat = _unstack(value, stack).flatten(2) if value.dim() > 1 else _unstack(value, stack).unsqueeze(-1)
        parts.append(flat[..., :: math.ceil(flat.shape[-1] / VALUES)])
    name = ", ".join(filter(None, rows)) or "the output"
    if len(parts) == 1 and parts[0].shape[-1] == 1:  # one number, as a regression says
        return Output("point", parts[0], name=name)
    return Output("values", torch.cat(parts, -1), tuple(part.shape[-1] for part in parts), name)


def semantic_logits(output: Any) -> Float[Tensor, "batch class height width"]:
    """Log scores of the classes at every pixel, from queries that each have classes and a mask (Mask2Former)."""
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    masks = output.masks_queries_logits.sigmoid()
    scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def projected(output: object) -> list[Tensor]:
    """The embeddings of a contrastive network's output, image before text; empty for any other output."""
    return [value for name in ("image_embeds", "text_embeds") if (value := getattr(output, name, None)) is not None]


def pooled(output: object) -> Tensor:
    """What a bare encoder's own pooling gives.

    Raises:
        ArchitectureError: it has none.
    """
    value: Tensor | None = getattr(output, "pooler_output", None)
    if value is None:
        raise ArchitectureError("this encoder has no pooler: use the pooling 'mean', 'first' or 'last'.")
    return value


def pool(
    hidden: Float[Tensor, "*stack batch token dim"], mask: Bool[Tensor, "batch token"], pooling: str
) -> Float[Tensor, "*stack batch dim"]:
    """Sentence embeddings of unit length."""
    return F.normalize(gathered(hidden, mask, pooling), dim=-1)


def gathered(
    hidden: Float[Tensor, "*stack batch token dim"], mask: Bool[Tensor, "batch token"], pooling: str
) -> Float[Tensor, "*stack batch dim"]:
    """The hidden state of the first or of the last token that is no padding, or the mean over all that are none."""
    if pooling == "first":
        return hidden[..., 0, :]
    if pooling == "last":
        places = mask.shape[-1] - 1 - mask.flip(-1).long().argmax(-1)
        return hidden[..., torch.arange(len(places), device=places.device), places, :]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(-2) / weights.sum(-2).clamp_min(1)


def _unstack(value: Tensor, stack: int) -> Tensor:
    return value.float().reshape(stack, -1, *value.shape[1:])


def answers(output: Any) -> Tensor:
    """What a network says, as one tensor: its logits, the last hidden state of a bare encoder, or all in a row.

    Raises:
        ArchitectureError: it has none of these.
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1)
    if embeddings := projected(output):
        return torch.cat(embeddings, -1)
    if hasattr(output, "masks_queries_logits"):
        return semantic_logits(output)
    if (named := _named(output)) is not None:
        return named[1]
    hidden = getattr(output, "last_hidden_state", None)
    if isinstance(hidden, Tensor):
        return hidden
    if found := list(named_tensors(output).values()):
        return found[0] if len(found) == 1 else torch.cat([value.flatten() for value in found])
    raise ArchitectureError(unread(output))


def distance(expected: Tensor, got: Tensor) -> float:
    """The largest difference, as a share of the largest value that is finite (1 at least).

    Infinities in the same places are the same: classes that a network masks.
    """
    if expected.shape != got.shape:
        return math.inf
    same = (expected == got) & expected.isinf()
    rest = (expected - got).masked_fill(same, 0)
    scale = expected.masked_fill(expected.isinf(), 0).abs().max().clamp_min(1) if expected.numel() else 1
    return float(rest.abs().max() / scale) if rest.numel() else 0.0


def tolerance_of(values: Tensor) -> float:
    """How far two outputs may be apart by rounding: see `distance`."""
    return 1e-4 if values.dtype in (torch.float32, torch.float64) else 5e-2
