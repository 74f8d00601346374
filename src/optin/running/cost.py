"""MACs and parameters as a function of how many units each group keeps.

Convention: one MAC is one multiplication with its addition, per example, at a stated number of positions.
Linear maps, convolutions and the two attention products count; normalisations, activations, biases and
look-ups do not. `FlopCounterMode` of torch reports twice this number.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..errors import ArchitectureError, BudgetError
from ..space.units import Tap, TokenSpace, UnitSpace, lies_in
from .merging import all_tokens, merging_of, most
from .modules import call, inference_mode_of, stored_tensors
from .replay import Recorder

PRODUCTS = {
    getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution")
}  # operations that cost MACs, attention taken apart


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the cost: `amount` in the dense network, proportional to the kept share of each group.

    Attributes:
        block: the place, in the network's token space, of the block that it lies in.
        power: it also grows with this power of the tokens there.
        there: a group without which there is none of it, whatever its share.
    """

    module: str
    amount: int
    groups: tuple[str, ...] = ()
    block: int | None = None
    power: int = 0
    there: str | None = None


@dataclass(frozen=True)
class CostModel:
    """Sum of terms.

    Attributes:
        quantity: "MACs", "parameters", "bytes" or "latency" (in picoseconds).
        sizes: units per group in the dense network.
        space: where tokens can be merged, if they can.
        tokens: tokens of one example in the dense network.
        key_width: features of all keys of a block, which matching compares.
    """

    quantity: str
    sizes: Mapping[str, int]
    terms: tuple[Term, ...]
    space: TokenSpace | None = None
    tokens: int = 0
    key_width: int = 0

    def __call__(self, kept: Mapping[str, int]) -> int:
        """Exact cost when each group keeps so many units."""
        return sum(self._scaled(term, kept) for term in self.terms)

    @property
    def dense(self) -> int:
        """Cost of the dense network."""
        return self(self.sizes)

    def merged(self, schedule: Sequence[int]) -> CostModel:
        """The cost when so many tokens merge before each block of the token space.

        Raises:
            BudgetError: there are too few tokens for it.
        """
        if self.space is None or not any(schedule):
            return self
        counts, matching = [self.tokens], []
        for place, r in enumerate(schedule):
            before = counts[-1]
            free = before - self.space.protected
            if r > most(before, self.space.protected):
                raise BudgetError(f"the schedule merges {r} of {before} tokens before block {place + 1}: too many.")
            if r:
                pairs = -(-free // 2) * (free // 2)
                name = f"{self.space.blocks[place]}.merging"
                matching.append(Term(name, pairs * self.key_width, (self.space.heads[place - 1],)))
            counts.append(before - r)
        scaled = [
            term
            if term.block is None
            else dataclasses.replace(
                term, amount=term.amount // self.tokens**term.power * counts[term.block + 1] ** term.power
            )
            for term in self.terms
        ]
        return dataclasses.replace(self, terms=(*scaled, *matching))

    def by_block(self, kept: Mapping[str, int]) -> list[tuple[float, float]]:
        """Cost per token and per pair of tokens in each block of the token space."""
        parts = [[0.0, 0.0] for _ in (self.space.blocks if self.space else ())]
        for term in self.terms:
            if term.block is not None:
                parts[term.block][term.power - 1] += self._scaled(term, kept) / self.tokens**term.power
        return [(per_token, per_pair) for per_token, per_pair in parts]

    def breakdown(self, kept: Mapping[str, int]) -> dict[str, int]:
        """Cost by module name, largest first."""
        parts: dict[str, int] = defaultdict(int)
        for term in self.terms:
            parts[term.module] += self._scaled(term, kept)
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def prices(self, kept: Mapping[str, int]) -> dict[str, int]:
        """What one more unit of each group costs when the others stay as they are: d cost / d kept.

        Where a map reads and makes the units of one group, its cost grows with their square, and one more unit costs
        a little more than this.
        """
        return {
            name: sum(self._slope(term, name, kept) for term in self.terms if name in term.groups)
            for name in self.sizes
        }

    def _slope(self, term: Term, name: str, kept: Mapping[str, int]) -> int:
        amount, times = term.amount // self.sizes[name], term.groups.count(name)
        for group in term.groups:
            if group != name:
                amount = amount // self.sizes[group] * kept[group]
        for _ in range(times - 1):
            amount = amount // self.sizes[name] * kept[name]
        return amount * times

    @cached_property
    def entry(self) -> dict[str, int]:
        """What the first unit of each group costs at most beside its share: that the part runs at all."""
        costs = dict.fromkeys(self.sizes, 0)
        for term in self.terms:
            if term.there is not None:
                costs[term.there] += term.amount
        return costs

    def _scaled(self, term: Term, kept: Mapping[str, int]) -> int:
        amount = term.amount if term.there is None or kept[term.there] else 0
        for group in term.groups:
            amount = amount // self.sizes[group] * kept[group]
        return amount


def parameter_cost(model: nn.Module, space: UnitSpace) -> CostModel:
    """Parameters, tied ones counted once."""
    return _held("parameters", space, [(name, value, value.numel()) for name, value in model.named_parameters()])


def byte_cost(model: nn.Module, space: UnitSpace) -> CostModel:
    """Bytes of all parameters and buffers that a checkpoint holds, in the precision that they have."""
    stored = {id(value): (name, value) for name, value in reversed(stored_tensors(model).items())}
    return _held("bytes", space, [(name, value, value.nbytes) for name, value in stored.values()])


def _held(quantity: str, space: UnitSpace, tensors: Iterable[tuple[str, Tensor, int]]) -> CostModel:
    """What tensors take, each an amount that shrinks with the groups that cut it."""
    owned: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for group in space:
        for cut in group.cuts:
            owned[cut.parameter][cut.dim][group.name] += group.size * cut.block
    terms = []
    for name, value, amount in tensors:
        axes = [
            [*groups.items(), ("", value.shape[dim] - sum(groups.values()))] for dim, groups in owned[name].items()
        ]
        terms += _shared(name.rpartition(".")[0], amount, axes)
    return CostModel(quantity, space.sizes, tuple(terms))


def _shared(module: str, amount: int, parts: Sequence[Sequence[tuple[str, int]]]) -> list[Term]:
    """An amount that is proportional to several numbers of entries, of each of which some belong to groups."""
    terms = []
    for chosen in itertools.product(*parts):
        share = amount
        for (_, count), part in zip(chosen, parts, strict=True):
            share = share * count // sum(entries for _, entries in part)
        if share:
            terms.append(Term(module, share, tuple(group for group, _ in chosen if group)))
    return terms


def mac_cost(model: nn.Module, space: UnitSpace, inputs: Mapping[str, object]) -> CostModel:
    """MACs of one example, from what each product of its forward is proportional to, attention taken apart.

    The sum of all terms is what torch counts in that forward.

    Args:
        inputs: keyword inputs of ONE example at the reference length.

    Raises:
        ArchitectureError: the forward has other products at this size than when it was described, or torch counts
            less than what they add up to.
    """
    amounts = Amounts()
    tokens = Recorder([Tap(space.tokens.blocks[0], "input")] if space.tokens else [])
    with (
        torch.inference_mode(mode=False),  # operations are taken apart outside of it alone
        sdpa_kernel(SDPBackend.MATH),
        inference_mode_of(model),
        torch.no_grad(),
        all_tokens(model),
    ):
        inputs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, dict(inputs))
        with tokens.recording(model), amounts:
            call(model, inputs)
        counted = counted_macs(model, inputs)
    if len(amounts.macs) != len(space.products):
        raise ArchitectureError(
            f"the forward of this {type(model).__name__} has {len(amounts.macs)} products at this size, and "
            f"{len(space.products)} at the size that it was described at: what it computes depends on lengths, "
            "padding or values, and its costs cannot be told. Try batches of inputs of one length, without padding."
        )
    place, part = _places(space), _parts(space)
    found: dict[Term, int] = defaultdict(int)
    for amount, product in zip(amounts.macs, space.products, strict=True):
        block, power, there = place(product.module), 2 if product.pairs else 1, part(product.module)
        for term in _shared(product.module, amount, product.parts):
            beside = None if there in term.groups else there
            found[dataclasses.replace(term, amount=0, block=block, power=power, there=beside)] += term.amount
    terms = [dataclasses.replace(term, amount=amount) for term, amount in found.items()]
    rest = counted - sum(amounts.macs)
    if rest < 0:
        raise ArchitectureError(
            f"the products of this {type(model).__name__} have {-rest:,} MACs more than torch counts in its forward, "
            "so that a budget would be of a wrong count. Please report it with the network."
        )
    if rest:
        # Nothing says which groups the other operations grow with, so they are taken to stay.
        terms.append(Term("other operations", rest, ()))
    if space.tokens is None:
        return CostModel("MACs", space.sizes, tuple(terms))
    ((first,),) = tokens.calls.values()
    heads = space[space.tokens.heads[0]]
    width = heads.size * heads.gates[0].block
    cost = CostModel("MACs", space.sizes, tuple(terms), space.tokens, first.shape[1], width)
    merging = merging_of(model)
    return cost if merging is None else cost.merged(merging.schedule)


