"""Heads that share keys and values: in place of whole groups of them equally many of every group.

Where n heads read the keys and values of one group, unit j is the j-th head of every group. Keys, values and the
cache of them stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from ..errors import ArchitectureError
from ..space.removal import Cut
from ..space.units import Product, UnitGroup, UnitSpace
from ..support.untyped import Foreign

QUERIES = ".queries"  # ends the names of such groups
NAME = "_attn_implementation"  # of the settings; those of a network in another one are its own
ALONE = "its heads share no keys and values, and queries alone are asked for"


def by_queries(space: UnitSpace) -> UnitSpace:
    """The description with equally many queries of every group as units; other attentions stay whole.

    Raises:
        ArchitectureError: there are no such groups.
    """
    shared = {group.name: count for group in space if (count := sharing(group)) > 1}
    if not shared:
        raise ArchitectureError(f"no heads of this {space.architecture} share keys and values: leave 'queries' out.")
    space = space.without({g.name: ALONE for g in space if g.of.attention and g.name not in shared})
    made = {name: _queries(space[name], count) for name, count in shared.items()}
    return dataclasses.replace(
        space,
        groups=tuple(made.get(group.name, group) for group in space),
        products=tuple(_counted(product, space, made) for product in space.products),
    )


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Have a network of transformers repeat keys and values itself: kernels that do so ignore how often it would."""
    configs: dict[int, Foreign] = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = {key: config._attn_implementation for key, config in configs.items() if hasattr(config, NAME)}
    for key in before:
        configs[key]._attn_implementation = "eager"
    try:
        yield
    finally:
        for key, kind in before.items():
            configs[key]._attn_implementation = kind


def sharing(group: UnitGroup) -> int:
    """How many heads share the keys and values of a unit; 1 if each has its own, or that cannot be told."""
    blocks = [cut.block for cut in group.cuts]
    if not group.of.attention or len(group.gates) != 1 or group.arguments or any(cut.entries for cut in group.cuts):
        return 1
    width = min(cut.block for cut in group.cuts if cut.parameter.endswith("weight"))
    count, rest = divmod(group.gates[0].block, width)
    own = {width, count, count * width}  # of keys and values; of queries, where each has one number; of queries
    return count if not rest and set(blocks) <= own and width in blocks else 1


def _queries(group: UnitGroup, count: int) -> UnitGroup:
    """The j-th query of every group as a unit.

    Args:
        count: of the queries of a group.
    """
    gate = group.gates[0]
    width = gate.block // count
    cuts = tuple(_spread(cut, group.size, count) for cut in group.cuts if cut.block != width)
    return dataclasses.replace(
        group,
        name=f"{gate.module}{QUERIES}",
        size=count,
        cuts=cuts,
        gates=(dataclasses.replace(gate, block=width, times=group.size),),
        multiple=1,
    )


def _spread(cut: Cut, groups: int, count: int) -> Cut:
    """What the j-th query of every group owns of an axis on which the queries of a group lie together."""
    width = cut.block // count
    entries = cut.offset + torch.arange(groups * cut.block, device="cpu").view(groups, count, width)
    return Cut(cut.parameter, cut.dim, groups * width, 0, tuple(entries.transpose(0, 1).flatten().tolist()))


def _counted(product: Product, space: UnitSpace, made: Mapping[str, UnitGroup]) -> Product:
    """Keys and values are no longer of the units."""

    def part(counts: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        found: dict[str, int] = {}
        for name, count in counts:
            new = made.get(name)
            stays = 0 if new is None or product.pairs else count - min(count, _owned(product, new))
            for owner, share in ((name if new is None else new.name, count - stays), ("", stays)):
                found[owner] = found.get(owner, 0) + share
        return tuple((name, count) for name, count in found.items() if count)

    return dataclasses.replace(product, parts=tuple(map(part, product.parts)))


def _owned(product: Product, group: UnitGroup) -> int:
    """The entries of the weight of a product that units own."""
    return sum(group.size * cut.block for cut in group.cuts if cut.parameter == f"{product.module}.weight")
