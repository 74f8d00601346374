"""Calibration inputs: any iterable of a model's keyword inputs, read once or many times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

Batch = dict[str, Tensor]
MICRO = 4  # examples at most that are differentiated at once, which bounds memory


@dataclass(frozen=True)
class Batches:
    """A calibration set that can be iterated again and again, on one device, without labels.

    A list or a loader is read anew in each pass, so memory does not grow with it; a generator, which can
    be read only once, is kept.

    Attributes:
        examples: number of inputs.
        positions: their mean length in tokens without padding, rounded up; for images the mean height in pixels.
        width: the mean width of images in pixels; None for texts and where it is the height.
        digest: SHA-256 of all input tensors.
    """

    source: Iterable[Mapping[str, Any]]
    device: torch.device
    examples: int
    count: int
    positions: int
    width: int | None
    digest: str

    @classmethod
    def of(cls, source: Iterable[Mapping[str, Any]], device: torch.device) -> Batches:
        """Check a calibration set and take its measure.

        Raises:
            InputError: no batches, or a batch that is no mapping of tensors of one batch size.
        """
        if isinstance(source, Batches):
            return source
        if isinstance(source, Mapping) or not isinstance(source, Iterable):
            raise InputError(
                f"calibration batches must be an iterable of keyword inputs, not one {type(source).__name__}. "
                "Pass a list: [batch]."
            )
        if isinstance(source, Iterator):
            source = list(source)
        digest, examples, count, real, across = hashlib.sha256(), 0, 0, 0, 0
        for raw in source:
            batch = _tensors(raw)
            examples += size_of(batch)
            count += 1
            sides = image_sides(batch)
            real += int(token_mask(batch).sum()) if sides is None else size_of(batch) * sides[0]
            across += 0 if sides is None else size_of(batch) * sides[1]
            for name in sorted(batch):
                digest.update(name.encode())
                digest.update(batch[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if examples == 0:
            raise InputError("the calibration set is empty: pass at least one batch of inputs.")
        positions, width = -(-real // examples), -(-across // examples)
        other = None if width in (0, positions) else width
        return cls(source, device, examples, count, positions, other, digest.hexdigest())

    def __iter__(self) -> Iterator[Batch]:
        for raw in self.source:
            yield to_device(without_labels(_tensors(raw)), self.device)

    def __len__(self) -> int:
        return self.count

    def labelled(self) -> Iterator[Batch]:
        """The batches with their labels.

        Raises:
            InputError: a batch without labels.
        """
        for raw in self.source:
            batch = _tensors(raw)
            if without_labels(batch).keys() == batch.keys():
                raise InputError("this criterion needs labels: add them to every batch, or choose another one.")
            yield to_device(batch, self.device)

    def micro_size(self, draws: int) -> int:
        """Examples per micro-batch so that one pass gives at least about `draws` of them."""
        return min(max(1, self.examples // draws), MICRO)


_LABELS = ("labels", "start_positions", "end_positions", "next_sentence_label", "label", "label_ids")


def without_labels(batch: Batch) -> Batch:
    """The batch as a network sees it when it is used."""
    return {name: value for name, value in batch.items() if name not in _LABELS}


def size_of(batch: Batch) -> int:
    """Number of examples in a batch."""
    return next(iter(batch.values())).shape[0]


def token_mask(batch: Batch) -> Tensor:
    """Shape (batch, token), bool: which tokens of a text are not padding."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    first = batch["input_ids"]
    return torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)


def position_mask(batch: Batch, hidden: Tensor) -> Tensor:
    """Shape (batch, token) or whatever precedes the features of `hidden`, bool: its positions without padding.

    Image patches, windows and feature maps have none.
    """
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == hidden.shape[:-1]:
        return mask.bool()
    return torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)


def image_sides(batch: Batch) -> tuple[int, int] | None:
    """Height and width of the images of a batch in pixels; 1 where there is neither image nor text, None for text."""
    images = next((value for value in batch.values() if value.dim() == 4), None)
    if images is not None:
        return images.shape[2], images.shape[3]
    return None if "input_ids" in batch else (1, 1)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Micro-batches of at most `size` examples, padding that none of them needs cut off."""
    for start in range(0, size_of(batch), size):
        yield _trim({name: value[start : start + size] for name, value in batch.items()})


def trimmed(batch: Batch, micro: Batch) -> int:
    """Tokens of padding that `split` cut off."""
    return token_mask(batch).shape[1] - token_mask(micro).shape[1] if "attention_mask" in batch else 0


def tile(batch: Batch, times: int) -> Batch:
    """The batch repeated along its first axis."""
    return {name: value.repeat(times, *[1] * (value.dim() - 1)) for name, value in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def _trim(batch: Batch) -> Batch:
    if "attention_mask" not in batch or image_sides(batch) is not None:  # units of two towers are those of images
        return batch
    mask = batch["attention_mask"]
    used = int(mask.any(0).nonzero().max()) + 1 if mask.any() else mask.shape[1]
    return {name: value[:, :used] if value.shape[:2] == mask.shape[:2] else value for name, value in batch.items()}


def _tensors(raw: Any) -> Batch:
    if not isinstance(raw, Mapping):
        raise InputError(f"a batch must be a mapping of keyword inputs to tensors, not {type(raw).__name__}.")
    batch = {name: value for name, value in raw.items() if isinstance(value, Tensor)}
    if not batch:
        raise InputError("a batch of the calibration set holds no tensors: tokenise it with return_tensors='pt'.")
    if len({value.shape[0] if value.dim() else None for value in batch.values()}) != 1:
        raise InputError("all tensors of a batch must share their first axis, the examples.")
    if size_of(batch) == 0:
        raise InputError("a batch of the calibration set has no examples: leave it out.")
    return batch
