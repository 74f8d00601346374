"""Calibration batches of texts, images and rows of `datasets`, by what prepares them for a network."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import InputError
from ..running.batch import Batch
from ..space.options import Calibration, check_examples
from ..support.untyped import Foreign
from . import prose, text, vision
from .data import Examples
from .images import Images

TEXTS = ("text", "sentence", "content", "document", "review")  # columns that are taken before others


def batches_of(
    model: nn.Module,
    data: Iterable[object],
    *,
    tokenizer: object = None,
    processor: object = None,
    batch_size: int = 32,
    examples: int = 256,
    max_length: int | None = None,
    seed: int = 0,
) -> list[Batch]:
    """Calibration batches of texts or images.

        batches = optin.batches_of(model, texts, tokenizer=tokenizer)

    Args:
        data: texts, pairs of texts, lists of words, or images (of Pillow or as arrays); or a `datasets.Dataset` with
            a column of them, or of encoded texts.
        tokenizer: prepares texts; where it has no padding token, texts follow each other in windows of one length.
        processor: prepares images.
        batch_size: examples of similar length in a batch.
        examples: at most, drawn by `seed`; fewer are used with a warning.
        max_length: tokens of a text or window; those that the network takes (of windows at most 256), if not given.

    Raises:
        InputError: no such data in it, or neither tokenizer nor processor.
    """
    if (tokenizer is None) == (processor is None):
        raise InputError("pass tokenizer= for texts or processor= for images, and not both.")
    if isinstance(data, (str, bytes)) or isinstance(tokenizer, str) or isinstance(processor, str):
        raise InputError(
            "pass a list of texts or images, and a tokenizer or processor that is loaded (for example "
            "transformers.AutoTokenizer.from_pretrained(folder)), not their names."
        )
    rows: Any = data if hasattr(data, "__getitem__") and hasattr(data, "__len__") else list(data)
    names = getattr(rows, "column_names", ())
    if isinstance(names, Mapping):
        raise InputError(f"these are several data sets ({', '.join(names)}): pass one, such as data['train'].")
    check_examples(len(rows))
    options = Calibration(examples, batch_size, max_length)
    if processor is not None:
        return vision.calibration_batches(model, _images(rows, names), processor, options, seed)
    if "input_ids" in names:
        return _padded(rows, tokenizer, options, seed)
    found = _texts(rows, names)
    if getattr(tokenizer, "pad_token", "") is None:  # of decoders, which read one text behind the other
        windows = prose.windows_of(model, tokenizer, prose.Documents([found], [1.0]), max_length)
        return prose.drawn_batches(model, windows, options, seed)[0]
    return text.calibration_batches(model, found, tokenizer, options, seed)


def _texts(rows: Foreign, names: Sequence[str]) -> Examples:
    """Texts, pairs or lists of words."""
    values = list(rows[_column(rows, names, _is_text, TEXTS, "texts")] if names else rows)
    if wrong := [value for value in values if not _is_text(value)]:
        raise InputError(f"a tokenizer prepares texts, and {wrong[0]!r:.60} is none: pass a list of texts.")
    if isinstance(values[0], tuple) and len(values[0]) == 2:
        return Examples([one for one, _ in values], [other for _, other in values])
    return Examples(values)


def _is_text(value: object) -> bool:
    several = isinstance(value, (tuple, list)) and all(isinstance(part, str) for part in value)
    return isinstance(value, str) or (several and bool(value))


def _images(rows: Foreign, names: Sequence[str]) -> Images:
    column = _column(rows, names, _is_image, ("image", "img"), "images") if names else None

    def read(index: int) -> Foreign:
        value = rows[index] if column is None else rows[index][column]
        if not _is_image(value):
            raise InputError(f"an image processor prepares images, and {value!r:.60} is none: pass a list of images.")
        return value.convert("RGB") if hasattr(value, "convert") else value

    return Images(read, len(rows), None)


def _is_image(value: object) -> bool:
    return hasattr(value, "convert") or (hasattr(value, "shape") and len(value.shape) == 3)


def _column(rows: Foreign, names: Sequence[str], fits: Foreign, wanted: Sequence[str], what: str) -> str:
    """The column that holds some kind of values: the only one, or the first with a usual name."""
    first = rows[0]
    found = [name for name in names if fits(first[name])]
    usual = [name for name in wanted if name in found]
    if len(found) == 1 or usual:
        return (usual or found)[0]
    several = f"several columns hold {what} ({', '.join(found)})"
    said = several if found else f"no column of {', '.join(names)} holds {what}"
    raise InputError(f"{said}: pass one, such as dataset['{(found or list(names))[0]}'].")


def _padded(rows: Foreign, tokenizer: Foreign, options: Calibration, seed: int) -> list[Batch]:
    """Encoded texts, in batches of similar length."""
    chosen = random.Random(seed).sample(range(len(rows)), options.taken(len(rows)))
    known = {"input_ids", *tokenizer.model_input_names}
    encoded = [{name: value for name, value in rows[index].items() if name in known} for index in chosen]
    encoded.sort(key=lambda row: len(row["input_ids"]))
    starts = range(0, len(encoded), options.batch_size)
    parts = (encoded[start : start + options.batch_size] for start in starts)
    return [dict(tokenizer.pad(part, padding=True, return_tensors="pt")) for part in parts]
