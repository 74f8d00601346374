"""The report: one HTML file without scripts or links, which opens with the verdict and shows how it came about."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from ..recipe import Recipe
from ..result import shown, verdict
from ..space.plans import Plan
from ..support.untyped import Figures, Json
from .headline import sentence, tiles
from .templates import filled

CELLS = 64  # parts at most that a group's units are gathered into
WIDTH, HEIGHT = 320, 180  # of a plot, in its own units
GENERATOR = b'<meta name="generator" content="optin">'  # in the template
PICTURES = ("tokens-*.png", "scene-*.png")


def render(
    report: Mapping[str, Json],
    plan: Plan,
    recipe: Recipe,
    name: str,
    pictures: Sequence[Path] = (),
    sweep: Mapping[str, object] | None = None,
) -> str:
    """The page.

    Args:
        report: what `report.json` holds; parts that it lacks are left out.
        name: of the network.
        pictures: PNG files to put in.
        sweep: what `optin sweep` stores.
    """
    provenance = dict(plan.provenance)
    return filled(
        "report.html.j2",
        name=name,
        budget=report.get("budget"),
        sentence=sentence(report, name),
        tiles=tiles(report),
        verdict=verdict(report),
        divergence="kl" in ((report.get("quality") or {}).get("pruned") or {}),
        machine=report.get("machine") or {},
        budgets=budgets(report),
        expected=expected(report),
        units=units(plan),
        layers=layers(report.get("breakdown") or {}),
        curves=curves(report.get("curves") or {}, plan),
        sweep=[] if sweep is None else sweep_plots(sweep),
        pictures=[(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in pictures],
        tokens=plan.tokens,
        seconds=report.get("seconds") or {},
        recipe=yaml.safe_dump(recipe.to_dict(), sort_keys=False),
        data=calibration_of(provenance.get("data")),
        versions=versions if isinstance(versions := provenance.get("versions"), dict) else {},
        warnings=warnings(report),
    )


def budgets(report: Mapping[str, Json]) -> list[Figures]:
    """What other budgets would give, this network's marked as its "own"."""
    if not (points := report.get("outlook")):
        return []
    share = _left(report)
    near = min(points, key=lambda point: abs(point["macs"] - share))
    return [
        {
            "share": f"{point['macs']:.0%}",
            "parameters": f"{point['parameters']:.0%}",
            "kl": shown(point["kl"]),
            "speedup": _speedup(report, point["macs"]),
            "own": point is near,
        }
        for point in points
    ]


def expected(report: Mapping[str, Json]) -> Figures:
    """The KL of other budgets as a line, cut where this network is."""
    points = report.get("outlook") or []
    line = plot("kl", [point["kl"] for point in points], "kl", [point["macs"] for point in points]) if points else {}
    return {**line, "cut": round(WIDTH * _left(report), 1), "removed": "this network"}


def _left(report: Mapping[str, Json]) -> float:
    """The share of the MACs."""
    macs = report.get("macs") or {}
    return float(macs["pruned"] / macs["dense"]) if macs.get("dense") else 1.0


def _speedup(report: Mapping[str, Json], macs: float) -> str:
    """With this share of the MACs, if the time falls in a line from the dense network's to what was measured."""
    left = _left(report)
    largest = max(report.get("speed") or (), key=lambda speed: speed["batch"], default=None)
    if largest is None or left >= 1 or largest["speedup"] <= 0:
        return ""
    fixed = max(0.0, (1 / largest["speedup"] - left) / (1 - left))  # of the time, which no removal saves
    time = fixed + (1 - fixed) * macs
    return f"{1 / time:.1f}" if time > 0 else ""


