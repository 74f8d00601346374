"""What follows when units leave: axes that shrink, counts, arguments, and what takes the place of a part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cut:
    """One axis of one parameter that shrinks with a group.

    Unit `u` owns the indices `offset + u * block` up to `offset + (u + 1) * block` of that axis. A fused
    query-key-value matrix is three cuts with three offsets. Where the units do not lie evenly, behind a shuffle of
    channels, `entries` says which they own: `block` of each, unit by unit.
    """

    parameter: str
    dim: int
    block: int = 1
    offset: int = 0
    entries: tuple[int, ...] | None = None

    def indices(self, size: int) -> Tensor:
        """Which entries each of `size` units owns: shape (unit, block)."""
        if self.entries is not None:
            return torch.tensor(self.entries, device="cpu").view(size, self.block)
        return self.offset + torch.arange(size * self.block, device="cpu").view(size, self.block)

    def last(self, size: int) -> int:
        """The last entry that any of `size` units owns."""
        return self.offset + size * self.block - 1 if self.entries is None else max(self.entries)


@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer attribute of a module that counts the units kept, times `per_unit`.

    `place` is that of the integer in a tuple or list. A name with a dot is an entry of the settings that the module
    holds, of which it gets a copy of its own.
    """

    module: str
    name: str
    per_unit: int = 1
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Argument:
    """A tensor that a module is called with and that has one slice per unit along `dim`.

    MPNet computes one position bias for all layers; each layer must pick the slices of its own heads.
    """

    module: str
    name: str
    position: int
    dim: int


@dataclass(frozen=True, slots=True)
class Absence:
    """How a network goes on where a group keeps nothing.

    `module` is passed over: it returns what `consumer`, the map that reads the units, makes of nothing, its bias. A
    consumer that lies outside is given nothing, features of no width. `outputs` are as many as the module returns,
    None behind the first; 0 says that it returns a tensor.
    """

    module: str
    consumer: str
    outputs: int = 0
