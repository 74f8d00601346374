"""Calibration inputs: any iterable of a model's keyword inputs, read once and kept.

A batch is a mapping from names to values. Tensors have the examples along their first axis; lists and arrays of
numbers become tensors; numbers, truth values and None reach every forward as they are. Of tuples and mappings that
hold tensors a batch names the leaves, see `nesting`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, first_line
from .nesting import leaves
from .samples import looks_of
from .store import Store

Batch = dict[str, Any]
MICRO = 4  # examples at most that are differentiated at once, which bounds memory
KEPT = 2**30  # bytes of what a loader gives that are kept in memory; the rest lies on disk


@dataclass(frozen=True)
class Batches:
    """A calibration set that can be iterated again and again, on one device, without labels.

    It is read once: what a loader that shuffles or augments gives in the first pass is what every pass sees. The
    batches of a list stay where they are; those of anything else are kept, beyond `KEPT` bytes on disk.

    Attributes:
        examples: number of inputs.
        positions: their mean length in tokens without padding, rounded up; for images the mean height in pixels.
        width: the mean width of images in pixels; None for texts and where it is the height.
        digest: SHA-256 of all inputs.
        keywords: values that are no tensors, the same for every batch.
        left_out: names of what no forward is given: labels and texts.
        looks: what the inputs of the first batch look like, see `samples.looks_of`.
    """

    source: Iterable[Batch]
    device: torch.device
    examples: int
    count: int
    positions: int
    width: int | None
    digest: str
    keywords: Mapping[str, Any]
    left_out: tuple[str, ...]
    looks: Mapping[str, Any]

    @classmethod
    def of(cls, source: Iterable[Mapping[str, Any]], device: torch.device, taken: Collection[str] = ()) -> Batches:
        """Read a calibration set and take its measure.

        Args:
            taken: arguments of the network's forward: a text is passed on under such a name alone.

        Raises:
            InputError: no batches, or a batch that is no mapping to values of one batch size, or unlike the first.
        """
        if isinstance(source, Batches):
            return source
        if isinstance(source, (Mapping, str)) or not isinstance(source, Iterable):
            raise InputError(
                f"calibration batches must be an iterable of keyword inputs, not one {type(source).__name__}. "
                "Pass a list: [batch]."
            )
        kept: list[Batch] | _Kept = [] if isinstance(source, (list, tuple)) else _Kept()
        digest, examples, real, across, left_out = hashlib.sha256(), 0, 0, 0, dict[str, None]()
        first: Batch = {}
        for index, raw in enumerate(_read(source)):
            batch, dropped = _batch(raw, index, taken)
            left_out |= dict.fromkeys(dropped)
            first = first or batch
            _check_like(batch, first, index)
            examples += size_of(batch)
            sides = image_sides(batch)
            real += int(token_mask(batch).sum()) if sides is None else size_of(batch) * sides[0]
            across += 0 if sides is None else size_of(batch) * sides[1]
            _update(digest, batch)
            kept.append(batch)
        if examples == 0:
            raise InputError(
                "the calibration set is empty: pass at least one batch of inputs. "
                "An iterator that was read before gives no more; make it anew."
            )
        positions, width = -(-real // examples), -(-across // examples)
        other = None if width in (0, positions) else width
        labels = [name for name in first if name in _LABELS]
        inputs = without_labels(first)
        keywords = {
            name: value.item() if isinstance(value, Tensor) else value
            for name, value in inputs.items()
            if not batched(value)
        }
        return cls(
            kept,
            device,
            examples,
            len(kept),
            positions,
            other,
            digest.hexdigest(),
            keywords,
            tuple(dict.fromkeys([*labels, *left_out])),
            looks_of(inputs),
        )

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            yield to_device(without_labels(batch), self.device)

    def __len__(self) -> int:
        return self.count

    def sample(self) -> Batch:
        """Two examples, of the first batch."""
        batch = next(iter(self))
        return next(split(batch if size_of(batch) > 1 else tile(batch, 2), 2))

    def labelled(self) -> Iterator[Batch]:
        """The batches with their labels.

        Raises:
            InputError: a batch without labels.
        """
        for batch in self.source:
            if without_labels(batch).keys() == batch.keys():
                raise InputError("this criterion needs labels: add them to every batch, or choose another one.")
            yield to_device(batch, self.device)

    def micro_size(self, draws: int) -> int:
        """Examples per micro-batch so that one pass gives at least about `draws` of them."""
        return min(max(1, self.examples // draws), MICRO)


class _Kept:
    """Batches in memory, and beyond `KEPT` bytes on disk."""

    def __init__(self) -> None:
        self._values: list[Batch] = []
        self._store = Store(KEPT)

    def append(self, batch: Batch) -> None:
        place = len(self._values)
        for name, value in batch.items():
            if isinstance(value, Tensor):
                self._store[place, name] = value
        self._values.append({name: None if isinstance(value, Tensor) else value for name, value in batch.items()})

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Batch]:
        for place, values in enumerate(self._values):
            tensors = {name: self._store[place, name] for name in values if (place, name) in self._store}
            yield values | tensors


_LABELS = (
    *("labels", "label", "label_ids", "start_positions", "end_positions", "next_sentence_label"),
    *("mask_labels", "class_labels"),
)
_TEXTS = ("input_ids", "inputs_embeds", "input_features")  # what an attention mask belongs to: one entry a position
_ROW_DIMS = {"input_ids": 1, "pixel_values": 3}  # dimensions of one example of what most networks take


def without_labels(batch: Batch) -> Batch:
    """The batch as a network sees it when it is used."""
    return {name: value for name, value in batch.items() if name not in _LABELS}


def batched(value: Any) -> bool:
    """Whether a value of a batch has the examples along its first axis; others are the same for all of them."""
    return isinstance(value, Tensor) and value.dim() > 0


def size_of(batch: Batch) -> int:
    """Number of examples in a batch."""
    return int(next(value for value in batch.values() if batched(value)).shape[0])


def token_mask(batch: Batch) -> Tensor:
    """Shape (batch, token), bool: which tokens of a text are not padding."""
    name = _text_of(batch)
    if name is None:
        first = next(value for value in batch.values() if batched(value))
        return torch.ones((*first.shape[:1], 1), dtype=torch.bool, device=first.device)
    mask, text = batch.get("attention_mask"), batch[name]
    if mask is not None and mask.shape == text.shape[:2]:
        return torch.as_tensor(mask.bool())
    return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)


def position_mask(batch: Batch, hidden: Tensor) -> Tensor:
    """Shape (batch, token) or whatever precedes the features of `hidden`, bool: its positions without padding.

    Only the positions of a text are padded. Image patches, windows and feature maps have no padding, the mask of a
    sound counts its samples, and beside images the mask is that of the text tower.
    """
    if _text_of(batch) is not None and image_sides(batch) is None:
        mask, shape = token_mask(batch), hidden.shape[:-1]
        if mask.shape == shape or (len(shape) == 1 and mask.numel() == shape[0]):
            return mask.reshape(shape)  # some modules read all tokens of all examples in a row
    return torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)


def image_sides(batch: Batch) -> tuple[int, int] | None:
    """Height and width of the images of a batch in pixels; 1 where there is neither image nor text, None for text."""
    images = next((value for value in batch.values() if isinstance(value, Tensor) and _is_image(value)), None)
    if images is not None:
        return images.shape[2], images.shape[3]
    return None if _text_of(batch) is not None else (1, 1)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Micro-batches of at most `size` examples, padding that none of them needs cut off."""
    for start in range(0, size_of(batch), size):
        yield _trim({name: value[start : start + size] if batched(value) else value for name, value in batch.items()})