class Amounts(TorchDispatchMode):
    """The MACs of the products of a forward, in order of execution.

    Attributes:
        macs: of each.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: list[int] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in PRODUCTS:
            from torch.utils.flop_counter import flop_registry

            self.macs.append(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2)
        return out


def counted_macs(model: nn.Module, inputs: Mapping[str, object]) -> int:
    """MACs of one forward as torch counts them, whatever the network is made of."""
    counter = flop_counter()
    with inference_mode_of(model), torch.no_grad(), counter:
        call(model, inputs)
    return int(counter.get_total_flops()) // 2


def flop_counter() -> Any:
    """The counter of torch, taught the attention that it counts as nothing; it takes long to import."""
    from torch.utils.flop_counter import FlopCounterMode

    def on_cpu(query: Any, key: Any, value: Any, *args: object, out_shape: object = None, **kwargs: object) -> int:
        *heads, positions, features = query  # of keys and values there may be fewer, each for a group of queries
        flops: int = 2 * math.prod(heads) * positions * key[-2] * (features + value[-1])
        return flops

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={attention: on_cpu})


def _places(space: UnitSpace) -> Callable[[str], int | None]:
    """The place in the token space of the block that a module lies in; None outside."""
    blocks = {} if space.tokens is None else {name: place for place, name in enumerate(space.tokens.blocks)}

    def place(module: str) -> int | None:
        return next((blocks[name] for name in blocks if module.startswith(f"{name}.")), None)

    return place


def _parts(space: UnitSpace) -> Callable[[str], str | None]:
    """The group without which a module does not run; None of those that always do."""
    absences = {group.absence.module: group.name for group in space if group.absence is not None}

    def part(module: str) -> str | None:
        return next((name for path, name in absences.items() if lies_in(module, path)), None)

    return part
