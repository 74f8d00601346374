"""Blocks of a network: modules behind which a forward can resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from ..space.units import lies_in, pattern
from .tracking import Tracking

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
Spans = dict[str, tuple[int, int]]


def spans_of(track: Tracking) -> Spans:
    """The first and the last step of every module."""
    spans: Spans = {}
    for index, step in enumerate(track.steps):
        for path in step.modules:
            spans[path] = (spans.get(path, (index, index))[0], index)
    return spans


def whole(track: Tracking, path: str) -> bool:
    """Whether a module runs once and returns one tensor."""
    return path in track.plain and track.calls.count(path) == 1


def chain(track: Tracking, results: Iterable[int]) -> tuple[str, ...]:
    """Modules after which one value alone is alive, so that a forward can resume there.

    Args:
        results: the values that the network returns, by number.
    """
    spans, last = spans_of(track), dict[int, float]()
    for index, step in enumerate(track.steps):
        last |= dict.fromkeys(step.reads, index)
    last |= dict.fromkeys(results, math.inf)
    made = {value for step in track.steps for value in step.makes}
    alive = {value for value in last if value not in made}
    found, before = list[str](), -1
    for index, step in enumerate(track.steps):
        new = {value for value in step.makes if last.get(value, -1) > index}
        alive = {value for value in alive if last[value] > index} | new
        if alive - new or len(new) > 1:
            continue
        ending = (path for path in step.modules if path and spans[path][1] == index)
        block = next((path for path in ending if spans[path][0] > before and whole(track, path)), None)
        if block is not None:
            found.append(block)
            before = index
    return tuple(found)


def cover(track: Tracking, totals: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """For each consumer the smallest module with it and its total inside, where values flow past modules too.

    Args:
        totals: consumers, and the modules where their totals are read.
    """
    spans, found = spans_of(track), set[str]()
    for consumer, total in totals:
        around = [consumer.rsplit(".", depth)[0] for depth in range(consumer.count(".") + 1)]
        both = (path for path in around if whole(track, path) and lies_in(total, path))
        found.add(next(both, consumer))
    outer = [path for path in found if not any(lies_in(path, other) for other in found - {path})]
    return tuple(sorted(outer, key=lambda path: spans[path]))


def listed(model: nn.Module, calls: Sequence[str], consumers: Sequence[str]) -> tuple[str, ...]:
    """The entries of lists in which consumers lie, in order of execution; else the modules around them.

    In a list of stages, each a list of blocks, it is the blocks. A block that runs several times, as the layers of
    ALBERT do, is named as often. A module that is never called itself, such as a list in a list, is no block.
    """
    containers = {name for name, module in model.named_modules() if isinstance(module, LISTS)}
    called = {*calls} - {""}

    def entries(consumer: str, within: str) -> list[str]:
        """The entries of lists that a consumer lies in, from the outside in, inside a module."""
        parts = consumer.split(".")
        around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return [
            path
            for path in around
            if path in called
            and path != within
            and (not within or lies_in(path, within))
            and _parent(path) in containers
        ]

    outer = {
        consumer: next(iter(entries(consumer, "")), parent if (parent := _parent(consumer)) in called else consumer)
        for consumer in consumers
    }
    while True:
        staged = {pattern(block) for block in outer.values() if _of_blocks(block, consumers, entries)}
        inner = {
            consumer: next(iter(entries(consumer, block)), block) if pattern(block) in staged else block
            for consumer, block in outer.items()
        }
        if inner == outer:
            break
        outer = inner
    blocks = dict.fromkeys(outer.values())
    ordered = [name for name in calls if name in blocks]
    return tuple(name for name in ordered if not any(name != other and lies_in(name, other) for other in ordered))


def behind(model: nn.Module, blocks: Sequence[str]) -> int:
    """How many of the last blocks are the head: no entries of lists, where others are."""
    lists = {name for name, module in model.named_modules() if isinstance(module, LISTS)}
    entries = [place for place, block in enumerate(blocks) if _parent(block) in lists]
    return len(blocks) - 1 - entries[-1] if entries else 0


def _of_blocks(block: str, consumers: Sequence[str], entries: Callable[[str, str], list[str]]) -> bool:
    """Whether all consumers in a block lie in the entries of one list inside it, and several in one of them."""
    inside = [consumer for consumer in consumers if lies_in(consumer, block)]
    found = [next(iter(entries(consumer, block)), "") for consumer in inside]
    return len({_parent(path) for path in found}) == 1 and "" not in found and len(set(found)) < len(inside)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