def tile(batch: Batch, times: int) -> Batch:
    """The batch repeated along its first axis."""
    return {
        name: value.repeat(times, *[1] * (value.dim() - 1)) if batched(value) else value
        for name, value in batch.items()
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def shapes_of(batch: Batch) -> str:
    """The batch for people: names with shapes, other values as they are."""
    return ", ".join(
        f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} {value!r}"
        for name, value in batch.items()
    )


def _text_of(batch: Batch) -> str | None:
    """The name of the text, or of whatever else has one entry a position."""
    return next((name for name in _TEXTS if name in batch and batch[name].dim() >= 2), None)


def _is_image(value: Tensor) -> bool:
    return value.dim() == 4 and value.is_floating_point()


def _trim(batch: Batch) -> Batch:
    if "attention_mask" not in batch or _text_of(batch) is None or image_sides(batch) is not None:
        return batch  # units of two towers are those of images
    if any(name.startswith("decoder") for name in batch):
        return batch  # what is as long as the padded text need not be of it
    mask = token_mask(batch)
    used = int(mask.any(0).nonzero().max()) + 1 if mask.any() else mask.shape[1]
    return {
        name: value[:, :used] if batched(value) and value.shape[:2] == mask.shape else value
        for name, value in batch.items()
    }


def _read(source: Iterable[Any]) -> Iterator[Any]:
    """The batches of a source, and one clear line where it fails."""
    try:
        yield from source
    except StopIteration:  # raised by a source that misuses it: there is no more
        return
    except RuntimeError as error:
        if isinstance(error.__cause__, StopIteration):
            return
        raise


