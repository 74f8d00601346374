"""Sums over the draws block by block, so that the moments of one block alone are in memory (docs/adr/0031).

First every micro-batch runs through the network without a graph. What each block returned is kept, with the
derivatives by it of the two parts of the objective where they reach it directly: what lies behind the last block is
differentiated there. Then the blocks are run again one by one, from the last to the first, each from the state that
was kept before it, and differentiated by what arrives from the block behind. What is drawn is drawn in the order of
`draws`, so that the sums differ by rounding alone. A block is run once more than there; states wait on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..recipe import Recipe
from ..running.merging import merging_of
from ..running.modules import call, device_of, hooks, inference_mode_of
from ..running.replay import recorded_blocks, run_block, template, with_last_state
from ..running.store import Store
from ..running.tensors import hidden_of, with_hidden
from ..space.units import UnitGroup, UnitSpace
from .draws import S, Sums, add_draw, summed
from .job import Scoring
from .probe import (
    PARTS,
    Micro,
    Objective,
    Watched,
    derivatives,
    micro_batches_of,
    parts_of,
    passes,
    states,
    trajectory_objective,
)
from .shelf import Shelf
from .token_weights import TokenWeights
from .totals import Parts, UnitTotals


@dataclass(frozen=True)
class Summed(Generic[S]):
    """Sums over all draws.

    Attributes:
        mean: what the sketch says of each unit, per part and group.
        weights: of all tokens.
        of: gives the sums of a group, with or without those of others.
    """

    mean: Parts
    weights: TokenWeights
    of: Callable[[UnitGroup], S]


def sums_of(scoring: Scoring, empty: Callable[[UnitSpace], S], description: str) -> Summed[S]:
    """The sums over all draws: with `Recipe.offload` block by block, else of all groups at once.

    Networks whose blocks are no chain or run several times, units that several blocks read, tokens that merge
    (`not_by_blocks`) and other engines know the second way alone.

    Args:
        empty: makes sums of nothing, of the groups of a description.
    """
    if scoring.recipe.offload:
        return _by_blocks(scoring, empty, description)
    total, weights = summed(scoring, partial(empty, scoring.space), description)
    return Summed(total.mean, weights, lambda group: total)


def check_by_blocks(model: nn.Module, space: UnitSpace, recipe: Recipe) -> None:
    """Refuse a network that cannot be scored block by block.

    Raises:
        InputError: says why.
    """
    if reason := not_by_blocks(model, space, recipe):
        raise InputError(
            f"this {type(model).__name__} cannot be scored block by block: {reason}. Leave out 'offload'."
        )


def not_by_blocks(model: nn.Module, space: UnitSpace, recipe: Recipe) -> str | None:
    """Why a network cannot be scored block by block, if it cannot."""
    if recipe.tokens.merge != "none" or merging_of(model) is not None:
        return "its tokens merge, by what the block before says of them"
    if len(set(space.blocks)) < len(space.blocks) or any(group.shared for group in space):
        return "a block of it runs several times"
    if not space.chained or not space.body or space.blocks[: len(space.body)] != space.body:
        return "a block reads more than what the one before it returned"
    for group in space:
        if len(places := {_place(space, gate.module) for gate in group.gates}) > 1:
            return f"the units of {group.name!r} are read in {len(places)} blocks"
    return None


def _place(space: UnitSpace, module: str) -> int:
    """The place of the block that a module lies in; all of the head are one, behind the others."""
    return min(space.blocks.index(space.block_of(module)), len(space.body))


def by_blocks(space: UnitSpace) -> dict[int, UnitSpace]:
    """The groups of every block, from the first that has some to the head, by the place of the block."""
    groups: dict[int, list[UnitGroup]] = {}
    for group in space:
        groups.setdefault(_place(space, group.gates[0].module), []).append(group)
    return {
        place: dataclasses.replace(space, groups=tuple(groups.get(place, ())))
        for place in range(min(groups), len(space.body) + 1)
    }


def _by_blocks(scoring: Scoring, empty: Callable[[UnitSpace], S], description: str) -> Summed[S]:
    walk = _Walk(scoring)
    for _ in scoring.track(walk.steps(empty), description, walk.count):
        pass
    return Summed(walk.mean(), walk.weights(scoring.space), partial(walk.of, empty))


class _Walk:
    """The draws on their way through the blocks, from the last to the first; the head is one place behind them."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring, self.model, self.space = scoring, scoring.model, scoring.space
        self.spaces = by_blocks(self.space)
        self.first, self.behind = min(self.spaces), max(self.spaces)  # no gradient is needed before the first
        self.stacks = passes(scoring)
        self.size = scoring.batches.micro_size(scoring.recipe.trajectory.draws)
        self.states, self.kept = Store(), Store()  # what waits between the blocks; the weights of tokens
        self.templates: list[list[object]] = []  # per draw what each block returned, hidden states without values
        self.shelf = Shelf(scoring.resume, f"{scoring.identity} by blocks", len(self.spaces))
        self.earlier = len(self.shelf)  # parts that a run finished before it was killed

    @property
    def count(self) -> int:
        """How many steps there are: every draw goes through every block."""
        return parts_of(self.scoring.batches, self.size) * len(self.stacks) * len(self.spaces)

    def micros(self) -> Iterator[Micro]:
        """All draws, in their order."""
        for number, stack in enumerate(self.stacks):
            for index, batch in enumerate(self.scoring.batches):
                yield from micro_batches_of(batch, index, self.size, number > 0, stack)

    def weights(self, space: UnitSpace) -> TokenWeights:
        """Those of the tokens, at the consumers of some groups."""
        return TokenWeights(space, self.scoring.recipe, self.kept)

    def mean(self) -> Parts:
        """What the sketch says of each unit, when all blocks are done."""
        found: Parts = {part: {} for part in PARTS}
        for place, space in self.spaces.items():
            if space.groups:
                totals = UnitTotals(space)
                totals.restore(self.shelf[f"sums {place}"])
                for part, groups in totals.mean.items():
                    found[part] |= groups
        return {part: {name: groups[name] for name in self.space.sizes} for part, groups in found.items()}

    def of(self, empty: Callable[[UnitSpace], S], group: UnitGroup) -> S:
        """The sums of one group, when all blocks are done."""
        sums = empty(dataclasses.replace(self.space, groups=(group,)))
        sums.restore(self.shelf[f"sums {_place(self.space, group.gates[0].module)}"])
        return sums

    def steps(self, empty: Callable[[UnitSpace], Sums]) -> Iterator[None]:
        """Go through all blocks; of those that an earlier run finished only the states are made again."""
        yield from self._forward(empty)
        for place in range(self.behind - 1, self.first - 1, -1):
            weights = self.weights(self.spaces[place])
            if self.behind - place < self.earlier:
                for index in range(len(self.scoring.batches)):
                    kept = self.shelf[f"weights {place}"]
                    weights.put(index, {name: kept[f"{index}/{name}"] for name in weights.consumers})
                weights.finish()
                yield from [None] * len(self.templates)
                continue
            if self.behind - place == self.earlier:
                for key, value in self.shelf[f"arriving {place + 1}"].items():
                    draw, _, part = key.partition("/")
                    self.states["arriving", int(draw), part] = value.to(device_of(self.model))
            yield from self._through(place, self._empty(place, empty), weights)

    def _through(self, place: int, sums: Sums | None, weights: TokenWeights) -> Iterator[None]:
        """Every draw through one block; its sums are gone when the next are made."""
        for number, micro in enumerate(self.micros()):
            watched = self._differentiated(place, number, micro)
            if sums is not None:
                add_draw(micro, watched.probe(), sums, weights)
            yield None
        self._finish(place, sums, weights)

    def _forward(self, empty: Callable[[UnitSpace], Sums]) -> Iterator[None]:
        """Every draw through the network without a graph, and what lies behind the last block differentiated."""
        scoring = self.scoring
        objective = trajectory_objective(self.model, self.space, scoring.recipe.trajectory, scoring.generator)
        sums, weights = self._empty(self.behind, empty), self.weights(self.spaces[self.behind])
        for number, micro in enumerate(self.micros()):
            watched = self._recorded(number, micro, objective)
            if sums is not None:
                add_draw(micro, watched.probe(), sums, weights)
            yield None
        if self.earlier:
            weights.finish()
        else:
            self._finish(self.behind, sums, weights)

    def _empty(self, place: int, empty: Callable[[UnitSpace], S]) -> S | None:
        """Sums of nothing, where a block has groups."""
        return empty(self.spaces[place]) if self.spaces[place].groups else None

    def _recorded(self, number: int, micro: Micro, objective: Objective) -> Watched:
        """Keep the states of one draw, and the derivatives by them as far as no block lies between."""
        watched = Watched(self.model, self.spaces[self.behind], micro.batch, micro.stack)
        outputs, last, cut = list[object](), self.behind - 1, _Cut()
        with inference_mode_of(self.model), torch.enable_grad():
            with (
                hooks(self.model.get_submodule(self.space.body[-1]).register_forward_hook(cut)),
                watched.running(),
                recorded_blocks(self.model, self.space.blocks, outputs),
            ):
                output = call(self.model, watched.batch)
            leaves = [hidden_of(output).detach().requires_grad_() for output in outputs[:last]]
            hidden = states(self.space, [*leaves, *outputs[last:]])
            objectives = objective(micro.batch, output, hidden, micro.stack)
            leaves.append(cut.leaf)
            for part, gradients in derivatives(objectives, [*leaves, *watched.by]):
                for place in range(self.first, self.behind):
                    if place == last or gradients[place].any():  # the output is reached from the last block alone
                        self.states["direct", number, place, part] = gradients[place]
                watched.take(part, gradients[self.behind :])
        for place in range(max(self.first - 1, 0), last):
            self.states["state", number, place] = leaves[place].detach()
        self.templates.append([template(output) for output in outputs[:last]])
        return watched

    def _differentiated(self, place: int, number: int, micro: Micro) -> Watched:
        """Run a block for one draw from the state before it, and differentiate it by what arrives from behind."""
        watched = Watched(self.model, self.spaces[place], micro.batch, micro.stack)
        before, by = list[object](), list[Tensor]()
        with inference_mode_of(self.model), torch.enable_grad():
            if place:
                state = self.states["state", number, place - 1].detach().requires_grad_(place > self.first)
                before = with_last_state(self.templates[number][:place], state)
                by = [state] if place > self.first else []
            with watched.running():
                made = hidden_of(run_block(self.model, self.space.blocks, watched.batch, before))
            objectives = {part: (made * self._arrived(place, number, part)).sum() for part in PARTS}
            for part, gradients in derivatives(objectives, [*by, *watched.by]):
                watched.take(part, gradients[len(by) :])
                if by:
                    self.states["arriving", number, part] = gradients[0]
        return watched

    def _arrived(self, place: int, number: int, part: str) -> Tensor:
        """The derivative of a part of the objective by what a block returned."""
        keys = [("direct", number, place, part), ("arriving", number, part)]
        first, *rest = (self.states[key] for key in keys if key in self.states)
        return sum(rest, first)

    def _finish(self, place: int, sums: Sums | None, weights: TokenWeights) -> None:
        """Write away the sums of a block, and what a run that goes on after a kill needs beside."""
        weights.finish()
        if sums is not None:
            self.shelf.put(f"sums {place}", sums.tensors().items())
        if self.shelf.path is not None:
            self.shelf.put(f"weights {place}", self._weights_of(weights))
            if self.first < place < self.behind:
                self.shelf.put(f"arriving {place}", self._arriving())
        self.shelf.done(self.behind - place + 1, f"arriving {place + 1}")

    def _weights_of(self, weights: TokenWeights) -> Iterator[tuple[str, Tensor]]:
        for index in range(len(self.scoring.batches)):
            for name in weights.consumers:
                yield f"{index}/{name}", torch.stack(weights(index, name))

    def _arriving(self) -> Iterator[tuple[str, Tensor]]:
        for number in range(len(self.templates)):
            for part in PARTS:
                yield f"{number}/{part}", self.states["arriving", number, part]


class _Cut:
    """Forward hook: what the module returns is a leaf of autograd, of which a clone flows on."""

    leaf: Tensor

    def __call__(self, module: nn.Module, args: object, output: object) -> object:
        self.leaf = hidden_of(output).detach().requires_grad_()
        cut: object = with_hidden(output, self.leaf.clone())
        return cut
