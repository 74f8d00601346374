"""Networks pruned by the package torch-pruning, of the same units: heads, neurons, inner channels.

The residual stream keeps its width, which one-shot pruning without training does not survive. Heads and neurons or
channels are ranked over the whole network, as the package does it; the ratio rises in small steps until the MACs fit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from optin.describing import describe
from optin.running.outputs import answers

STEPS = 60


def pruned(
    model: nn.Module, kind: str, batches: Sequence[dict[str, torch.Tensor]], budgets: Sequence[int]
) -> Iterator[tuple[int, nn.Module]]:
    """A network for each budget, in percent of the MACs, the largest first.

    Args:
        kind: "magnitude", or "taylor", which needs labels in the batches.
    """
    import torch_pruning

    small, space = copy.deepcopy(model).eval(), describe(model)
    example = {name: value[:1] for name, value in batches[0].items() if name != "labels"}
    dense = macs(small, example)
    producers = {cut.parameter.rpartition(".")[0] for group in space for cut in group.cuts if cut.dim == 0}
    kept = [
        module
        for name, module in small.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name not in producers
    ]
    heads = {
        small.get_submodule(cut.parameter.rpartition(".")[0]): group.size
        for group in space
        if group.kind == "head"
        for cut in group.cuts
        if cut.dim == 0 and cut.parameter.endswith("weight")
    }
    importances = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    if kind == "taylor":
        for batch in batches:
            loss(small, batch).backward()
    pruner = torch_pruning.pruner.BasePruner(
        small,
        example,
        importance=importances[kind](),
        global_pruning=True,
        pruning_ratio=1.0,
        head_pruning_ratio=1.0,
        max_pruning_ratio=0.95,
        iterative_steps=STEPS,
        ignored_layers=kept,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        output_transform=lambda output: answers(output).sum(),
    )
    left = sorted(budgets, reverse=True)
    for _ in range(STEPS - 1):
        pruner.step()
        attributes(small, space, pruner.num_heads)
        while left and macs(small, example) <= left[0] / 100 * dense:
            result = copy.deepcopy(small)
            result.zero_grad(set_to_none=True)
            yield left.pop(0), result
        if not left:
            return


def macs(model: nn.Module, example: dict[str, torch.Tensor]) -> int:
    """Half of the floating-point operations that torch counts."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**example)
    return int(counter.get_total_flops() // 2)


def attributes(model: nn.Module, space: Any, heads: dict[nn.Module, int]) -> None:
    """Tell the attention modules of transformers how many heads they have now, which the package leaves to us."""
    for group in (group for group in space if group.kind == "head"):
        for attribute in group.attributes:
            producer = next(cut.parameter.rpartition(".")[0] for cut in group.cuts if cut.dim == 0)
            count = heads[model.get_submodule(producer)]
            setattr(model.get_submodule(attribute.module), attribute.name, count * attribute.per_unit)


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy with the labels of a batch."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return nn.functional.cross_entropy(answers(model(**inputs)), batch["labels"])
