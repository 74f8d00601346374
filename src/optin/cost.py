"""MACs and parameters as a function of how many units each group keeps.

Convention: one MAC is one multiplication with its addition, per example, at a stated number of positions.
Linear maps, convolutions and the two attention products count; normalisations, activations, biases and
look-ups do not. `FlopCounterMode` of torch reports twice this number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .modules import hooks, inference_mode_of
from .units import UnitSpace


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the cost: `amount` in the dense network, proportional to the kept share of each group."""

    module: str
    amount: int
    groups: tuple[str, ...]


@dataclass(frozen=True)
class CostModel:
    """Sum of terms. `quantity` is "MACs" or "parameters"; `sizes` are the dense group sizes."""

    quantity: str
    sizes: Mapping[str, int]
    terms: tuple[Term, ...]

    def __call__(self, kept: Mapping[str, int]) -> int:
        """Exact cost when each group keeps so many units."""
        return sum(self._scaled(term, kept) for term in self.terms)

    @property
    def dense(self) -> int:
        """Cost of the dense network."""
        return self(self.sizes)

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
    owners = _owners(space)
    terms = [
        Term(name.rpartition(".")[0], parameter.numel(), tuple(owners.get(name, {}).values()))
        for name, parameter in model.named_parameters()
    ]
    return CostModel("parameters", space.sizes, tuple(terms))


def mac_cost(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Tensor]) -> CostModel:
    """MACs of one example, from one forward that records how many positions each module works on.

    Args:
        inputs: keyword inputs of ONE example at the reference length.
    """
    macs: dict[str, int] = defaultdict(int)
    attention: dict[int, int] = defaultdict(int)
    kinds = tuple(_COUNTERS)
    handles = [
        module.register_forward_hook(_Record(name, _counter(module), macs), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    for index, product in enumerate(space.attention):
        module = model.get_submodule(product.module)
        record = _Record(index, _attention_counter(product.per_pair, product.per_position), attention)
        handles.append(module.register_forward_hook(record, with_kwargs=True))
    with hooks(*handles), inference_mode_of(model), torch.no_grad():
        model(**inputs)
    owners = _owners(space)
    terms = [Term(name, amount, tuple(owners.get(f"{name}.weight", {}).values())) for name, amount in macs.items()]
    for index, product in enumerate(space.attention):
        terms.append(Term(product.module, attention[index] * space[product.group].size, (product.group,)))
    return CostModel("MACs", space.sizes, tuple(terms))


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


_COUNTERS: dict[type[nn.Module], Callable[[nn.Module, Tensor], int]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
}


def _counter(module: nn.Module) -> Callable[..., int]:
    count = next(counter for kind, counter in _COUNTERS.items() if isinstance(module, kind))
    return lambda args, kwargs, output: count(module, output)


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
