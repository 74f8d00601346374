"""Progress: long loops run through a `Track`, which shows them or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Iterate over `items` while showing how far the named stage is."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterator[T]: ...


def silent(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """A `Track` that shows nothing."""
    yield from items


def rich_track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """A `Track` that draws a progress bar on the error stream."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=f"{description:<28}", total=total, console=Console(stderr=True))