def _batch(raw: Any, index: int, taken: Collection[str]) -> tuple[Batch, list[str]]:
    """A batch as tensors and plain values, and the names of the texts and labels that no forward takes."""
    raw, dropped = _named(raw, taken)
    batch: Batch = {}
    for name in raw:
        if not isinstance(name, str):
            raise InputError(f"the inputs of a batch are named by texts, not by {name!r:.40}.")
    # Boxes and masks of every image are no inputs of a forward.
    dropped += [name for name, value in raw.items() if name in _LABELS and _holds(value)]
    kept = [name for name in raw if name not in dropped]
    for name, value in (leaf for root in kept for leaf in _leaves(root, raw[root])):
        found = _value(name, value)
        if _is_text(found) and (name not in taken or not isinstance(found, str)):
            dropped.append(name)
        else:
            batch[name] = found
    tensors = {name: value for name, value in batch.items() if batched(value)}
    if not tensors:
        raise InputError("a batch of the calibration set holds no tensors: tokenise it with return_tensors='pt'.")
    for name, dims in _ROW_DIMS.items():
        if name in tensors and tensors[name].dim() == dims and not _batched_patches(name, tensors):
            raise InputError(
                f"{name!r} of shape {tuple(tensors[name].shape)} is one example, not a batch of them. "
                "Stack rows into batches, for example with DataLoader(rows, batch_size=16)."
            )
    if len({value.shape[0] for value in tensors.values()}) != 1:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        raise InputError(f"all tensors of a batch must share their first axis, the examples, unlike {shapes}.")
    if size_of(tensors) == 0:
        raise InputError("a batch of the calibration set has no examples: leave it out.")
    for name, value in batch.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name!r} of calibration batch {index + 1} is {value}: mend the data.")
    for name, value in tensors.items():
        if value.is_floating_point() and bool(value.isnan().any() | (value == torch.inf).any()):
            raise InputError(f"{name!r} of calibration batch {index + 1} holds NaN or infinity: mend the data.")
    return batch, dropped


def _batched_patches(name: str, tensors: Batch) -> bool:
    """Whether images were cut into patches that lie in a row, with sizes or masks beside them."""
    return name == "pixel_values" and any(
        other != name and value.shape[0] == tensors[name].shape[0] for other, value in tensors.items()
    )


