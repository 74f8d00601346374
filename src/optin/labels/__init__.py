"""What can be removed from a network that nothing here knows: one forward, in which labels travel with the tensors.

Read `tracking` first, then `rules` (what each operation does with labels), `found` (classes that may leave),
`remembered` (counts that follow) and `space` (the description). docs/adr/0020-labels.md says why.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import ArchitectureError, OptinError, first_line
from ..modules import inference_mode_of
from ..replay import check_replay
from ..units import UnitSpace
from .remembered import with_attributes
from .space import described

_known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, UnitSpace]] = weakref.WeakKeyDictionary()


def describe(model: nn.Module, inputs: Mapping[str, Any], architecture: str) -> UnitSpace:
    """What can be removed from a network.

    Args:
        inputs: keyword inputs of two examples, few positions.

    Raises:
        ArchitectureError: the forward cannot be followed, or nothing can be cut; names what stands in the way.
    """
    # Another length is described alike; other inputs, one tower of two, may reach other modules.
    key = (sorted(inputs), [(name, tensor.shape) for name, tensor in model.named_parameters()])
    known = _known.get(model)
    if known is None or known[0] != key:
        known = _known[model] = (key, _described(model, inputs, architecture))
    return known[1]


@torch.inference_mode(mode=False)  # whatever the caller is in: operations are taken apart outside of it alone
def _described(model: nn.Module, inputs: Mapping[str, Any], architecture: str) -> UnitSpace:
    if any(parameter.is_inference() for parameter in model.parameters()):
        model = copy.deepcopy(model)
    inputs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, dict(inputs))
    try:
        space = described(model, inputs, architecture)
        kept, whole = with_attributes(model, space, inputs)
    except OptinError:
        raise
    except Exception as error:  # a forward, or an operation on labels, may fail in any way
        raise ArchitectureError(
            f"the forward of {type(model).__name__} cannot be followed: {first_line(error)}."
        ) from error
    if not len(kept):
        name, reason = next(iter(whole.items()))
        raise ArchitectureError(f"nothing can be cut from this {type(model).__name__}: {reason} ({name}).")
    kept = dataclasses.replace(_without(kept, set(whole)), whole={**kept.whole, **whole})
    if kept.chained or kept.channels_first:  # what is alive behind each block was followed
        return kept
    return dataclasses.replace(kept, chained=_chained(model, kept, inputs))


def _without(space: UnitSpace, gone: set[str]) -> UnitSpace:
    """Products do not grow with groups that stay whole."""

    def named(part: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        counts: dict[str, int] = {}
        for name, count in part:
            owner = "" if name in gone else name
            counts[owner] = counts.get(owner, 0) + count
        return tuple(counts.items())

    products = tuple(
        dataclasses.replace(product, parts=tuple(map(named, product.parts))) for product in space.products
    )
    return dataclasses.replace(space, products=products)


def _chained(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any]) -> bool:
    """Whether each block reads nothing but what the one before it returned, beside what all of them get."""
    with contextlib.suppress(Exception), inference_mode_of(model), torch.no_grad():
        check_replay(model, space.blocks, dict(inputs), chained=True)
        return True
    return False
