"""MACs and parameters as a function of how many units each group keeps.

Convention: one MAC is one multiplication with its addition, per example, at a stated number of positions.
Linear maps, convolutions and the two attention products count; normalisations, activations, biases and
look-ups do not. `FlopCounterMode` of torch reports twice this number.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .errors import ArchitectureError, BudgetError
from .merging import all_tokens, merging_of, most
from .modules import hooks, inference_mode_of
from .replay import Recorder
from .twins import MultiheadAttention
from .units import Tap, TokenSpace, UnitSpace

PRODUCTS = {
    getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution")
}  # operations that cost MACs, attention taken apart


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the cost: `amount` in the dense network, proportional to the kept share of each group.

    Attributes:
        block: the place, in the network's token space, of the block that it lies in.
        power: it also grows with this power of the tokens there.
    """

    module: str
    amount: int
    groups: tuple[str, ...]
    block: int | None = None
    power: int = 0


@dataclass(frozen=True)
class CostModel:
    """Sum of terms.

    Attributes:
        quantity: "MACs", "parameters" or "latency" (in picoseconds).
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
        """What one more unit of each group costs when the others stay as they are."""
        return {
            name: sum(
                self._scaled(term, {**kept, name: self.sizes[name]}) // self.sizes[name]
                for term in self.terms
                if name in term.groups
            )
            for name in self.sizes
        }

    def _scaled(self, term: Term, kept: Mapping[str, int]) -> int:
        amount = term.amount
        for group in term.groups:
            amount = amount // self.sizes[group] * kept[group]
        return amount


def parameter_cost(model: nn.Module, space: UnitSpace) -> CostModel:
    """Parameters, tied ones counted once."""
    owned: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for group in space:
        for cut in group.cuts:
            owned[cut.parameter][cut.dim][group.name] += group.size * cut.block
    terms = []
    for name, parameter in model.named_parameters():
        axes = [
            [*groups.items(), ("", parameter.shape[dim] - sum(groups.values()))]
            for dim, groups in owned[name].items()
        ]
        terms += _shared(name.rpartition(".")[0], parameter.numel(), axes)
    return CostModel("parameters", space.sizes, tuple(terms))


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


def mac_cost(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any]) -> CostModel:
    """MACs of one example, from one forward that records how many positions each module works on.

    The sum of all terms is what torch counts in that forward.

    Args:
        inputs: keyword inputs of ONE example at the reference length.

    Raises:
        ArchitectureError: torch counts less than what the modules add up to.
    """
    if space.products:
        return _cost_of_products(model, space, inputs)
    macs: dict[str, int] = defaultdict(int)
    attention: dict[int, int] = defaultdict(int)
    kinds = tuple(_COUNTERS)
    handles = [
        module.register_forward_hook(_Record(name, _counter(module), macs), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    for index, product in enumerate(space.attention):
        if product.maps is None:
            module = model.get_submodule(product.module)
            record = _Record(index, _attention_counter(product.per_pair, product.per_position), attention)
            handles.append(module.register_forward_hook(record, with_kwargs=True))
    tokens = Recorder([Tap(space.tokens.blocks[0], "input")] if space.tokens else [])
    made = Recorder([Tap(name, "output") for product in space.attention for name in product.maps or ()])
    counter = _flop_counter()
    with (
        hooks(*handles),
        tokens.recording(model),
        made.recording(model),
        all_tokens(model),
        inference_mode_of(model),
        torch.no_grad(),
        counter,
    ):
        model(**inputs)
    for index, product in enumerate(space.attention):
        if product.maps is not None:
            (queries,), (keys,) = (made.calls[Tap(name, "output")] for name in product.maps)
            attention[index] = product.per_pair * queries.shape[:-1].numel() * keys.shape[-2]
    owners, place = _owners(space), _places(space)
    terms = [
        Term(name, amount, tuple(owners.get(f"{name}.weight", {}).values()), place(name), 1)
        for name, amount in macs.items()
    ]
    for index, product in enumerate(space.attention):
        group = product.group
        amount = attention[index] if group is None else attention[index] * space[group].size
        terms.append(Term(product.module, amount, (group,) if group else (), place(product.module), 2))
    rest = counter.get_total_flops() // 2 - sum(term.amount for term in terms)
    if rest < 0:
        raise _too_many(model, -rest)
    if rest:
        # Nothing says which groups the other operations grow with, so they are taken to stay.
        terms.append(Term("products between activations", rest, ()))
    if space.tokens is None:
        return CostModel("MACs", space.sizes, tuple(terms))
    ((first,),) = tokens.calls.values()
    heads = space[space.tokens.heads[0]]
    model_cost = CostModel(
        "MACs", space.sizes, tuple(terms), space.tokens, first.shape[1], heads.size * heads.gates[0].block
    )
    merging = merging_of(model)
    return model_cost if merging is None else model_cost.merged(merging.schedule)


@torch.inference_mode(mode=False)  # whatever the caller is in: operations are taken apart outside of it alone
def _cost_of_products(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Any]) -> CostModel:
    """From what each product of the forward is proportional to, attention taken apart."""
    inputs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, dict(inputs))
    amounts = Amounts()
    with sdpa_kernel(SDPBackend.MATH), inference_mode_of(model), torch.no_grad(), amounts:
        model(**inputs)
    if len(amounts.macs) != len(space.products):
        raise ArchitectureError(
            f"the forward of this {type(model).__name__} has {len(amounts.macs)} products at this size, and "
            f"{len(space.products)} at the size that it was described at: its costs cannot be told."
        )
    terms: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    for amount, product in zip(amounts.macs, space.products, strict=True):
        for term in _shared(product.module, amount, product.parts):
            terms[term.module, term.groups] += term.amount
    found = [Term(module, amount, groups) for (module, groups), amount in terms.items()]
    rest = counted_macs(model, inputs) - sum(amounts.macs)
    if rest < 0:
        raise _too_many(model, -rest)
    return CostModel("MACs", space.sizes, (*found, Term("other operations", rest, ())) if rest else tuple(found))


class Amounts(TorchDispatchMode):
    """The MACs of the products of a forward, in order of execution.

    Attributes:
        macs: of each.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in PRODUCTS:
            from torch.utils.flop_counter import flop_registry

            self.macs.append(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2)
        return out


