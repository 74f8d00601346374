"""Labels, and which of them can only leave together."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

NONE = -1  # no label


class Classes:
    """Labels are numbers; joined ones are of one class. Pairs are collected, and counted out once at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[Tensor] = []

    def new(self, count: int) -> Tensor:
        """So many labels that none has yet."""
        first, self.count = self.count, self.count + count
        return torch.arange(first, self.count)

    def join(self, one: Tensor, other: Tensor) -> None:
        """Entry by entry; what has no label joins nothing.

        Args:
            one, other: labels whose shapes broadcast.
        """
        one, other = torch.broadcast_tensors(one, other)
        both = (one >= 0) & (other >= 0) & (one != other)
        if bool(both.any()):
            self._pairs.append(torch.unique(torch.stack([one[both], other[both]]), dim=1))

    def roots(self) -> Tensor:
        """The class of every label: shape (count,)."""
        pairs = torch.cat(self._pairs, 1).numpy() if self._pairs else np.empty((2, 0), dtype=np.int64)
        joined = coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), (self.count, self.count))
        return torch.from_numpy(connected_components(joined, directed=False)[1].astype(np.int64))


def varying(labels: Tensor) -> list[int]:
    """The axes on which entries are told apart."""
    return [axis for axis, length in enumerate(labels.shape) if length > 1]


def compressed(labels: Tensor) -> Tensor:
    """One entry along every axis on which all are alike."""
    for axis in varying(labels):
        first = labels.narrow(axis, 0, 1)
        if bool((labels == first).all()):
            labels = first
    return labels


def ranked(labels: Tensor, rank: int) -> Tensor:
    """With axes of one entry in front, as operations on entries broadcast."""
    return labels.reshape((1,) * (rank - labels.dim()) + tuple(labels.shape))


def nothing(rank: int) -> Tensor:
    """The labels of a value that has none."""
    return torch.full((1,) * rank, NONE)
