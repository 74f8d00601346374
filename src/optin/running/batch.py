"""One batch: a mapping from the names of a forward's arguments to values, tensors with the examples first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]

LABELS = (
    *("labels", "label", "label_ids", "start_positions", "end_positions", "next_sentence_label"),
    *("mask_labels", "class_labels"),
)

_TEXTS = ("input_ids", "inputs_embeds", "input_features")  # what an attention mask belongs to: one entry a position


def without_labels(batch: Batch) -> Batch:
    """The batch as a network sees it when it is used."""
    return {name: value for name, value in batch.items() if name not in LABELS}


def batched(value: object) -> bool:
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
            return mask.reshape(shape).to(hidden.device)  # some modules read all tokens of all examples in a row
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
        f"{name} {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
        if isinstance(value, Tensor)
        else f"{name} {value!r}"
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
