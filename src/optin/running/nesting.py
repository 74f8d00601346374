"""Inputs that hold others: a batch names their leaves, and a forward gets them as they were.

An entry of a mapping is named `pair.left`, of a tuple `pair(0)`, of a list `pair[0]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError
from ..support.untyped import Arguments

_KEY = re.compile(r"[^.\[\]()]+")
_STEP = re.compile(r"\.([^.\[\]()]+)|\[(\d+)\]|\((\d+)\)")


def leaves(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """What a value holds, by name; itself where it holds nothing.

    Raises:
        InputError: a key that no name can be made of.
    """
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise InputError(
                    f"{name!r:.80} of a batch has the key {key!r:.40}: keys must be texts without . [ ] ( )."
                )
            yield from leaves(f"{name}.{key}", entry)
    elif isinstance(value, (tuple, list)):
        marks = "()" if isinstance(value, tuple) else "[]"
        for place, entry in enumerate(value):
            yield from leaves(f"{name}{marks[0]}{place}{marks[1]}", entry)
    else:
        yield name, value


def root_of(name: str) -> str:
    """The argument of the forward that a leaf lies in."""
    return name[: match.start()] if (match := _STEP.search(name)) else name


def nested(inputs: Mapping[str, object]) -> Arguments:
    """Inputs as a forward takes them, from leaves by name."""
    found: dict[str, object] = {}
    for name, value in inputs.items():
        root = root_of(name)
        steps: list[str | tuple[int] | int] = [root]
        for key, entry, place in _STEP.findall(name[len(root) :]):
            steps.append(key or ((int(place),) if place else int(entry)))
        _put(found, steps, value)
    return {name: _built(value) for name, value in found.items()}


def _put(tree: dict[Any, Any], steps: list[Any], value: object) -> None:
    for step in steps[:-1]:
        tree = tree.setdefault(step, _Branch())
    tree[steps[-1]] = value


class _Branch(dict[Any, object]):
    """Entries by key; by a whole number those of a list, by one in a tuple those of a tuple."""


def _built(value: object) -> object:
    if not isinstance(value, _Branch):
        return value
    entries = {key: _built(entry) for key, entry in value.items()}
    kind = next(iter(entries))
    if isinstance(kind, str):
        return entries
    ordered = [entries[key] for key in sorted(entries)]
    return tuple(ordered) if isinstance(kind, tuple) else ordered