def _named(raw: Any, taken: Collection[str]) -> tuple[Mapping[Any, Any], list[str]]:
    """What a loader gives, by name: inputs of pairs with a label, and one tensor as the forward's first argument.

    Raises:
        InputError: something else; says what to pass.
    """
    dropped = []
    if isinstance(raw, (tuple, list)) and 0 < len(raw) <= 2 and isinstance(raw[0], (Mapping, Tensor)):
        if isinstance(raw[0], Mapping) and len(raw) == 2 and isinstance(raw[1], Mapping):
            raise InputError(
                "a batch must be a mapping of inputs, not a list of rows: use DataLoader(rows, batch_size=16)."
            )
        dropped = ["the labels of each pair"] if len(raw) == 2 else []
        raw = raw[0]
    if isinstance(raw, Tensor) and taken:
        return {next(iter(taken)): raw}, dropped
    if not isinstance(raw, Mapping):
        raise InputError(
            f"a batch must be a mapping of keyword inputs to tensors, not {type(raw).__name__}. "
            "Give names: {'input_ids': ...} or {'pixel_values': ...}, the arguments of the network's forward."
        )
    return raw, dropped


def _value(name: str, value: Any) -> Any:
    """Lists and arrays of numbers as tensors; everything else as it is.

    Raises:
        InputError: rows of different lengths, or a value of a kind that cannot be split into examples.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided or value.is_nested:
            kind = "meta device" if value.is_meta else "nested" if value.is_nested else str(value.layout)
            raise InputError(f"{name!r} of a calibration batch is no plain tensor with values ({kind}): make it one.")
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = value.astype(np.float64) if value.dtype.itemsize > 8 else value
        return _single(torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("="))))
    if isinstance(value, (list, tuple)) and value:
        if _is_text(value):
            return value
        if len(value) > 1 and all(isinstance(row, Tensor) and row.dim() in (2, 4) for row in value):
            raise InputError(
                f"{name!r} of a calibration batch is a list of {len(value)} tensors of rank {value[0].dim()}, and "
                "nothing says whether they are examples: stack examples into one tensor, or pass inputs as a tuple."
            )
        try:
            rows = [torch.as_tensor(row) for row in value]
            return _single(torch.stack(rows))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{name!r} of a calibration batch is no tensor, and cannot become one: {first_line(error)}. "
                "Pad its rows to one length."
            ) from error
    raise InputError(
        f"{name!r} of a calibration batch is a {type(value).__name__}: pass tensors with the examples first, "
        "and numbers or truth values that are the same for all."
    )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds that holds tensors; rows of numbers stay together."""
    return leaves(name, value) if _holds(value) else iter([(name, value)])


def _holds(value: Any) -> bool:
    """Whether a value is no row or table of numbers: a mapping, a tuple of tensors, or a list of such."""
    if not isinstance(value, (tuple, list)):
        return isinstance(value, Mapping)
    return any(_holds(entry) or (isinstance(entry, Tensor) and isinstance(value, tuple)) for entry in value)


def _single(value: Tensor) -> Tensor:
    """Double precision, which nobody chose, as networks take it."""
    return value.to(torch.get_default_dtype()) if value.dtype == torch.float64 else value


def _is_text(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_text, value))
    return isinstance(value, str)


def _check_like(batch: Batch, first: Batch, index: int) -> None:
    """Refuse a batch that is not made as the first one is; inputs that are optional may be missing."""
    for name in {**first, **batch}:
        mine, its = batch.get(name), first.get(name)
        if isinstance(mine, Tensor) and isinstance(its, Tensor):
            alike = mine.dim() == its.dim() and mine.dtype == its.dtype
        elif isinstance(mine, Tensor) or isinstance(its, Tensor):
            alike = name not in batch or name not in first
        else:
            alike = mine == its
        if not alike:
            raise InputError(
                f"calibration batch {index + 1} is not made as the first one is: {shapes_of(batch)} beside "
                f"{shapes_of(first)}, which differ in {name!r}."
            )


def _update(digest: Any, batch: Batch) -> None:
    for name in sorted(batch):
        value = batch[name]
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r};".encode())
