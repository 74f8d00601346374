"""Names for what no type says, each with the reason; `Any` itself stands where none of them fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Foreign = Any  # of a library without types, or of a class that is known by its attributes alone: tokenizers, networks
Json = Any  # what a file holds, before it is checked
Figures = dict[str, Any]  # what is reported, by name: numbers, texts, lists and mappings of them, as JSON has them
Arguments = dict[str, Any]  # of a call, by name
Hook = Callable[..., Any]  # of a module: how it is registered says what it is given
