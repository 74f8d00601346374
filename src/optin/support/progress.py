"""Progress: long loops run through a `Track`, which shows them or not."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Track(Protocol):
    """Iterate over `items` while showing how far the named stage is."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterator[T]: ...


class Callback(Protocol):
    """Told of every stage that is done, with its figures: what trackers of experiments take."""

    def __call__(self, stage: str, figures: Mapping[str, float]) -> None: ...


def no_callback(stage: str, figures: Mapping[str, float]) -> None:
    """A `Callback` that does nothing."""


def silent(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """A `Track` that shows nothing.

        result = optin.prune(model, batches, "50%", track=optin.silent)

    It is called with the items, what is done with them, and how many they are.
    """
    yield from items


def automatic(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """`rich_track` where somebody looks: on a terminal and in a notebook."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    yield from (rich_track if watched else silent)(items, description, total)


def rich_track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """A `Track` that draws a progress bar on the error stream.

        result = optin.prune(model, batches, "50%", track=optin.rich_track)

    It is called with the items, what is done with them, and how many they are.
    """
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=f"{description:<28}", total=total, console=Console(stderr=True))
