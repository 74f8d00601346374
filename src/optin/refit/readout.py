"""The head as consumers: the linear maps behind the last block (pooler, projections, classifier), refitted last.

They read what no refit of a block could repair, and what they make is closer to the output than any hidden state.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from ..running.batch import Batch
from ..running.modules import call, hooks, inference_mode_of
from ..space.units import Gate, Tap, UnitSpace, pattern
from ..support.untyped import Hook


def head_maps(dense: nn.Module, pruned: nn.Module, space: UnitSpace, batch: Batch) -> list[Gate]:
    """Linear maps that run once a forward, behind the last block, and that the pruning reaches.

    Not those of a tower that stays as it is, nor those whose weights serve elsewhere too (embeddings of a language
    model), nor those that read tokens one by one where some are merged.
    """
    uses = Counter(id(value) for _, value in dense.named_parameters(remove_duplicate=False))
    own = [
        name
        for name, module in dense.named_modules()
        if isinstance(module, nn.Linear) and uses[id(module.weight)] == 1 and not space.in_body(name)
    ]
    made, other = (_made(model, own, space, batch) for model in (dense, pruned))
    return [
        Gate(name, total=Tap(name, "output"))
        for name, value in made.items()
        if value.shape == other[name].shape and not torch.equal(value, other[name])
    ]


def _made(model: nn.Module, linear: list[str], space: UnitSpace, batch: Batch) -> dict[str, Tensor]:
    """What each map that runs once, behind the last block of a chain, makes; in the order in which they run."""
    made: dict[str, tuple[Tensor, set[str]]] = {}  # with the chains that ran before
    runs, chains = Counter[str](), set[str]()

    def keep(name: str) -> Hook:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            made[name] = output, set(chains)
            runs[name] += 1

        return hook

    def forget(block: str) -> Hook:
        def hook(*_: object) -> None:
            chains.add(pattern(block))
            for name in [name for name, (_, before) in made.items() if not before or pattern(block) in before]:
                del made[name]

        return hook

    with (
        inference_mode_of(model),
        torch.inference_mode(),
        hooks(
            *(model.get_submodule(name).register_forward_hook(keep(name)) for name in linear),
            *(model.get_submodule(name).register_forward_hook(forget(name)) for name in dict.fromkeys(space.body)),
        ),
    ):
        call(model, batch)
    return {name: value for name, (value, _) in made.items() if runs[name] == 1}
