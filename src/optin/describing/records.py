"""What is noted while one forward is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .classes import varying


@dataclass(frozen=True)
class Weight:
    """A parameter or a buffer, or a view of one.

    Attributes:
        name: of the parameter.
        axes: for each of its axes that has more than one entry the labels, in the rank of the view.
    """

    name: str
    axes: tuple[Tensor, ...]

    def along(self, axis: int) -> Tensor | None:
        """The labels that tell the entries of one axis apart, as a row."""
        return next((labels.flatten() for labels in self.axes if varying(labels) == [axis]), None)


@dataclass(frozen=True)
class Forbidden:
    """Labels that must not be told apart along an axis: no cut goes through it there."""

    labels: Tensor
    axis: int
    reason: str


@dataclass
class Product:
    """A product that costs MACs, in order of execution.

    Attributes:
        parts: labels of what it grows with: entries made, entries read, or slices of a batch.
        activations: whether both factors are values: all in one slice leaves together, that is a head.
    """

    module: str
    parts: list[Tensor] = field(default_factory=list)
    activations: bool = False


@dataclass(frozen=True)
class Sum:
    """Where the output of a map is added to something: the first module that reads or returns it.

    Attributes:
        scale: the parameter, or the batch norm, that multiplies the output before.
    """

    module: str
    side: str
    scale: str | None


@dataclass(frozen=True)
class Step:
    """An operation of the forward, in order of execution.

    Attributes:
        reads, makes: its values by number; parameters have none.
        modules: those that it belongs to, from the outside in.
    """

    reads: tuple[int, ...]
    makes: tuple[int, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """Whose output a value is.

    Attributes:
        weight: of the map that made it.
        scale: the parameter, or the batch norm, that multiplied it.
        shift: the buffer that was subtracted from it.
        summed: whether something was added.
    """

    weight: str
    scale: str | None = None
    shift: str | None = None
    summed: bool = False


@dataclass(frozen=True)
class Given:
    """A value that modules are called with, the same for all examples.

    Attributes:
        value: itself.
        labels: by axis those that tell its entries apart along this axis alone.
        to: the modules that work on it and do not return it, with the name and the position of the argument.
    """

    value: Tensor
    labels: dict[int, Tensor]
    to: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass
class Call:
    """An operation that meets labels."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, object]
    out: Any
    tensors: Sequence[Tensor] = field(default_factory=list)

    @property
    def first(self) -> Any:
        """What it returns, or the first of several values."""
        return self.out[0] if isinstance(self.out, (tuple, list)) else self.out

    def argument(self, place: int, name: str, default: object = None) -> Any:
        """By place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)
