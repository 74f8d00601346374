"""From the labels of a forward to units: classes that may leave, and the groups of those that are alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .classes import varying
from .tracking import Tracking

TOGETHER = "all that it reads leaves together"
RETURNED = "what the network returns"
NOWHERE = "nothing is seen that reads what it makes"


@dataclass
class Group:
    """Units that are alike: they own as many entries of the same axes.

    Attributes:
        entries: per (parameter, axis) the entries of every unit, ascending: shape (unit, entries).
        reads: the (parameter, axis) that a map reads them along.
        classes: of the units.
        head: whether two activations are multiplied within a unit, or one is sampled where the other says.
    """

    entries: dict[tuple[str, int], Tensor]
    reads: list[tuple[str, int]]
    classes: list[int]
    head: bool

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(next(iter(self.entries.values())))


@dataclass
class Found:
    """What a forward shows of a network.

    Attributes:
        roots: the class of every label.
        groups: of units that may leave.
        whole: per reason, which maps read what must stay.
        reasons: the first, by class that must stay.
        read: the classes that maps read.
    """

    roots: np.ndarray
    reasons: dict[int, str]
    groups: list[Group] = field(default_factory=list)
    whole: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    read: set[int] = field(default_factory=set)


def found(track: Tracking) -> Found:
    """Groups of units, and why the others stay."""
    roots = track.classes.roots().numpy()
    starts = np.array([first for first, _, _, _ in track.origins])
    places = [(name, axis) for _, name, axis, _ in track.origins]
    reasons = _blocked(track, roots)
    result = Found(roots, reasons)
    read = [labels.numpy() for labels in track.reads]
    labels = np.unique(np.concatenate(read)) if read else np.zeros(0, np.int64)
    reads = np.unique(np.stack([roots[labels], np.searchsorted(starts, labels, "right") - 1]), axis=1)
    blocked = np.zeros(len(roots), bool)
    blocked[list(reasons)] = True
    for root, place in reads[:, blocked[reads[0]]].T.tolist():
        result.whole[reasons[root]].add(places[place][0])
    several = set[int]()
    free = np.zeros(len(roots), bool)
    free[reads[0]] = True
    free &= ~blocked
    multiplied = [part for product in track.products if product.activations for part in product.parts]
    multiplied += track.sampled
    heads = {root for part in multiplied for root in _present(roots, part)}
    for units, entries in _alike(roots, free, starts):
        several |= set(units.tolist())
        named = {places[place]: torch.from_numpy(found) for place, found in entries.items()}
        read_by = {places[place] for place in reads[1, reads[0] == units[0]].tolist()}
        read_along = [place for place in named if place in read_by]
        if len(read_along) < len(named):  # else nothing makes them: what is read there has no labels
            result.groups.append(Group(named, read_along, units.tolist(), int(units[0]) in heads))
    for root, place in reads[:, free[reads[0]]].T.tolist():
        if root not in several and (roots == root).sum() > 1:
            result.whole[TOGETHER].add(places[place][0])
    result.read = set(reads[0].tolist())
    return result


def say_unread(track: Tracking, result: Found) -> None:
    """Say of maps why what they make stays, where no map is seen that reads it."""
    axes: dict[str, list[np.ndarray]] = defaultdict(list)
    for first, name, _, length in track.origins:
        axes[name].append(result.roots[first : first + length])
    for name, made in track.maps.items():
        labels = axes[name] if made is None else [result.roots[made.numpy()]]
        roots = dict.fromkeys(np.concatenate(labels).tolist()) if labels else {}
        reason = next((result.reasons[root] for root in roots if root in result.reasons), NOWHERE)
        if not result.read & roots.keys() and reason != RETURNED:
            result.whole[reason].add(name)


def _alike(
    roots: np.ndarray, free: np.ndarray, starts: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
    """Classes that own as many entries of the same axes, several of them; by axis the entries of each.

    Args:
        free: by class whether it may leave.
        starts: the first label of every axis.
    """
    labels = np.nonzero(free[roots])[0]
    owners, order, classes = np.unique(roots[labels], return_index=True, return_inverse=True)
    places = np.searchsorted(starts, labels, "right") - 1
    # Each class by the sum of random numbers for what it owns of every axis: equal sums, equal shares.
    (pair_class, pair_place), counts = np.unique(np.stack([classes, places]), axis=1, return_counts=True)
    shares, kinds = np.unique(np.stack([pair_place, counts]), axis=1, return_inverse=True)
    drawn = np.random.default_rng(0).integers(0, 2**62, (2, shares.shape[1]))
    sums = np.zeros((2, len(owners)), np.int64)
    for total, numbers in zip(sums, drawn, strict=True):
        np.add.at(total, pair_class, numbers[kinds.reshape(-1)])
    _, groups = np.unique(sums, axis=1, return_inverse=True)
    groups = groups.reshape(-1)
    members: dict[int, list[int]] = defaultdict(list)
    for place in np.argsort(order, kind="stable").tolist():  # in order of their first labels
        members[int(groups[place])].append(place)
    rank = np.zeros(len(owners), np.int64)
    for chosen in members.values():
        rank[chosen] = np.arange(len(chosen))
    by_group = np.lexsort((labels, rank[classes], places, groups[classes]))
    ends = np.searchsorted(groups[classes][by_group], np.arange(groups.max() + 2 if len(groups) else 1))
    for group, chosen in members.items():
        if len(chosen) > 1:
            mine = by_group[ends[group] : ends[group + 1]]
            axes, first = np.unique(places[mine], return_index=True)
            parts = np.split(labels[mine], first[1:])
            entries = {
                int(axis): (part - starts[axis]).reshape(len(chosen), -1)
                for axis, part in zip(axes, parts, strict=True)
            }
            yield owners[chosen], entries


def _present(roots: np.ndarray, labels: Tensor) -> Iterator[int]:
    values = labels[labels >= 0].numpy()
    return iter(np.unique(roots[values]).tolist())


def _blocked(track: Tracking, roots: np.ndarray) -> dict[int, str]:
    """The classes that must stay, each with the first reason."""
    reasons: dict[int, str] = {}
    for ban in track.forbidden:
        classes, rows, _ = _spread(roots, ban.labels, ban.axis)
        length, alone = ban.labels.shape[ban.axis], len(varying(ban.labels)) == 1
        # A class that fills the axis is not cut along it; where there is no other axis it has nowhere to be cut.
        for root in classes[(rows < length) | alone].tolist():
            reasons.setdefault(root, ban.reason)
    for labels in track.values:
        whole: np.ndarray | bool = False
        for axis in varying(labels):
            classes, rows, entries = _spread(roots, labels, axis)
            whole = whole | (entries == rows * (labels.numel() // labels.shape[axis]))
        for root in classes[~np.asarray(whole)].tolist():
            reasons.setdefault(root, "it is no whole slice of one axis")
    return reasons


def _spread(roots: np.ndarray, labels: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The classes in a value; for each the number of places along an axis where it stands, and of all its entries."""
    moved = labels.movedim(axis, 0).reshape(labels.shape[axis], -1).numpy()
    places, columns = np.nonzero(moved >= 0)
    classes, inverse, entries = np.unique(roots[moved[places, columns]], return_inverse=True, return_counts=True)
    pairs = np.unique(places * len(classes) + inverse) % max(len(classes), 1)
    return classes, np.bincount(pairs, minlength=len(classes)), entries
