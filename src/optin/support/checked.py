"""Frozen dataclasses as options: checked when they are made, built from nested data."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import typing
from collections.abc import Mapping
from typing import Any

from ..errors import InputError, unknown
from .untyped import Figures, Foreign, Json


def require(option: str, value: object, condition: bool, expected: str) -> None:
    """Refuse the value of an option where a condition does not hold.

    Raises:
        InputError: says what it must be.
    """
    if not condition:
        raise InputError(f"the option {option!r} must be {expected}, not {str(value)[:60]!r}.")


def within(option: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside of a range."""
    require(option, value, low <= value <= high, f"between {low:,} and {high:,}")


@functools.cache
def _hints(kind: object) -> dict[str, object]:
    return typing.get_type_hints(kind)


def check_types(options: object, path: str) -> None:
    """Refuse what Python lets pass into a dataclass."""
    kind: object = type(options)
    for name, hint in _hints(kind).items():
        value, allowed = getattr(options, name), _allowed(hint)
        if typing.get_origin(hint) is list:
            _check_entries(path + name, value, hint)
            continue
        number = numbers.Real if float in allowed else numbers.Integral if int in allowed else ()
        fits = isinstance(value, number) if number and not isinstance(value, bool) else False
        if not (fits or isinstance(value, tuple(kind for kind in allowed if kind not in (int, float)))):
            raise InputError(_wrong(path + name, allowed, value))


def _allowed(hint: object) -> tuple[Foreign, ...]:
    """The types that a hint names; of a list those of its entries."""
    return typing.get_args(hint) or (hint,)


def _check_entries(option: str, values: object, hint: object) -> None:
    if not isinstance(values, list):
        raise InputError(f"the option {option!r} must be a list, not {values!r:.60}.")
    for value in values:
        _convert(_allowed(hint)[0], value, option)


def _wrong(option: str, allowed: typing.Iterable[Foreign], value: object) -> str:
    names = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in allowed)
    return f"the option {option!r} must be {names}, not {value!r:.60}."


def build(kind: type, data: object, path: str) -> Any:
    """A dataclass from nested data; what is not named keeps its default.

    Args:
        path: of the section, for errors.

    Raises:
        InputError: an unknown option, or a value of another type.
    """
    if not isinstance(data, dict):
        raise InputError(f"the option {path or 'recipe'!r} must be a mapping, not {data!r:.60}.")
    hints = _hints(kind)
    for key in data:
        if key not in hints:
            raise InputError(unknown("option", f"{path}{key}"[:200], [f"{path}{name}" for name in hints]))
    return kind(**{key: _convert(hints[key], value, f"{path}{key}") for key, value in data.items()})


def _convert(hint: object, value: object, path: str) -> object:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, f"{path}.")
    if typing.get_origin(hint) is list and isinstance(value, list):
        return [_convert(_allowed(hint)[0], entry, path) for entry in value]
    allowed = _allowed(hint)
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed and abs(value) < 2**63:
        value = float(value)
    if type(value) not in allowed or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(_wrong(path, allowed, value))
    return value


def merge(base: Figures, changes: Mapping[str, Json]) -> Figures:
    """Nested data with some of its entries changed."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
