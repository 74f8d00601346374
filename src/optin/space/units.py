"""What can be removed from a network, as plain data.

A description names parameters and modules instead of holding them, so it can be saved, compared and tested
without a network. `optin.describing` writes descriptions; everything else only reads them.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..support.listing import Listed, Listing
from .removal import Absence, Argument, Attribute, Cut


def lies_in(module: str, path: str) -> bool:
    """Whether a module is the one at a path or inside it."""
    return f"{module}.".startswith(f"{path}.")


def around(paths: Sequence[str]) -> str:
    """The smallest module around some modules; empty if that is the network."""
    parts = [path.split(".") for path in paths]
    alike = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    return ".".join(names[0] for names in alike)


def pattern(path: str) -> str:
    """The place of a module in its block: its path without the numbers of lists."""
    return re.sub(r"\b\d+\b", "N", path)


@dataclass(frozen=True, slots=True)
class Tap:
    """A place where a hidden state can be read: the first input or the output of a module."""

    module: str
    side: Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Gate:
    """Multiply the INPUT of a consumer along `dim`: the soft form of the removal.

    The consumer is the linear map that reads the units: `block` consecutive features belong to each unit.
    `total` is where its output can be read with the residual stream added, before any normalisation.
    `scale` names what multiplies its output before that sum: a parameter (LayerScale) or a batch norm. `shift`
    names a buffer that is subtracted from its output, where a consumer without a bias can hold one. `examples` is
    the axis of what it reads and makes that runs over the examples. `start` is the first feature of the first unit,
    where the consumer reads several groups one behind the other. Where units lie in `times` runs, each run holds
    `block` features of every unit.
    """

    module: str
    dim: int = -1
    block: int = 1
    total: Tap | None = None
    scale: str | None = None
    shift: str | None = None
    examples: int = 0
    start: int = 0
    times: int = 1

    def features(self, size: int, each: int = 1) -> Tensor:
        """Which features of a row belong to each of `size` units: shape (unit, feature).

        Args:
            each: features of a row to one that is counted here, as in the patches of a convolution.
        """
        block = self.block * each
        runs = torch.arange(self.times * size * block, device="cpu").view(self.times, size, block)
        return self.start * each + runs.transpose(0, 1).reshape(size, -1)


@dataclass(frozen=True, slots=True)
class Product:
    """A product of a forward, and which groups its MACs grow with.

    `parts` are what it is proportional to: entries made, entries read, slices of a batch. Each says how many of its
    entries belong to which group; those of no group have an empty name. `pairs` says that activations are multiplied,
    as queries with keys: it grows with pairs of positions.
    """

    module: str
    parts: tuple[tuple[tuple[str, int], ...], ...] = ()
    pairs: bool = False

    def without(self, gone: Collection[str]) -> Product:
        """Of a network in which some groups stay whole."""

        def named(part: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
            counts: dict[str, int] = {}
            for name, count in part:
                owner = "" if name in gone else name
                counts[owner] = counts.get(owner, 0) + count
            return tuple(counts.items())

        return dataclasses.replace(self, parts=tuple(map(named, self.parts)))


@dataclass(frozen=True, slots=True)
class TokenSpace:
    """Where the tokens of a network can be merged: before each of its blocks but the first.

    `keys` is the path, inside a block, of the map whose output are the attention keys; `attention` that of the
    module that takes an additive `attention_mask`. `heads` names the group of heads of each block. `protected`
    leading tokens (class, distillation, registers) never merge. `averaged` is the module whose output a head
    averages over tokens, if one does.
    """

    blocks: tuple[str, ...]
    keys: str
    attention: str
    heads: tuple[str, ...]
    protected: int
    averaged: str | None = None


@dataclass(frozen=True, slots=True)
class UnitKind:
    """What is known of units of a kind.

    `attention` says that they are heads: few and large, so that their counts are never rounded and the paper's search
    tries every number of them. `maps` says that they are maps over positions, which lie in front of those positions
    and are read in patches.
    """

    name: str
    attention: bool = False
    maps: bool = False

    @property
    def plural(self) -> str:
        """As reports call them."""
        return f"{self.name}s"


KINDS: Mapping[str, UnitKind] = {
    kind.name: kind for kind in (UnitKind("head", attention=True), UnitKind("neuron"), UnitKind("channel", maps=True))
}


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Interchangeable units of one layer: its attention heads, its feed-forward neurons.

    `name` is that of the map that makes its units, or reads its heads. `layer` is the first block, in
    order of execution, in which the group works. `shared` says that it works in several blocks at once. `twins`
    are modules that compute with fewer units only as their twins (`running/twins.py`). What it keeps is a `multiple`,
    where the kernels of its network take no other number. With an `absence` the whole of it may go, an attention or a
    feed-forward layer.
    """

    name: str
    kind: str
    size: int
    layer: int
    cuts: tuple[Cut, ...]
    gates: tuple[Gate, ...]
    attributes: tuple[Attribute, ...] = ()
    arguments: tuple[Argument, ...] = ()
    shared: bool = False
    min_keep: int = 1
    twins: tuple[str, ...] = ()
    multiple: int = 1
    absence: Absence | None = None

    @property
    def least(self) -> int:
        """The fewest units that a plan can keep."""
        return self.min_keep if self.absence is None else 0

    @property
    def of(self) -> UnitKind:
        """What is known of its kind of units; of one that others describe, its name."""
        return KINDS.get(self.kind, UnitKind(self.kind))


