"""Help at once: without a parser of Markdown that typer imports for it, and that ours does not use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

MARKDOWN = "rich.markdown"


class Unused:
    """In the place of Markdown, which a help in rich's own markup makes none of."""


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help, or says nothing."""
    return len(arguments) < 2 or "--help" in arguments or "-h" in arguments


def import_help() -> None:
    """Import typer's help with a stand-in for the parser, which is gone again afterwards."""
    if MARKDOWN in sys.modules or "typer.rich_utils" in sys.modules:
        return
    stand_in = ModuleType(MARKDOWN)
    vars(stand_in)["Markdown"] = Unused
    sys.modules[MARKDOWN] = stand_in
    try:
        import typer.rich_utils  # noqa: F401
    finally:
        del sys.modules[MARKDOWN]
