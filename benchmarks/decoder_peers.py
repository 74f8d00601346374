"""What others prune decoders by without retraining, from their publications, on optin's groups and surgery.

* Wanda-sp and FLAP (An et al., AAAI 2024): what a unit's features weigh with their size, or with how much they vary;
  FLAP ranks over all layers and puts the mean of what is gone into biases.
* LLM-Pruner (Ma et al., NeurIPS 2023), element by element: |weight x gradient| of the language modelling loss, the
  first four and the last two blocks spared. Its retraining is left out.
* ShortGPT (Men et al., 2024): the blocks that turn their input least go as wholes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from allocations import Chooser
from torch import Tensor, nn

import optin
from optin.recipe import Recipe
from optin.running.modules import tensor_of
from optin.space.plans import Plan
from optin.space.scores import Curve
from optin.space.units import UnitGroup, UnitSpace

FIRST, LAST = 4, 2  # blocks that LLM-Pruner spares
Batches = Sequence[Mapping[str, Tensor]]


@dataclass
class Read:
    """What the consumer of a group reads, feature by feature, over all tokens."""

    mean: Tensor
    square: Tensor

    @property
    def variance(self) -> Tensor:
        """Of every feature."""
        return self.square - self.mean.square()


@torch.inference_mode()
def statistics(model: nn.Module, space: UnitSpace, batches: Batches) -> dict[str, Read]:
    """What consumers read on the calibration inputs, by group."""
    sums: dict[str, list[Any]] = {group.name: [0.0, 0.0, 0] for group in space}

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2).double()
            found = sums[name]
            found[0], found[1] = found[0] + rows.sum(0), found[1] + rows.square().sum(0)
            found[2] += len(rows)

        return add

    handles = [
        model.get_submodule(group.gates[0].module).register_forward_pre_hook(hook(group.name)) for group in space
    ]
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    return {name: Read(total / count, squares / count) for name, (total, squares, count) in sums.items()}


def importance(model: nn.Module, group: UnitGroup, read: Read, kind: str) -> Tensor:
    """Wanda-sp's or FLAP's, of every unit."""
    weight = tensor_of(model, f"{group.gates[0].module}.weight").detach().double()
    if kind == "wanda-sp":
        features = weight.abs().sum(0) * read.square.sqrt()
    else:
        features = weight.square().sum(0) * read.variance
    return features.reshape(group.size, -1).sum(1)


def gradients(model: nn.Module, space: UnitSpace, batches: Batches) -> dict[str, Tensor]:
    """LLM-Pruner's importance of every unit."""
    model.zero_grad()
    for batch in batches:
        model(**batch, labels=batch["input_ids"]).loss.backward()
    found = {}
    for group in space:
        total = torch.zeros(group.size, dtype=torch.float64)
        for cut in group.cuts:
            weight = tensor_of(model, cut.parameter)
            assert weight.grad is not None
            product = (weight.detach() * weight.grad).double().abs().movedim(cut.dim, 0)
            total += product[cut.offset : cut.offset + group.size * cut.block].reshape(group.size, -1).sum(1)
        found[group.name] = total
    model.zero_grad(set_to_none=True)
    return found


def pruned(
    row: str, model: nn.Module, batches: Batches, scores: optin.Scores, recipe: Recipe, budgets: Sequence[int]
) -> Iterator[tuple[int, nn.Module]]:
    """The network of one peer at every budget.

    Args:
        scores: of any criterion, for the length that costs are counted at.
    """
    if row == "shortgpt":
        yield from without_blocks(model, batches, budgets)
        return
    chooser, plain = Chooser(model, scores), recipe.override(refit__enabled=False)
    read: dict[str, Read] = {}
    spared: list[str] = []
    if row == "llm-pruner":
        found = gradients(model, chooser.space, batches)
        blocks = range(FIRST, len(chooser.space.body) - LAST)
        spared = [group.name for group in chooser.space if group.layer not in blocks]
    else:
        read = statistics(model, chooser.space, batches)
        found = {group.name: importance(model, group, read[group.name], row) for group in chooser.space}
    if row == "flap":
        found = {name: (value - value.mean()) / value.std() for name, value in found.items()}
    curves = {name: Curve.from_importance(value) for name, value in found.items()}
    for budget in budgets:
        plan = chooser.ranked(curves, budget) if row == "flap" else chooser.uniform(curves, budget, spared)
        small = optin.apply(model, plan, batches, recipe=plain).model
        if row == "flap":
            with_biases(model, small, chooser.space, plan, read)
        yield budget, small


def with_biases(dense: nn.Module, small: nn.Module, space: UnitSpace, plan: Plan, read: Mapping[str, Read]) -> None:
    """What consumers lose on average, as biases."""
    for group in space:
        name = group.gates[0].module
        weight = tensor_of(dense, f"{name}.weight").detach().double()
        gone = torch.ones(group.size, dtype=torch.bool)
        gone[list(plan.keep[group.name])] = False
        columns = gone.repeat_interleave(weight.shape[1] // group.size)
        lost = (weight[:, columns] @ read[group.name].mean[columns]).float()
        consumer = small.get_submodule(name)
        bias = getattr(consumer, "bias", None)
        consumer.bias = nn.Parameter(lost if bias is None else bias.detach() + lost, requires_grad=False)


def without_blocks(model: Any, batches: Batches, budgets: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    """ShortGPT: blocks go by 1 - cos(input, output) until the budget is kept."""
    blocks = model.model.layers
    turned = torch.zeros(len(blocks), dtype=torch.float64)
    with torch.inference_mode():
        for batch in batches:
            states = model(**batch, output_hidden_states=True).hidden_states
            for place, (before, after) in enumerate(itertools.pairwise(states)):
                turned[place] += 1 - torch.cosine_similarity(before, after, dim=-1).mean().double()
    length = batches[0]["input_ids"].shape[1]
    macs = optin.inspect(model, length)
    whole, parts = macs["macs"], [0] * len(blocks)
    for name, amount in macs["breakdown"].items():
        if name.startswith("model.layers."):
            parts[int(name.split(".")[2])] += amount
    order = turned.argsort().tolist()
    for budget in budgets:
        gone = next(
            count for count in range(len(blocks)) if _left(whole, parts, order[:count]) <= budget / 100 * whole
        )
        small = copy.copy(model)
        small._modules = {**model._modules, "model": copy.copy(model.model)}
        small.model._modules = dict(model.model._modules)
        small.model.layers = nn.ModuleList(blocks[place] for place in sorted(order[gone:]))
        yield budget, small


def _left(whole: int, parts: Sequence[int], gone: Sequence[int]) -> int:
    return whole - sum(parts[place] for place in gone)
