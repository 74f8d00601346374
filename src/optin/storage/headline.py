"""What a report opens with: one sentence, and the three figures in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..support.untyped import Json

LESS = ("wer",)  # metrics that are better the lower they are
PERPLEXITY = "times the perplexity"


class Tile(NamedTuple):
    """A figure in large letters.

    Attributes:
        value: the figure, with its sign or unit.
        words: what it is of.
        good: whether it is for the better; None where it is neither.
    """

    value: str
    words: str
    good: bool | None = None


def tiles(report: Mapping[str, Json]) -> list[Tile]:
    """Speed, size and quality, as far as they were measured."""
    return [tile for tile in (_speed(report), _size(report), _quality(report)) if tile is not None]


def sentence(report: Mapping[str, Json], name: str) -> str:
    """What became of a network."""
    parts = []
    if speed := _speed(report):
        parts.append(f"{speed.value} times as fast")
    if size := _size(report):
        parts.append(f"{size.value} of the size of {name}")
    if quality := _quality(report):
        perplexed = quality.words == PERPLEXITY
        parts.append(_perplexity(report["quality"]) if perplexed else _points(quality, report["quality"]))
    said = ", ".join(parts)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _points(quality: Tile, measured: Mapping[str, Json]) -> str:
    """Points gained or lost (of errors: added or spared), and how sure that is."""
    kind, _, metric = quality.words.partition(" of ")
    changes = ("spared", "added") if metric in LESS else ("gained", "lost")
    amount = "no" if quality.good is None else quality.value.lstrip("+-")
    interval = _interval(measured, metric, (quality.good is True) != (metric in LESS))
    on = f" on {examples:,} example{'s' * (examples > 1)}" if (examples := measured.get("examples")) else ""
    sure = f" ({interval})" if interval else ""
    return f"{amount} {kind} of {metric} {changes[quality.good is not True]}{sure}{on}"


def _perplexity(quality: Mapping[str, Json]) -> str:
    """Before and after, and how sure the difference is."""
    dense, pruned = (quality[name]["perplexity"] for name in ("dense", "pruned"))
    ends: list[float] = (quality.get("interval") or {}).get("perplexity") or []
    sure = f" (95 % interval of the difference {ends[0]:+.1f} to {ends[1]:+.1f})" if len(ends) == 2 else ""
    on = f" on {quality['examples']:,} windows" if quality.get("examples") else ""
    return f"perplexity {dense:.1f} before and {pruned:.1f} after{sure}{on}"


def _interval(quality: Mapping[str, Json], metric: str, risen: bool) -> str:
    """How sure it is what was lost or gained, in points.

    Args:
        risen: what is said is how far the metric rose, and not how far it fell.
    """
    ends = (quality.get("interval") or {}).get(metric) or ()
    if len(ends) != 2:
        return ""
    low, high = sorted(round(100 * (end if risen else -end), 1) + 0.0 for end in ends)
    return f"95 % interval {low:.1f} to {high:.1f}"


def _speed(report: Mapping[str, Json]) -> Tile | None:
    speeds = report.get("speed") or ()
    if not speeds:
        return None
    largest = max(speeds, key=lambda speed: speed["batch"])
    how = f"in batches of {largest['batch']}" if largest["batch"] > 1 else "one by one"
    return Tile(f"{largest['speedup']:.1f}", f"times as fast, {how}", largest["speedup"] > 1)


def _size(report: Mapping[str, Json]) -> Tile | None:
    for name, words in (("bytes", "of the bytes"), ("parameters", "of the parameters")):
        if (cost := report.get(name)) and cost["dense"] > 0:
            return Tile(f"{100 * cost['pruned'] / cost['dense']:.0f} %", words, cost["pruned"] < cost["dense"])
    return None


def _quality(report: Mapping[str, Json]) -> Tile | None:
    """The first metric that both networks have, where it is a share: in points."""
    quality = report.get("quality") or {}
    dense, pruned = quality.get("dense") or {}, quality.get("pruned") or {}
    for metric, value in pruned.items():
        before = dense.get(metric)
        if before is None or value is None:
            continue
        if metric == "perplexity" and before > 0:
            return Tile(f"{value / before:.2f}", PERPLEXITY, value < before)
        if metric in LESS or (abs(before) <= 1 and abs(value) <= 1):
            points = round(100 * (value - before), 1)
            better = None if points == 0 else (points > 0) != (metric in LESS)
            return Tile(f"{points:+.1f}", f"points of {metric}", better)
    return None
