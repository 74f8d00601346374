"""Modules that compute with any number of heads, though their forwards name how many there were."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HEADS = "_optin_heads"  # where an elastic one remembers how many heads there were, and are, and how wide all were
RESHAPES = (Tensor.reshape, Tensor.view, torch.reshape)
SPLITS = (Tensor.split, torch.split)
_made: dict[tuple[type, type], type[nn.Module]] = {}


class Elastic(nn.Module):
    """A module of any class whose forward assumes the dense number of heads, but only in the sizes of reshapes."""

    def __reduce_ex__(self, protocol: object) -> Any:
        """Pickle knows the class that it was."""
        return _elastic_again, (type(self).__mro__[2],), vars(self)


def elastic(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of the elastic twin of a module of some class."""
    plain: Any = kind.forward

    @functools.wraps(plain)
    def forward(self: object, *args: object, **kwargs: object) -> Any:
        with _Reshapes(*vars(self).get(HEADS, (1, 1, 1))):
            return plain(self, *args, **kwargs)

    return mixed(Elastic, kind, forward=forward)


def _elastic_again(kind: type[nn.Module]) -> nn.Module:
    twin = elastic(kind)
    return twin.__new__(twin)


def remember_heads(module: Elastic, dense: int, kept: int, features: int) -> None:
    """Say how many heads the forward takes there to be, if nobody did before, and how many there are.

    No method, since the module's own attributes may have any name.

    Args:
        features: of each.
    """
    first, _, width = vars(module).get(HEADS, (dense, dense, dense * features))
    setattr(module, HEADS, (first, kept, width))


class _Reshapes(TorchFunctionMode):
    """Sizes that do not fit because heads have left are made to: the count of the heads, or of all their features.

    Those of splits are made to where each part was of all heads: of queries, keys and values in a row.
    """

    def __init__(self, dense: int, kept: int, width: int) -> None:
        super().__init__()
        self.dense, self.kept, self.width = dense, kept, width

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        if func in RESHAPES and self.kept < self.dense and not kwargs:
            value, *sizes = args
            sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
            if all(isinstance(size, (int, torch.SymInt)) for size in sizes):  # a view may be as another type too
                return func(value, self._fitting(value, sizes))
        if func in SPLITS and self.kept < self.dense and len(args) > 1:
            args = (args[0], self._parts(args[0], args[1], *args[2:3], **(kwargs or {})), *args[2:])
        return func(*args, **(kwargs or {}))

    def _parts(self, value: Tensor, sizes: Any, dim: int = 0) -> object:
        """The sizes of a split, one for all parts or a list; others than of all heads stay."""
        if not isinstance(value.shape[dim], int):
            return sizes  # the axis of examples or of positions, in a trace
        parts, before = [sizes] if isinstance(sizes, int) else sizes, value.shape[dim] * self.dense
        evenly = before % (sizes * self.kept) == 0 if isinstance(sizes, int) else sum(sizes) * self.kept == before
        if not evenly or any(part % self.width for part in parts):
            return sizes
        fewer = [part // self.dense * self.kept for part in parts]
        return fewer[0] if isinstance(sizes, int) else fewer

    def _fitting(self, value: Tensor, sizes: list[int]) -> list[int]:
        known = [size for size in sizes if isinstance(size, int)]  # in a trace some are symbols
        lacking = _equal(math.prod(sizes) * self.kept, value.numel() * self.dense)
        if min(known, default=-1) < 0 or not lacking:
            return sizes
        start, behind = _alike(sizes, value.shape), _alike(sizes[::-1], value.shape[::-1])
        end = max(len(sizes) - behind, start + 1)
        counted = (place for place in range(start, end) if isinstance(sizes[place], int))
        places = [place for place in counted if sizes[place] % self.dense == 0]
        exact = [place for place in places if sizes[place] == self.dense]
        if len(exact) > 1 and self.width == self.dense**2 and exact[-1] == len(sizes) - 1:  # those are the features
            exact = exact[:-1]
        if place := (exact or places)[-1:]:
            sizes = [*sizes]
            sizes[place[0]] = sizes[place[0]] // self.dense * self.kept
        return sizes


def _alike(sizes: Sequence[int | torch.SymInt], shape: Sequence[int | torch.SymInt]) -> int:
    """How many sizes, from the first one on, are those of a shape."""
    pairs = zip(sizes, shape, strict=False)
    return next((place for place, pair in enumerate(pairs) if not _equal(*pair)), 0)


def _equal(one: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    """Whether two sizes are; in a trace, whether they are for all examples and lengths."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes a second to import

    return statically_known_true(one == other)


def mixed(twin: type[nn.Module], kind: type[nn.Module], **own: object) -> type[nn.Module]:
    """The one class that is both a twin and what a module was."""
    if (twin, kind) not in _made:
        _made[twin, kind] = type(kind.__name__, (twin, kind), {**own, "__module__": kind.__module__})
    return _made[twin, kind]
