"""Sums over the draws of the trajectory: in one pass here, or a calibration batch at a time on many machines.

A worker is given a batch and the state that the generator of one process would have before it, and gives back its
sums. So they differ from those of one process in nothing but the order of adding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import CheckpointError
from ..recipe import Recipe
from ..running.batch import Batch, batched, tile
from ..running.modules import call, inference_mode_of
from ..running.replay import recorded_blocks
from ..running.store import Store
from ..space.units import UnitSpace
from .engines import local
from .job import Scoring
from .probe import Micro, Objective, Probe, differentiate, micro_batches_of, passes, states, trajectory_objective
from .resume import Partial
from .token_weights import TokenWeights
from .totals import Parts

Weights = Callable[[], Mapping[str, list[Tensor]]]


@runtime_checkable
class Sums(Protocol):
    """What a criterion adds up."""

    def add(self, probe: Probe, weights: Weights) -> None:
        """Add one draw; `weights` computes how much each token matters at every consumer."""

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, as they are kept: adding to a tensor adds to the sum."""

    def state(self) -> dict[str, Tensor]:
        """By name what adding goes on from, to the same bits."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""

    @property
    def mean(self) -> Parts:
        """What the sketch says of each unit, per part and group."""


S = TypeVar("S", bound=Sums)


def summed(scoring: Scoring, empty: Callable[[], S], description: str) -> tuple[S, TokenWeights]:
    """The sums over all draws, and the weights of all tokens. Partial sums go to `scoring.resume`.

    Args:
        empty: makes sums of nothing.
    """
    total, recipe = empty(), scoring.recipe
    weights = TokenWeights(scoring.space, recipe, Store())
    if scoring.engine is local:
        for _ in scoring.track(_draws_here(scoring, total, weights), description, recipe.trajectory.draws):
            pass
        return total, weights
    batches, size = list(scoring.batches), scoring.batches.micro_size(recipe.trajectory.draws)
    stacks = passes(scoring)
    places = [(index, number > 0, stack) for number, stack in enumerate(stacks) for index in range(len(batches))]
    work = BatchSums(scoring.model, scoring.space, batches, size, recipe, empty)
    calls = [(*place, state) for place, state in zip(places, work.generators(places), strict=True)]
    partial = Partial.open(scoring.resume, total.tensors(), scoring.identity, len(calls))
    results = scoring.engine(work, calls[partial.done :])
    for done, part in enumerate(scoring.track(results, description, len(calls) - partial.done), partial.done + 1):
        partial.add(part)
        partial.commit(done, may_wait=True)
    for index in range(len(batches)):
        weights.put(index, {name: partial.sums[f"weights/{index}/{name}"] for name in weights.consumers})
    return total, weights


def _draws_here(scoring: Scoring, total: Sums, weights: TokenWeights) -> Iterator[None]:
    """Add every draw to the sums, from where an earlier run was killed."""
    options = scoring.recipe.trajectory
    generator = scoring.generator
    objective = trajectory_objective(scoring.model, scoring.space, options, generator)
    sums = {**total.state(), "generator": generator.get_state()}
    partial = Partial.open(scoring.resume, sums, f"{scoring.identity} here", len(scoring.batches) * options.draws)
    if partial.done:
        try:
            total.restore(partial.sums)
            generator.set_state(partial.sums["generator"])
            for index in range(min(partial.done, len(scoring.batches))):
                weights.put(index, {name: partial.sums[f"weights/{index}/{name}"] for name in weights.consumers})
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{scoring.resume} is damaged ({error}). Remove it to score from the start."
            ) from error
    followed = scoring.recipe.tokens.merge == "search"  # by a stage that may be killed, and must not lose the sums
    stacks = passes(scoring)
    size, done = scoring.batches.micro_size(options.draws), 0
    for number, stack in enumerate(stacks):
        for index, batch in enumerate(scoring.batches):
            for micro in micro_batches_of(batch, index, size, number > 0, stack):
                if done >= partial.done:
                    add_draw(micro, _probe(scoring.model, scoring.space, micro, objective), total, weights)
                yield from [None] * stack
            done += 1
            last = done == len(stacks) * len(scoring.batches)
            if done > partial.done and (partial.due or (last and followed)):
                seen = range(min(done, len(scoring.batches)))
                partial.sums = {
                    **total.state(),
                    "generator": generator.get_state(),
                    **{
                        f"weights/{i}/{name}": torch.stack(weights(i, name))
                        for i in seen
                        for name in weights.consumers
                    },
                }
                partial.commit(done)


def _probe(model: nn.Module, space: UnitSpace, micro: Micro, objective: Objective) -> Probe:
    return differentiate(model, space, micro.batch, objective, micro.stack)


def add_draw(micro: Micro, probe: Probe, sums: Sums, token_weights: TokenWeights) -> None:
    """Add one draw, or several that were made at once, to the sums, and its weights if it is the first of them."""
    weights = functools.cache(lambda: token_weights.of(probe))
    sums.add(probe, weights)
    if not micro.again:
        token_weights.add(micro, weights())


class BatchSums:
    """The sums of one of some batches; can be sent to other processes.

    Args:
        size: examples that are differentiated at once.
        empty: makes sums of nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        space: UnitSpace,
        batches: Sequence[Batch],
        size: int,
        recipe: Recipe,
        empty: Callable[[], Sums],
    ) -> None:
        self.model, self.space, self.batches, self.size = model, space, batches, size
        self.recipe, self.empty = recipe, empty

    def __call__(self, index: int, again: bool, stack: int, state: Tensor) -> dict[str, Tensor]:
        """By name, on the CPU; of a first pass with the weights of all tokens, named weights/INDEX/CONSUMER.

        Args:
            again: the batch was drawn before.
            stack: draws that are made of it at once.
            state: of the generator, see `generators`.
        """
        generator = torch.Generator()
        generator.set_state(state)
        objective = trajectory_objective(self.model, self.space, self.recipe.trajectory, generator)
        sums, weights = self.empty(), TokenWeights(self.space, self.recipe, Store())
        for micro in micro_batches_of(self.batches[index], index, self.size, again, stack):
            add_draw(micro, _probe(self.model, self.space, micro, objective), sums, weights)
        found = sums.tensors()
        if not again:
            found |= {f"weights/{index}/{name}": torch.stack(weights(index, name)) for name in weights.consumers}
        return {name: value.cpu() for name, value in found.items()}

    def generators(self, places: Sequence[tuple[int, bool, int]]) -> Iterator[Tensor]:
        """The state of the generator of one process before each batch: its objective is drawn and forgotten.

        What is drawn depends on shapes alone. They are those of one forward for every shape of the inputs.
        """
        generator = torch.Generator().manual_seed(self.recipe.seed)
        objective = trajectory_objective(self.model, self.space, self.recipe.trajectory, generator)
        seen: dict[object, tuple[object, list[Tensor]]] = {}
        for index, again, stack in places:
            yield generator.get_state()
            for micro in micro_batches_of(self.batches[index], index, self.size, again, stack):
                shapes = (stack, *((name, value.shape) for name, value in micro.batch.items() if batched(value)))
                if shapes not in seen:
                    seen[shapes] = self._zeros(tile(micro.batch, stack))
                objective(micro.batch, *seen[shapes], stack)

    def _zeros(self, batch: Batch) -> tuple[object, list[Tensor]]:
        """Zeros in the shapes of what the network and its blocks return, which take no memory."""
        blocks: list[object] = []
        with inference_mode_of(self.model), torch.no_grad(), recorded_blocks(self.model, self.space.blocks, blocks):
            output = call(self.model, batch)
        zeros: tuple[object, list[Tensor]] = tree_map(
            lambda value: value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value,
            (output, states(self.space, blocks)),
        )
        return zeros
