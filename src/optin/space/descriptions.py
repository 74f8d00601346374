"""What a description says about removal, as plain data that travels with a plan.

A checkpoint is cut by the description that it was made by, so that no later way of describing reads an old plan
otherwise. Beside the network at hand it is checked by `surgery.check_description`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

from ..errors import CheckpointError
from ..support.untyped import Figures, Json
from .removal import Absence, Argument, Attribute, Cut
from .units import TokenSpace, UnitGroup, UnitSpace

MOST = 10**9  # entries of an axis
AXES = 8


def to_dict(space: UnitSpace) -> Figures:
    """Cuts, counts, twins and where tokens merge; all that a forward says beside can be found anew."""
    groups = {}
    for group in space:
        entry: dict[str, object] = {"kind": group.kind, "cuts": [_listed(cut) for cut in group.cuts]}
        for name in ("attributes", "arguments"):
            if values := getattr(group, name):
                entry[name] = [_listed(value) for value in values]
        if group.twins:
            entry["twins"] = list(group.twins)
        if group.absence is not None:
            entry["absence"] = _listed(group.absence)
        groups[group.name] = entry
    tokens = space.tokens
    if tokens is None:
        return {"groups": groups}
    places = {"blocks": list(tokens.blocks), "heads": list(tokens.heads)}
    rest = {name: getattr(tokens, name) for name in ("keys", "attention", "protected", "averaged")}
    return {"groups": groups, "tokens": places | rest}


def _listed(value: Cut | Attribute | Argument | Absence) -> list[object]:
    parts = astuple(value)
    return [list(part) if isinstance(part, tuple) else part for part in parts if part is not None]


def from_dict(data: Json, architecture: str, sizes: Mapping[str, int]) -> UnitSpace:
    """Read what `to_dict` wrote. Input is not trusted.

    Args:
        sizes: units per group.

    Raises:
        CheckpointError: anything missing, of another type or out of bounds.
    """
    try:
        apart = sorted(set(data["groups"]) ^ set(sizes))
        if apart:
            raise CheckpointError(f"the plan says nothing about the group {apart[0]!r:.80}, or does not describe it.")
        groups = tuple(_group(name, data["groups"][name], size) for name, size in sizes.items())
        tokens = _tokens(data["tokens"]) if "tokens" in data else None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"the description in the plan is damaged ({error!s:.80}): make the plan anew."
        ) from None
    return UnitSpace(architecture, groups, tokens=tokens)


def _group(name: str, data: Json, size: int) -> UnitGroup:
    cuts = tuple(_cut(row, size) for row in data["cuts"])
    attributes = tuple(
        Attribute(_text(row[0]), _text(row[1]), _count(row[2], 1), _count(row[3], 0) if len(row) > 3 else None)
        for row in data.get("attributes", [])
    )
    arguments = tuple(
        Argument(_text(row[0]), _text(row[1]), _count(row[2], 0), _count(row[3], 0))
        for row in data.get("arguments", [])
    )
    twins = tuple(map(_text, data.get("twins", [])))
    absence = _absence(data["absence"]) if "absence" in data else None
    return UnitGroup(
        name, _text(data["kind"]), size, 0, cuts, (), attributes, arguments, twins=twins, absence=absence
    )


def _absence(row: Json) -> Absence:
    return Absence(_text(row[0]), _text(row[1]), _count(row[2], 0, AXES))


def _cut(row: Json, size: int) -> Cut:
    parameter, dim = _text(row[0]), _count(row[1], 0, AXES)
    if isinstance(row[-1], list):
        entries = tuple(_count(entry, 0) for entry in row[-1])
        block = _count(row[2], 1)
        if len(entries) != size * block or len(set(entries)) != len(entries):
            raise ValueError(f"the entries of {parameter!r}")
        return Cut(parameter, dim, block, 0, entries)
    return Cut(parameter, dim, _count(row[2], 1), _count(row[3], 0))


def _tokens(data: Json) -> TokenSpace:
    averaged = data["averaged"]
    return TokenSpace(
        tuple(map(_text, data["blocks"])),
        _text(data["keys"]),
        _text(data["attention"]),
        tuple(map(_text, data["heads"])),
        _count(data["protected"], 0),
        None if averaged is None else _text(averaged),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no name")
    return value


def _count(value: object, least: int, most: int = MOST) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r:.40} is no count")
    return value