def _too_many(model: nn.Module, macs: int) -> ArchitectureError:
    return ArchitectureError(
        f"the modules of this {type(model).__name__} have {macs:,} MACs more than torch counts in its forward, "
        "so that a budget would be of a wrong count. Please report it with the network."
    )


def counted_macs(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """MACs of one forward as torch counts them, whatever the network is made of."""
    counter = _flop_counter()
    with inference_mode_of(model), torch.no_grad(), counter:
        model(**inputs)
    return int(counter.get_total_flops()) // 2


def _flop_counter() -> Any:
    """The counter of torch, taught the attention that it counts as nothing; it takes long to import."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def on_cpu(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        flops: int = sdpa_flop_count(query, key, value)
        return flops

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={attention: on_cpu})


def _places(space: UnitSpace) -> Callable[[str], int | None]:
    """The place in the token space of the block that a module lies in; None outside."""
    blocks = {} if space.tokens is None else {name: place for place, name in enumerate(space.tokens.blocks)}

    def place(module: str) -> int | None:
        return next((blocks[name] for name in blocks if module.startswith(f"{name}.")), None)

    return place


def _owners(space: UnitSpace) -> dict[str, dict[tuple[int, int], str]]:
    """The groups that cut each parameter. Cuts of one group along one axis (fused qkv) are one owner."""
    owners: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for index, group in enumerate(space):
        for cut in group.cuts:
            owners[cut.parameter][(cut.dim, index)] = group.name
    return owners


def _linear(module: nn.Module, output: Tensor) -> int:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return output.numel() * weight.shape[1]


def _convolution(module: nn.Module, output: Tensor) -> int:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return output.numel() * weight[0].numel()


def _whole_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Four projections and two products of a whole `nn.MultiheadAttention`."""
    query, key = (args[place] if len(args) > place else kwargs[name] for place, name in enumerate(("query", "key")))
    width, asked, offered = query.shape[-1], query.shape[:-1].numel(), key.shape[:-1].numel()
    pairs = asked * key.shape[1 if module.batch_first else 0]
    maps = 2 * (asked + offered) - (asked if isinstance(module, MultiheadAttention) else 0)  # a twin calls its last
    return int(maps * width * width + 2 * pairs * width)


_COUNTERS: dict[type[nn.Module], Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], int]] = {
    nn.Linear: lambda module, args, kwargs, output: _linear(module, output),
    nn.Conv1d: lambda module, args, kwargs, output: _convolution(module, output),
    nn.Conv2d: lambda module, args, kwargs, output: _convolution(module, output),
    nn.MultiheadAttention: _whole_attention,
}


def _counter(module: nn.Module) -> Callable[..., int]:
    count = next(counter for kind, counter in _COUNTERS.items() if isinstance(module, kind))
    return lambda args, kwargs, output: count(module, args, kwargs, output)


def _attention_counter(per_pair: int, per_position: int) -> Callable[..., int]:
    def count(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
        hidden = args[0] if args else kwargs["hidden_states"]
        windows, positions = hidden.shape[:-1].numel() // hidden.shape[-2], hidden.shape[-2]
        return int(windows * positions * (positions * per_pair + per_position))

    return count


class _Record:
    """Forward hook: add what `count` says of this call to `totals[key]`."""

    def __init__(self, key: Any, count: Callable[..., int], totals: dict[Any, int]) -> None:
        self.key, self.count, self.totals = key, count, totals

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.totals[self.key] += self.count(args, kwargs, output)
