"""`exact`: the trajectory of a unit by removing it, one evaluation per unit (docs/method.md, Estimators).

To be affordable, the forward resumes behind the consumer that reads the unit, whose output without the
unit is the recorded one minus one block of columns; and several units share a forward on the batch axis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..running.batch import Batch, size_of, split, tile
from ..running.batches import Batches
from ..running.consumers import without_units
from ..running.gating import gated
from ..running.modules import call, inference_mode_of, patched_forward
from ..running.outputs import Output
from ..running.replay import FinishedParts, Recorded, Recorder, recorded_blocks, resumed_at, with_last_state
from ..running.tensors import hidden_of, mapped
from ..space.options import Trajectory
from ..space.scores import Curve
from ..space.units import Tap, UnitGroup, UnitSpace
from .job import Found, Scoring
from .probe import PARTS, check_activations, read_final, states
from .resume import Partial
from .sketch import balanced, part_scales
from .totals import flat
from .trajectory import Positions, manifold_loss, output_loss

SIDES: tuple[Literal["input", "output"], ...] = ("input", "output")


def exact(scoring: Scoring) -> Found:
    """Removal curves from independent unit scores; keeps partial sums in `scoring.resume`."""
    parts, balance = exact_parts(scoring), scoring.recipe.trajectory.balance
    curves = {name: Curve.from_importance(value) for name, value in balanced(parts, balance).items()}
    return Found(curves, part_scales(parts, balance))


def exact_parts(scoring: Scoring, units: Mapping[str, list[int]] | None = None) -> dict[str, dict[str, Tensor]]:
    """L_mid and L_out of the chosen units (all by default), averaged over micro-batches: shape (chosen,)."""
    space, recipe, batches = scoring.space, scoring.recipe, scoring.batches
    chosen = {group.name: list(range(group.size)) for group in space} if units is None else dict(units)
    size, stack = batches.micro_size(recipe.trajectory.draws), recipe.trajectory.stack
    sums = {
        part: {name: torch.zeros(len(removed), dtype=torch.float64) for name, removed in chosen.items()}
        for part in PARTS
    }
    micro = [(batch, recipe.seed + index) for index, batch in enumerate(_micro_batches(batches, size))]
    partial = Partial.open(scoring.resume, flat(sums), scoring.identity, len(micro))
    places = [
        (index, name, start)
        for index in range(partial.done, len(micro))
        for name, removed in chosen.items()
        for start in range(0, len(removed), stack)
    ]
    calls = [(index, name, chosen[name][start : start + stack]) for index, name, start in places]
    work = Removals(scoring.model, space, micro, recipe.trajectory)
    results = scoring.track(scoring.engine(work, calls), "exact", len(calls))
    for (index, name, start), losses in zip(places, results, strict=True):
        if index > partial.done:
            partial.commit(index)
        for part, values in zip(PARTS, losses, strict=True):
            sums[part][name][start : start + len(values)] += values
    partial.commit(len(micro))
    return {part: {name: value / len(micro) for name, value in groups.items()} for part, groups in sums.items()}


class Removals:
    """The losses of removing units, on one of some micro-batches; can be sent to other processes.

    Args:
        micro: micro-batches and their seeds.
    """

    def __init__(
        self, model: nn.Module, space: UnitSpace, micro: Sequence[tuple[Batch, int]], options: Trajectory
    ) -> None:
        self.model, self.space, self.micro, self.options = model, space, micro, options
        self.latest: tuple[int, Reference] | None = None

    def __call__(self, index: int, group: str, units: list[int]) -> tuple[Tensor, Tensor]:
        """(L_mid, L_out) on a micro-batch of removing each unit alone: shape (units,), float64 on the CPU."""
        with inference_mode_of(self.model), torch.inference_mode():
            if self.latest is None or self.latest[0] != index:
                batch, seed = self.micro[index]
                self.latest = index, Reference.of(self.model, self.space, batch, self.options, seed)
            middle, output = self.latest[1].losses(self.space[group], units)
        return middle.double().cpu(), output.double().cpu()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "latest": None}


def _micro_batches(batches: Batches, size: int) -> Iterator[Batch]:
    for batch in batches:
        yield from split(batch, size)


@dataclass
class Reference:
    """The dense network on one micro-batch: what removals are compared with and resumed from.

    Attributes:
        positions: those that count.
        blocks: what each block returned.
        maps: phi of each block's hidden state.
        output: the final output.
        consumers: per consumer that runs once, what it read and returned.
        trails: per block with such consumers, what its parts returned.
    """

    model: nn.Module
    space: UnitSpace
    batch: Batch
    options: Trajectory
    positions: Positions
    blocks: list[object]
    maps: list[Tensor]
    output: Output
    consumers: dict[str, tuple[Tensor, Tensor]]
    trails: dict[int, FinishedParts]

    @classmethod
    def of(cls, model: nn.Module, space: UnitSpace, batch: Batch, options: Trajectory, seed: int) -> Reference:
        """Run the dense network once and record it."""
        generator = torch.Generator().manual_seed(seed)
        positions = Positions(batch, options.rows, generator, space.of_maps)
        gates: dict[int, list[str]] = {group.layer: [] for group in space if not group.shared}
        for group in space:
            if not group.shared:
                gates[group.layer] += [gate.module for gate in group.gates]
        trails = {layer: FinishedParts(space.blocks[layer], names) for layer, names in gates.items()}
        recorder = Recorder([Tap(name, side) for names in gates.values() for name in names for side in SIDES])
        blocks: list[object] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(recorder.recording(model))
            for trail in trails.values():
                stack.enter_context(trail.recording(model))
            stack.enter_context(recorded_blocks(model, space.blocks, blocks))
            result = call(model, batch)
        hidden = states(space, blocks)
        check_activations(space.blocks, hidden, positions)
        consumers = {}
        for name in (name for names in gates.values() for name in names):
            read, returned = (recorder.calls[Tap(name, side)] for side in SIDES)
            if len(read) == 1:
                consumers[name] = (read[0], returned[0])
        maps = [positions.manifold(state) for state in hidden]
        output = read_final(model, result, positions, options)
        return cls(model, space, batch, options, positions, blocks, maps, output, consumers, trails)

    def losses(self, group: UnitGroup, units: list[int]) -> tuple[Tensor, Tensor]:
        """(sum of L_mid over the blocks from the unit's on, L_out) of removing each unit alone; shape (units,)."""
        stack = len(units)
        blocks: list[object] = []
        resumable = (
            len(group.gates) == 1
            and group.gates[0].module in self.consumers
            and not any(run.examples for run in self.space.runs[: group.layer + 1])
        )
        removal = self._resumed(group, units) if resumable else self._gated(group, units)
        with removal, recorded_blocks(self.model, self.space.blocks, blocks):
            result = call(self.model, tile(self.batch, stack))
        hidden = states(self.space, blocks)
        manifolds = [
            manifold_loss(self.positions.manifold(hidden[place], stack), self.maps[place])
            for place in self.options.compared(len(self.space.body), group.layer)
        ]
        output = read_final(self.model, result, self.positions, self.options, stack)
        final = output_loss(output, self.output, self.options.temperature)
        return torch.stack(manifolds).sum(0) if manifolds else torch.zeros_like(final), final

    @contextlib.contextmanager
    def _gated(self, group: UnitGroup, units: list[int]) -> Iterator[None]:
        """Run the whole network with a mask per example: for units that work in several places."""
        masks = next(self.model.parameters()).new_ones(len(units), group.size)
        masks[range(len(units)), units] = 0
        with gated(self.model, self.space, {group.name: masks.repeat_interleave(size_of(self.batch), 0)}):
            yield

    @contextlib.contextmanager
    def _resumed(self, group: UnitGroup, units: list[int]) -> Iterator[None]:
        """Skip everything before the consumer, and the consumer itself."""
        (gate,) = group.gates
        module, (x, y) = self.model.get_submodule(gate.module), self.consumers[gate.module]
        without = without_units(module, gate, group.size, x, y, units)
        with contextlib.ExitStack() as patches:
            if group.layer:
                before = self.blocks[: group.layer]
                if self.space.chained:
                    last = self._tiled(hidden_of(before[-1]), len(units))
                    before = with_last_state(before, last, len(units))
                else:
                    before = [self._tiled(output, len(units)) for output in before]
                patches.enter_context(resumed_at(self.model, self.space.blocks, before))
            skipped = {
                name: [self._tiled(output, len(units)) for output in outputs]
                for name, outputs in self.trails[group.layer].finished[gate.module].items()
            }
            for name, outputs in {**skipped, gate.module: [without]}.items():
                part = self.model.get_submodule(name)
                patches.enter_context(patched_forward(part, Recorded(part.forward, outputs)))
            yield

    def _tiled(self, output: object, times: int) -> Any:
        size = size_of(self.batch)

        def repeat(value: Tensor) -> Tensor:
            # Windows of one example follow each other, so there may be several rows to each.
            batched = value.dim() > 0 and value.shape[0] % size == 0
            return value.repeat(times, *[1] * (value.dim() - 1)) if batched else value

        return mapped(repeat, output)
