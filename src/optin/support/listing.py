"""Data that show themselves as a table: as text, and in notebooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Listing(NamedTuple):
    """A table of words, and what stands above it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Listed(ABC):
    """Has a `listing`."""

    @abstractmethod
    def listing(self) -> Listing:
        """What it shows."""

    def summary(self) -> str:
        """The table as text: first columns to the left, figures to the right."""
        title, head, rows = self.listing()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = (
            "  ".join(
                word.rjust(width) if place else word.ljust(width)
                for place, (word, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        )
        return "\n".join([title, "", *lines])

    def _repr_html_(self) -> str:
        title, head, rows = self.listing()
        names, *body = (
            "".join(f"<{cell}>{escape(word)}</{cell}>" for word in row)
            for cell, row in (("th", head), *(("td", row) for row in rows))
        )
        lines = "".join(f"<tr>{line}</tr>" for line in body)
        return f"<p>{escape(title)}</p><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"
