"""What can be removed from a network that nothing here knows: one forward, in which labels travel with the tensors.

Read `tracking` first, then `rules` (what each operation does with labels), `found` (classes that may leave),
`remembered` (counts that follow) and `description` (the result). docs/adr/0020-labels.md says why.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import ArchitectureError, OptinError, first_line
from ..running.merging import all_tokens
from ..running.modules import device_of, inference_mode_of
from ..running.replay import check_replay
from ..space.units import Product, UnitSpace
from .absences import kept_for_caches, with_absences
from .description import counted, described
from .large import by_blocks, without_masks
from .queries import by_queries, eager
from .remembered import shaken, single, with_attributes
from .rules import RULES
from .tokens import token_space

LARGE = 5 * 10**8  # weights above which one block of every kind is tried, not the whole network

_known: weakref.WeakKeyDictionary[nn.Module, tuple[object, UnitSpace]] = weakref.WeakKeyDictionary()


def describe(
    model: nn.Module, inputs: Mapping[str, object], architecture: str, *, parts: bool = False, queries: bool = False
) -> UnitSpace:
    """What can be removed from a network.

    Args:
        inputs: keyword inputs of two examples, few positions.
        parts: find too what takes the place of whole parts that are gone.
        queries: see `queries.by_queries`.

    Raises:
        ArchitectureError: the forward cannot be followed, or nothing can be cut; names what stands in the way.
    """
    # Another length is described alike; other inputs, one tower of two, may reach other modules.
    key = (
        sorted(inputs),
        parts,
        queries,
        [(name, tensor.shape) for name, tensor in model.named_parameters()],
        dict(RULES),
    )
    known = _known.get(model)
    if known is None or known[0] != key:
        known = _known[model] = (key, _described(model, inputs, architecture, parts, queries))
    return known[1]


def products_of(model: nn.Module, space: UnitSpace, inputs: Mapping[str, object]) -> tuple[Product, ...]:
    """The products of a forward, and which groups of a description made by hand they grow with.

    Args:
        inputs: as of `describe`.

    Raises:
        ArchitectureError: the forward cannot be followed.
    """
    with _followed(model, inputs) as (real, given):
        return counted(real, space.groups, given)


@contextlib.contextmanager
def _followed(model: nn.Module, inputs: Mapping[str, object]) -> Iterator[tuple[nn.Module, dict[str, object]]]:
    """A network and inputs whose operations can be taken apart, whatever the caller is in."""
    try:
        with torch.inference_mode(mode=False), all_tokens(model):
            if any(parameter.is_inference() for parameter in model.parameters()):
                model = copy.deepcopy(model)
            yield model, tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, dict(inputs))
    except OptinError:
        raise
    except Exception as error:  # a forward, or an operation on labels, may fail in any way
        raise ArchitectureError(
            f"the forward of {type(model).__name__} cannot be followed: {first_line(error)}."
        ) from error


def _described(
    model: nn.Module, inputs: Mapping[str, object], architecture: str, parts: bool, queries: bool
) -> UnitSpace:
    with _followed(model, inputs) as (model, inputs), eager(model) if queries else contextlib.nullcontext():
        meta = device_of(model).type == "meta"
        inputs = without_masks(inputs) if meta else inputs
        space = described(model, inputs, architecture)
        space = by_queries(space) if queries else space
        if meta or sum(value.numel() for value in model.parameters()) > LARGE:
            kept, whole = by_blocks(model, space, inputs, parts)
        else:
            trial, inputs = shaken(model), {name: single(value) for name, value in inputs.items()}
            kept, whole = with_attributes(trial, space, inputs)
            kept = with_absences(trial, kept, inputs) if parts else kept
            kept = dataclasses.replace(kept, tokens=token_space(trial, kept, inputs))
    if not len(kept):
        name, reason = next(iter(whole.items()))
        raise ArchitectureError(f"nothing can be cut from this {type(model).__name__}: {reason} ({name}).")
    products = tuple(product.without(whole) for product in kept.products)
    kept = dataclasses.replace(kept, products=products, whole={**kept.whole, **whole})
    kept = kept_for_caches(model, kept) if parts else kept
    if kept.chained or kept.of_maps:  # what is alive behind each block was followed
        return kept
    return dataclasses.replace(kept, chained=_chained(model, kept, inputs))


def _chained(model: nn.Module, space: UnitSpace, inputs: Mapping[str, object]) -> bool:
    """Whether each block reads nothing but what the one before it returned, beside what all of them get."""
    with contextlib.suppress(Exception), inference_mode_of(model), torch.no_grad():
        check_replay(model, space.blocks, dict(inputs), chained=True)
        return True
    return False