def is_report(file: Path) -> bool:
    """Whether a file is a report that optin wrote."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        return GENERATOR in handle.read(1000)


def calibration_of(data: Json) -> Figures:
    """What a plan says about the calibration data, if it says it as optin does."""
    known = isinstance(data, dict) and isinstance(data.get("sha256"), str) and "examples" in data
    return data if known else {}


def units(plan: Plan) -> list[Figures]:
    """Of every group: its cells, each the share of its units that stayed."""
    rows = []
    for name, size in plan.sizes.items():
        stays = [0] * size
        for unit in plan.keep[name]:
            stays[unit] = 1
        count = min(CELLS, size)
        edges = [size * cell // count for cell in range(count + 1)]
        cells = [sum(stays[a:b]) / (b - a) for a, b in pairwise(edges)]
        rows.append({"name": name, "kept": sum(stays), "of": size, "cells": cells})
    return rows


def layers(breakdown: Mapping[str, Mapping[str, int]]) -> list[Figures]:
    """MACs of every block before and after, with their shares of the most expensive one."""
    parts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for module, macs in breakdown.items():
        # Up to the first number: the block that a module lies in.
        found = re.match(r".*?\.\d+(?=\.|$)", module)
        block = found.group() if found else module or "network"
        parts[block][0] += macs["dense"]
        parts[block][1] += macs["pruned"]
    most = max((dense for dense, _ in parts.values()), default=0)
    return [
        {"name": name, "dense": dense, "pruned": pruned, "before": dense / most, "after": pruned / most}
        for name, (dense, pruned) in sorted(parts.items(), key=lambda item: _natural(item[0]))
        if dense > 0
    ]


def curves(found: Mapping[str, Sequence[float]], plan: Plan) -> list[Figures]:
    """Removal curves on a scale of roots, since they climb by orders; with the share that the plan removed."""
    lines = []
    for name, values in found.items():
        if name not in plan.kept or not values:
            continue
        line = plot(name, [max(value, 0.0) ** 0.5 for value in values], name)
        for point, value in zip(line["points"], values, strict=True):
            point["value"] = shown(value)
        removed = 1 - plan.kept[name] / plan.sizes[name]
        cut = {"cut": round(WIDTH * removed, 1), "removed": f"removed: {removed:.0%}"}
        lines.append({**line, "high": shown(max(values)), **cut})
    return lines


def plot(title: str, values: Sequence[float], label: str, places: Sequence[float] | None = None) -> Figures:
    """A line: points in the units of the picture, and the figures that they stand for.

    Args:
        places: where each value lies from 0 to 1; evenly spread if not given.
    """
    places = places or [index / max(len(values) - 1, 1) for index in range(len(values))]
    low, high = min(0.0, *values), max(values)
    span = (high - low) or 1.0
    points = [
        {
            "x": round(WIDTH * place, 1),
            "y": round(HEIGHT * (1 - (value - low) / span), 1),
            "place": f"{place:.0%}",
            "value": shown(value),
        }
        for place, value in zip(places, values, strict=True)
    ]
    return {"title": title, "label": label, "points": points, "high": shown(high)}


def sweep_plots(sweep: Mapping[str, Json]) -> list[Figures]:
    """Every figure of a sweep against the share of the MACs."""
    points = sorted(sweep["points"], key=lambda point: float(point["macs"]))
    names = measured(points)
    dense = {name: value for name, value in sweep.get("dense", {}).items() if value is not None}
    return [
        plot(
            f"{name} (dense: {shown(dense[name])})" if name in dense else name,
            [point[name] for point in points],
            name,
            [point["macs"] for point in points],
        )
        for name in names
    ]


def measured(points: Sequence[Mapping[str, object]]) -> list[str]:
    """The figures that all points of a sweep have."""
    beside = ("budget", "macs", "parameters", "skipped")
    return [name for name in points[0] if name not in beside and all(point.get(name) is not None for point in points)]


def warnings(report: Mapping[str, Json]) -> list[str]:
    """What a reader should know before relying on the figures."""
    found = []
    quality = report.get("quality")
    if quality is None:
        found.append("Quality was not measured: no labelled data was given.")
    elif (examples := quality.get("examples") or 0) < 1000:
        found.append(f"Quality was measured on {examples} examples only.")
    return found + overlap(quality or {}) + notes(report)


def notes(report: Mapping[str, Json]) -> list[str]:
    """What is to be said beside the costs: what the shares are of, and what a budget of loss came to."""
    return _earlier(report) + _held_out(report)


def _held_out(report: Mapping[str, Json]) -> list[str]:
    if (loss := report.get("loss")) is None:
        return []
    return [
        f"The smallest of {len(loss['tried'])} refitted networks within {loss['budget']}, measured on "
        f"{loss['examples']} calibration inputs that were held out: {loss['measured']:.4g}."
    ]


def _earlier(report: Mapping[str, Json]) -> list[str]:
    dense = report.get("original", {}).get("macs", 0)
    if dense <= 0 or "macs" not in report:
        return []
    macs = report["macs"]
    return [
        f"The network given was pruned before, to {macs['dense'] / dense:.1%} of {dense:,} MACs, and shares here are "
        f"of what it had left. Of the network before any pruning {macs['pruned'] / dense:.1%} of the MACs are left."
    ]


def overlap(quality: Mapping[str, object]) -> list[str]:
    """What is to be said of the evaluated examples where calibration drew from the same data."""
    if seen := quality.get("seen"):
        return [
            f"Calibration saw {seen} of the {quality.get('examples')} evaluated examples: too few were left without."
        ]
    if left_out := quality.get("left_out"):
        return [f"The {left_out} examples that calibration saw were not evaluated; the data is the same."]
    return []


def _natural(name: str) -> list[object]:
    """Sorts 10 behind 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