@dataclass(frozen=True, slots=True)
class Block:
    """One run of a module that the trajectory goes through: what it returns is an embedding.

    `examples` and `features` are the axes of that state which run over the examples and over the features, which
    convolutions have along axis 1. A block of the `head`, behind the body, returns no embedding and is not compared.
    """

    module: str
    examples: int = 0
    features: int = -1
    head: bool = False


@dataclass(frozen=True)
class UnitSpace(Listed):
    """Everything that can be removed from one network.

        for group in space:
            print(group.name, group.size, group.of.plural)

    `runs` are its blocks in order of execution; one that runs several times is there as often. `chained` says that
    each reads nothing but what the one before it returned, beside what all of them get alike, so that one state can
    stand in for all before it. `products` are all those of a forward in order of execution, attention taken apart,
    where that is known. `whole` says by the map that reads them why some units must stay.
    """

    architecture: str
    groups: tuple[UnitGroup, ...]
    runs: tuple[Block, ...] = ()
    tokens: TokenSpace | None = None
    chained: bool = True
    products: tuple[Product, ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        kinds = dict.fromkeys(group.of for group in self)
        units = {kind.plural: sum(group.size for group in self if group.of == kind) for kind in kinds}
        counts = ", ".join(f"{count:,} {kind}" for kind, count in units.items())
        return f"UnitSpace({self.architecture}: {counts} in {len(self)} groups; {len(self.whole)} maps stay whole)"

    def listing(self) -> Listing:
        """The groups, then the maps that stay whole and why."""
        rows = [(group.name, f"{group.size:,}", group.of.plural) for group in self]
        rows += [(name, "whole", reason) for name, reason in self.whole.items()]
        return Listing(repr(self), ("group", "units", "of"), rows)

    def __getitem__(self, name: str) -> UnitGroup:
        return self.by_name[name]

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The modules of all blocks, in order of execution."""
        return tuple(run.module for run in self.runs)

    @cached_property
    def body(self) -> tuple[str, ...]:
        """Those before the head."""
        return tuple(run.module for run in self.runs if not run.head)

    @property
    def of_maps(self) -> bool:
        """Whether embeddings are maps with their features first."""
        return any(run.features == 1 for run in self.runs)

    def in_body(self, module: str) -> bool:
        """Whether a module lies in a block of the body."""
        return any(lies_in(module, block) for block in self.body)

    def restricted(self, exclude: Iterable[str] = (), only: Iterable[str] = ()) -> UnitSpace:
        """The description of what may lose units.

        Args:
            exclude: names of groups that stay whole, and of modules: all groups whose units these make or read.
            only: names of those that alone may lose units; without any, all may.

        Raises:
            InputError: a name of nothing, or nothing is left.
        """
        wanted, gone = self._named(only), self._named(exclude)
        gone |= {name: "left out by 'only'" for name in self.sizes if wanted and name not in wanted}
        if gone and len(gone) == len(self.groups):
            raise InputError("everything that could lose units is excluded: leave something out of 'exclude'.")
        return self.without(gone)

    def by_parts(self, whole: Collection[str] = ()) -> UnitSpace:
        """The description of a network that may lose whole parts.

        Args:
            whole: groups that keep units nonetheless.
        """
        groups = (
            group if group.name in whole else dataclasses.replace(group, min_keep=group.least) for group in self
        )
        return dataclasses.replace(self, groups=tuple(groups))

    def _named(self, names: Iterable[str]) -> dict[str, str]:
        """The groups of some names, and those whose units modules of these names make or read."""
        found = dict[str, str]()
        for name in names:
            touched = [
                group.name
                for group in self
                if group.name == name
                or any(lies_in(gate.module, name) for gate in group.gates)
                or any(lies_in(cut.parameter, name) for cut in group.cuts)
            ]
            if not touched:
                known = ", ".join([group.name for group in self][:6])
                raise InputError(
                    f"{name!r:.80} is excluded or asked for, and no group is of that name or module: {known}, ..."
                )
            found |= dict.fromkeys(touched, "excluded")
        return found

    def without(self, gone: Mapping[str, str]) -> UnitSpace:
        """The description without some groups; by their names the reasons."""
        tokens = self.tokens if self.tokens is None or not gone.keys() & set(self.tokens.heads) else None
        return dataclasses.replace(
            self,
            groups=tuple(group for group in self if group.name not in gone),
            products=tuple(product.without(gone) for product in self.products),
            tokens=tokens,
            whole={**self.whole, **{gate.module: gone[g.name] for g in self if g.name in gone for gate in g.gates}},
        )

    def block_of(self, module: str) -> str:
        """The block that a module lies in."""
        return next(block for block in self.blocks if lies_in(module, block))

    @cached_property
    def by_name(self) -> Mapping[str, UnitGroup]:
        """The groups by name, in order of execution."""
        return {group.name: group for group in self.groups}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Units per group in the dense network."""
        return {group.name: group.size for group in self.groups}
