"""Calibration inputs: any iterable of a model's keyword inputs, read once and kept.

A batch is a mapping from names to values. Tensors have the examples along their first axis; lists and arrays of
numbers become tensors; numbers, truth values and None reach every forward as they are. Of tuples and mappings that
hold tensors a batch names the leaves, see `nesting`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..support.untyped import Figures, Foreign
from .batch import LABELS, Batch, batched, image_sides, size_of, split, tile, to_device, token_mask, without_labels
from .reading import check_like, read_all, read_batch
from .samples import looks_of
from .store import Store

MICRO = 4  # examples at most that are differentiated at once, which bounds memory
HELD_OUT = 4  # one in so many inputs, where some are held out
KEPT = 2**30  # bytes of what a loader gives that are kept in memory; the rest lies on disk


@dataclass(frozen=True)
class Batches:
    """A calibration set that can be iterated again and again, on one device, without labels.

    It is read once: what a loader that shuffles or augments gives in the first pass is what every pass sees. The
    batches of a list stay where they are; those of anything else are kept, beyond `KEPT` bytes on disk.

        batches = optin.Batches.of(loader, torch.device("cpu"))
        optin.prune(model, batches, "50%")

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
    keywords: Mapping[str, object]
    left_out: tuple[str, ...]
    looks: Mapping[str, object]

    @classmethod
    def of(
        cls,
        source: Iterable[object],
        device: torch.device,
        taken: Collection[str] = (),
        complete: Callable[[Batch], Batch] = dict,
    ) -> Batches:
        """Read a calibration set, and note its size, lengths and digest.

        Args:
            device: to which tensors are moved.
            taken: names of the forward's arguments: a text is passed on only under one of them.
            complete: adds to a batch what the forward needs and what follows from the rest.

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
        for index, raw in enumerate(read_all(source)):
            batch, dropped = read_batch(raw, index, taken)
            left_out |= dict.fromkeys(dropped)
            batch = complete(batch)
            first = first or batch
            check_like(batch, first, index)
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
        labels = [name for name in first if name in LABELS]
        inputs = without_labels(first)
        return cls(
            kept,
            device,
            examples,
            len(kept),
            positions,
            other,
            digest.hexdigest(),
            _keywords(inputs),
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

    @property
    def provenance(self) -> Figures:
        """What scores and plans say of the inputs that they were made on."""
        return {
            "examples": self.examples,
            "sha256": self.digest,
            "inputs": self.looks,
            **({"keywords": dict(self.keywords)} if self.keywords else {}),
            **({"left_out": list(self.left_out)} if self.left_out else {}),
        }

    def parts(self) -> tuple[Batches, Batches]:
        """Three quarters to calibrate on, and every fourth input to measure on.

        Raises:
            InputError: there are too few inputs.
        """
        if self.examples < HELD_OUT:
            raise InputError(f"of {self.examples} inputs a part is to be held out: pass at least {HELD_OUT}.")
        one, other = (
            Batches.of(self._part(held_out=held_out), self.device, next(iter(self.source)))
            for held_out in (False, True)
        )
        return one, other

    def _part(self, *, held_out: bool) -> Iterator[Batch]:
        start = 0
        for batch in self.source:
            count = size_of(batch)
            places = [place for place in range(count) if ((start + place + 1) % HELD_OUT == 0) == held_out]
            start += count
            if places:
                chosen = {name: value[places] if batched(value) else value for name, value in batch.items()}
                yield next(split(chosen, len(places)))  # without padding that none of them needs

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


def _keywords(inputs: Batch) -> dict[str, object]:
    """The values that are the same for all examples."""
    return {
        name: value.item() if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if not batched(value)
    }


def _update(digest: Foreign, batch: Batch) -> None:
    for name in sorted(batch):
        value = batch[name]
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r};".encode())
