"""From the labels of a forward to units: classes that may leave, and the groups of those that are alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .tracking import Tracking, varying


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
    """

    roots: np.ndarray
    groups: list[Group] = field(default_factory=list)
    whole: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def found(track: Tracking) -> Found:
    """Groups of units, and why the others stay."""
    roots = track.classes.roots().numpy()
    reasons = _blocked(track, roots)
    result = Found(roots)
    read: dict[int, set[tuple[str, int]]] = defaultdict(set)
    for labels in track.reads:
        for label in labels.tolist():
            root = int(roots[label])
            place = track.origin(label)
            read[root].add(place)
            if root in reasons:
                result.whole[reasons[root]].add(place[0])
    multiplied = [part for product in track.products if product.activations for part in product.parts]
    multiplied += track.sampled
    heads = {root for part in multiplied for root in _present(roots, part)}
    members: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for first, name, axis, length in track.origins:
        for entry, root in enumerate(roots[first : first + length].tolist()):
            if root in read and root not in reasons:
                members[root][name, axis].append(entry)
    alike: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for root, places in members.items():
        alike[tuple((name, axis, len(entries)) for (name, axis), entries in places.items())].append(root)
    for signature, units in alike.items():
        if len(units) > 1:
            entries = {
                (name, axis): torch.tensor([members[root][name, axis] for root in units])
                for name, axis, _ in signature
            }
            reads = [place for place in entries if place in read[units[0]]]
            if len(reads) == len(entries):  # nothing makes them: what is read there has no labels
                continue
            result.groups.append(Group(entries, reads, units, units[0] in heads))
    return result


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
