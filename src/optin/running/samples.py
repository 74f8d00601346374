"""What the inputs of a network look like, as plain data: enough to make others of their kind, and nobody's own.

Of each tensor the type, the shape of one example and the range of its values; of whole numbers also the first and the
last (the marks around a text), a row of a table (a box), or all where there are few (the sizes of an image).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..support.untyped import Figures, Json

FEW = 16  # whole numbers of an example that are kept as they are
SPECIAL = 5  # words that are marks in most vocabularies: padding among them would change the positions
MOST = 2**28  # values of one tensor
_DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def looks_of(batch: Mapping[str, object]) -> Figures:
    """What the inputs of a batch look like, by name; values that are no tensors are left out."""
    mask = batch.get("attention_mask")
    found = {}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.dim() == 2 and isinstance(mask, Tensor) and mask.shape == value.shape:
            value = value[:, mask[0].bool()] if bool(mask[0].any()) else value
            looks: object = _looks(value) | {"shape": [mask.shape[1]]}
        else:
            looks = _looks(value)
        if looks is not None:
            found[name] = looks
    return found


def _looks(value: object) -> Json:
    if not isinstance(value, Tensor) or value.dim() == 0 or str(value.dtype).removeprefix("torch.") not in _DTYPES:
        return None
    one = value[0]
    found: dict[str, object] = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(one.shape)}
    if not value.numel():
        return found
    if value.is_floating_point():
        finite = value[torch.isfinite(value)]
        ends = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
        return found | {"low": ends[0], "high": ends[1]}
    whole = one.long()
    if whole.numel() <= FEW and whole.dim() != 1:
        return found | {"values": whole.flatten().tolist()}
    if whole.dim() >= 2 and whole.shape[-1] <= FEW:
        return found | {"values": whole.reshape(-1, whole.shape[-1])[0].tolist()}
    found |= {"low": int(value.min()), "high": int(value.max())}
    if whole.dim() == 1 and whole.numel() > 1:
        found |= {"first": int(whole[0]), "last": int(whole[-1])}
    return found


def made_of(
    looks: Mapping[str, object], batch: int, length: int | None = None, width: int | None = None
) -> dict[str, Tensor]:
    """Random inputs of the same kinds: the same ones at every call.

    Args:
        length: tokens of the texts, or pixels of an image side, if other than those seen.
        width: of images in pixels, if not `length`.

    Raises:
        CheckpointError: what they look like is damaged.
    """
    if not isinstance(looks, Mapping):
        raise _damaged()
    generator = torch.Generator().manual_seed(0)
    sizes = _sizes(looks, length, width)
    return {str(name): _made(entry, batch, sizes, generator) for name, entry in looks.items()}


Sizes = Mapping[tuple[int, ...], tuple[int, ...]]  # by the sizes seen, those wanted


def _sizes(
    looks: Mapping[str, object], length: int | None, width: int | None
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Which sizes of the inputs change, and to what: those of images, else those of texts."""
    if length is None:
        return {}
    shapes = {
        name: entry["shape"] for name, entry in looks.items() if isinstance(entry, Mapping) and "shape" in entry
    }
    images = [shape for shape in shapes.values() if isinstance(shape, list) and len(shape) == 3]
    if images:
        return {tuple(images[0][1:]): (length, width or length)}
    text = shapes.get("input_ids", shapes.get("inputs_embeds"))
    return {tuple(text[:1]): (length,)} if isinstance(text, list) and text else {}


def _made(entry: Json, batch: int, sizes: Sizes, generator: torch.Generator) -> Tensor:
    try:
        return _tensor(entry, batch, sizes, generator)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError):
        raise _damaged() from None


def _tensor(entry: Mapping[str, Json], batch: int, sizes: Sizes, generator: torch.Generator) -> Tensor:
    shape, dtype = list(entry["shape"]), _DTYPES[entry["dtype"]]
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(shape)
    for old, new in sizes.items():
        if len(old) == 2 and len(shape) >= 2 and tuple(shape[-2:]) == old:
            shape[-2:] = new
        elif len(old) == 1 and tuple(shape[:1]) == old:
            shape[:1] = new
    if batch * math.prod(shape) > MOST:
        raise ValueError(shape)
    if "values" in entry:
        row = torch.tensor(entry["values"], dtype=torch.long)
        return (row.reshape(shape) if row.numel() == math.prod(shape) else row).expand(batch, *shape).to(dtype)
    low, high = entry.get("low", 0), entry.get("high", 1)
    if dtype.is_floating_point:
        if low == high or ({low, high} == {0.0, 1.0} and len(shape) == 1):
            return torch.full((batch, *shape), float(high), dtype=dtype)
        drawn = torch.rand((batch, *shape), generator=generator)
        return (float(low) + (float(high) - float(low)) * drawn).to(dtype)
    if high <= 1:
        return torch.full((batch, *shape), int(high), dtype=dtype)  # a mask of nothing, or what is of one kind
    least = min(max(low, SPECIAL), high)
    made = torch.randint(least, max(high, least + 1), (batch, *shape), generator=generator)
    if "first" in entry and len(shape) == 1 and shape[0] > 1:
        made[:, 0], made[:, -1] = int(entry["first"]), int(entry["last"])
    return made.to(dtype)


def _damaged() -> CheckpointError:
    return CheckpointError("what the inputs look like, in the provenance, is damaged: make the plan anew.")
