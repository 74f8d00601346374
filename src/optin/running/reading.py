"""What a loader gives, made into a batch, or refused in one line that says what to pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, first_line
from .batch import LABELS, Batch, batched, shapes_of, size_of
from .nesting import leaves

_ROW_DIMS = {"input_ids": 1, "pixel_values": 3}  # dimensions of one example of what most networks take


def read_all(source: Iterable[object]) -> Iterator[Any]:
    """The batches of a source, and one clear line where it fails."""
    try:
        yield from source
    except StopIteration:  # raised by a source that misuses it: there is no more
        return
    except RuntimeError as error:
        if isinstance(error.__cause__, StopIteration):
            return
        raise


def read_batch(raw: object, index: int, taken: Collection[str]) -> tuple[Batch, list[str]]:
    """A batch as tensors and plain values, and the names of the texts and labels that no forward takes."""
    raw, dropped = _named(raw, taken)
    batch: Batch = {}
    for name in raw:
        if not isinstance(name, str):
            raise InputError(f"the inputs of a batch are named by texts, not by {name!r:.40}.")
    # Boxes and masks of every image are no inputs of a forward.
    dropped += [name for name, value in raw.items() if name in LABELS and _holds(value)]
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
            raise one_example(name, tensors[name])
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


def one_example(name: str, value: Tensor) -> InputError:
    """What to raise where a row stands for a batch."""
    return InputError(
        f"{name!r} of shape {tuple(value.shape)} is one example, not a batch of them. "
        "Stack rows into batches, for example with DataLoader(rows, batch_size=16)."
    )


def _batched_patches(name: str, tensors: Batch) -> bool:
    """Whether images were cut into patches that lie in a row, with sizes or masks beside them."""
    return name == "pixel_values" and any(
        other != name and value.shape[0] == tensors[name].shape[0] for other, value in tensors.items()
    )


def _named(raw: object, taken: Collection[str]) -> tuple[Mapping[Any, object], list[str]]:
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
            "Give names: {'input_ids': ...} or {'pixel_values': ...}, the arguments of the network's forward; of "
            "texts and images pass what prepares them (tokenizer=, processor= of optin.prune, optin.batches_of)."
        )
    return raw, dropped


def _value(name: str, value: object) -> object:
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


def _leaves(name: str, value: object) -> Iterator[tuple[str, object]]:
    """What a value holds that holds tensors; rows of numbers stay together."""
    return leaves(name, value) if _holds(value) else iter([(name, value)])


def _holds(value: object) -> bool:
    """Whether a value is no row or table of numbers: a mapping, a tuple of tensors, or a list of such."""
    if not isinstance(value, (tuple, list)):
        return isinstance(value, Mapping)
    return any(_holds(entry) or (isinstance(entry, Tensor) and isinstance(value, tuple)) for entry in value)


def _single(value: Tensor) -> Tensor:
    """Double precision, which nobody chose, as networks take it."""
    return value.to(torch.get_default_dtype()) if value.dtype == torch.float64 else value


def _is_text(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_text, value))
    return isinstance(value, str)


def check_like(batch: Batch, first: Batch, index: int) -> None:
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
