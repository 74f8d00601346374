"""What merging so many tokens before each block costs, in the currency of the removal curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..running.batch import Batch, split
from ..running.merging import Merging, most
from ..running.modules import call, inference_mode_of
from ..running.outputs import Output
from ..running.replay import recorded_blocks, resumed_at, with_last_state
from ..running.tensors import hidden_of
from ..scoring.job import Scoring
from ..scoring.probe import read_final
from ..scoring.resume import Partial, tokens_beside
from ..scoring.trajectory import Positions, manifold_loss, output_loss
from ..space.options import Trajectory
from ..space.units import TokenSpace, UnitSpace

MICRO = 8  # images that are compared at once


def token_costs(scoring: Scoring, scales: Mapping[str, float]) -> Float[Tensor, "block removed"]:
    """c_i(r) for every block and every number of tokens, in the currency of the removal curves.

    Every original token is compared in the state of the token that stands for it, so that the losses are those
    of units. Evaluated at powers of two and linear between them; beyond what can merge at once the last slope
    goes on. Keeps partial sums beside those of the criterion.

    Args:
        scales: what each part of the trajectory is multiplied by in the curves.

    Raises:
        InputError: the network's tokens cannot be merged, or the criterion has no trajectory to compare with.
    """
    model, space, options = scoring.model, scoring.space, scoring.recipe.trajectory
    tokens = token_space(space)
    if not scales:
        raise InputError(
            f"the criterion {scoring.recipe.criterion!r} has no common currency for tokens and units. "
            "Use compensated, sketch or exact, or merge no tokens."
        )
    micro = [part for batch in scoring.batches for part in split(batch, MICRO)]
    micro = micro[: -(-scoring.recipe.tokens.examples // MICRO)]
    with inference_mode_of(model), torch.inference_mode():
        count = _Reference.of(model, space, micro[0], options, scoring.recipe.seed).tokens
        grid = _grid(most(count, tokens.protected))
        sums = torch.zeros(len(tokens.blocks), len(grid), dtype=torch.float64)
        path = None if scoring.resume is None else tokens_beside(scoring.resume)
        partial = Partial.open(path, {"tokens": sums}, scoring.identity, len(micro))
        for index, batch in enumerate(scoring.track(micro, "token costs", len(micro))):
            if index < partial.done:
                continue
            reference = _Reference.of(model, space, batch, options, scoring.recipe.seed + index)
            for place in range(1, len(tokens.blocks)):
                for column, r in enumerate(grid):
                    sums[place, column] += reference.cost(place, r, scales)
            partial.commit(index + 1, may_wait=True)
    costs = torch.zeros(len(tokens.blocks), count + 1, dtype=torch.float64)
    for place in range(1, len(tokens.blocks)):
        costs[place] = _interpolated([0, *grid], [0.0, *(sums[place] / len(micro)).tolist()], count)
    return costs


@dataclass
class _Reference:
    """The dense network on one micro-batch, which merges at single blocks are compared with."""

    model: nn.Module
    space: UnitSpace
    batch: Batch
    options: Trajectory
    positions: Positions
    blocks: list[object]
    maps: list[Tensor]
    output: Output

    @classmethod
    def of(cls, model: nn.Module, space: UnitSpace, batch: Batch, options: Trajectory, seed: int) -> _Reference:
        positions = Positions(batch, options.rows, torch.Generator().manual_seed(seed))
        blocks: list[object] = []
        with recorded_blocks(model, space.blocks, blocks):
            output = read_final(model, call(model, batch), positions, options)
        maps = [positions.manifold(hidden) for hidden in map(hidden_of, blocks)]
        return cls(model, space, batch, options, positions, blocks, maps, output)

    @property
    def tokens(self) -> int:
        return hidden_of(self.blocks[self.space.blocks.index(token_space(self.space).blocks[0])]).shape[1]

    def cost(self, place: int, r: int, scales: Mapping[str, float]) -> float:
        """The balanced trajectory loss of merging `r` tokens before one block of the token space."""
        after: list[object] = []
        tokens = token_space(self.space)
        schedule = [r if other == place else 0 for other in range(len(tokens.blocks))]
        index, matched = (self.space.blocks.index(tokens.blocks[other]) for other in (place, place - 1))
        merging = Merging(self.model, tokens, schedule)
        try:
            # Everything before is skipped, but for the block whose keys are matched.
            before = self.blocks[:matched]
            if before and self.space.chained:
                before = with_last_state(before, hidden_of(before[-1]))
            with (
                resumed_at(self.model, self.space.blocks, before),
                recorded_blocks(self.model, self.space.blocks, after),
            ):
                final = read_final(self.model, call(self.model, self.batch), self.positions, self.options)
            states = [
                merging.spread(hidden_of(output)) if block in tokens.blocks else hidden_of(output)
                for block, output in zip(self.space.blocks, after, strict=True)
            ]
        finally:
            merging.remove(self.model)
        middle = sum(
            float(manifold_loss(self.positions.manifold(states[other]), self.maps[other]))
            for other in self.options.compared(len(self.space.body), index)
        )
        last = float(output_loss(final, self.output, self.options.temperature))
        return scales["manifold"] * middle + scales["output"] * last


def token_space(space: UnitSpace) -> TokenSpace:
    """Where tokens can be merged.

    Raises:
        InputError: nowhere.
    """
    if space.tokens is None:
        raise InputError(f"the tokens of {space.architecture!r} cannot be merged. Prune heads and neurons alone.")
    return space.tokens


def _grid(full: int) -> list[int]:
    """Powers of two up to everything that can merge at once."""
    return sorted({2**power for power in range(full.bit_length()) if 2**power < full} | ({full} if full else set()))


def _interpolated(at: list[int], values: list[float], count: int) -> Tensor:
    """Values at 0 ... count, linear between the given ones; the last slope goes on."""
    result = torch.zeros(count + 1, dtype=torch.float64)
    for (low, first), (high, last) in zip(
        zip(at, values, strict=True), zip(at[1:], values[1:], strict=True), strict=False
    ):
        stop = count if high == at[-1] else high
        for place in range(low, stop + 1):
            result[place] = first + (last - first) * (place - low) / (high - low)
    return result
