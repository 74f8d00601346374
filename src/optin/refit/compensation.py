"""Compensation: refit every consumer of a pruned network in closed form (docs/method.md, Compensation).

For each consumer, in network order,

    min over dW, db   sum_t w_t || dW x_t + db - e_t ||^2  +  ridge * ||dW||^2

where x is what the consumer of the PRUNED network reads and e is what the pruned network lacks behind it: the
dense network's output there minus its own, residual included. So each refit also repairs what the layers
before it left wrong. The network is walked once, block by block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import ArchitectureError
from ..running.batch import Batch, position_mask
from ..running.consumers import (
    add,
    can_shift,
    features_of_units,
    features_per_unit,
    matrix,
    out_axis,
    rows_made,
    rows_read,
    scale_of,
)
from ..running.job import Job
from ..running.merging import State, merging_of
from ..running.modules import call, inference_mode_of, modules_run
from ..running.replay import Recorder, recorded_blocks, resumed_at, run_block, run_until, template, with_last_state
from ..running.store import Store
from ..running.tensors import hidden_of, with_hidden
from ..scoring.probe import draw_probes
from ..scoring.token_weights import TokenWeights, padded
from ..space.units import Gate, Tap, UnitSpace
from .makers import makers, with_makers
from .readout import head_maps
from .regression import Folds

WeightsOf = Callable[[int, str], list[Tensor]]  # of the tokens of a batch at a consumer, call by call


def compensate(
    job: Job, pruned: nn.Module, keep: Mapping[str, Sequence[int]], weights: TokenWeights | None = None
) -> None:
    """Refit the consumers of `pruned` in place, so that it follows the dense network on the calibration set.

    Args:
        pruned: has the module names of the dense network.
        keep: the units that each group keeps: what a consumer makes may be units of another group.
        weights: the `sensitivities` of the dense network, if several are made from it.
    """
    dense, space, refit = job.model, job.space, job.recipe.refit
    with Store() as store:
        if weights is None:
            weights = sensitivities(job, store)
        made = makers(dense, space, job.first) if refit.makers else {}
        made = {module: group for module, group in made.items() if keep[group.name]}
        outputs, tied = _outputs_kept(dense, space, keep, made), any(group.shared for group in space)
        of = _of_readers(weights, {module: group.gates[0].module for module, group in made.items()})
        whole = with_makers(space, made)
        walk, stages = Walk(replace(job, space=whole), pruned, store, outputs), stages_of(whole)
        with inference_mode_of(dense), inference_mode_of(pruned), torch.no_grad():
            for gates in job.track(stages, "compensation", len(stages)):
                (walk.tied if tied and outputs else walk.shared if tied else walk.block)(gates, of)
            maps = head_maps(dense, pruned, space, job.first) if refit.head else []
            maps += [Gate(name, total=Tap(name, "output")) for name in made if not space.in_body(name)]
            if last := behind(job, keep, maps):
                walk.head(last)


def _of_readers(weights: WeightsOf, readers: Mapping[str, str]) -> WeightsOf:
    return lambda index, consumer: weights(index, readers.get(consumer, consumer))


def _outputs_kept(
    dense: nn.Module, space: UnitSpace, keep: Mapping[str, Sequence[int]], makers: Collection[str]
) -> dict[str, Sequence[int]]:
    """Per consumer or maker of whose outputs some are units, those that stay."""
    modules = {gate.module for group in space for gate in group.gates} | set(makers)
    stays: dict[str, Tensor] = {}
    for group in space:
        for cut in group.cuts:
            module = cut.parameter.removesuffix(".weight")
            if module not in modules or cut.dim != out_axis(consumer := dense.get_submodule(module)):
                continue
            mask = stays.setdefault(module, torch.ones(len(matrix(consumer)), dtype=torch.bool))
            owned = cut.indices(group.size)
            mask[owned.flatten()] = False
            mask[owned[list(keep[group.name])].flatten()] = True
    return {module: mask.nonzero().flatten().tolist() for module, mask in stays.items()}


def stages_of(space: UnitSpace) -> list[list[Gate]]:
    """A gate of every consumer in every distinct block of the body, in network order; some blocks hold none."""
    stages: dict[str, dict[str, Gate]] = {block: {} for block in space.blocks}
    for group in space:
        for gate in group.gates:
            stages[space.block_of(gate.module)].setdefault(gate.module, gate)
    return [list(stages[block].values()) for block in dict.fromkeys(space.body)]


def behind(job: Job, keep: Mapping[str, Sequence[int]], maps: Sequence[Gate] = ()) -> list[Gate]:
    """A gate of every map of the head that lost units, and of others, in the order in which they run."""
    found = {gate.module: gate for gate in maps}
    for group in job.space:
        lost = len(keep[group.name]) < group.size
        found |= {gate.module: gate for gate in group.gates if lost and not job.space.in_body(gate.module)}
    if not found:
        return []
    order = modules_run(job.model, lambda: call(job.model, job.first))
    return [found[name] for name in order if name in found]


def sensitivities(job: Job, store: Store) -> TokenWeights:
    """The weight of every token at every consumer, from one draw per micro-batch; `store` keeps them."""
    weights = TokenWeights(job.space, job.recipe, store)
    for micro, probe in draw_probes(job, "token sensitivities", once=True):
        weights.add(micro, weights.of(probe))
    return weights


class Walk:
    """The refit on its way through the network, with the hidden states that both networks have reached."""

    def __init__(self, job: Job, pruned: nn.Module, store: Store, outputs: Mapping[str, Sequence[int]]) -> None:
        self.models = {"dense": job.model, "pruned": pruned}
        self.space, self.batches, self.options, self.store = job.space, job.batches, job.recipe.refit, store
        self.merging = merging_of(pruned)  # its tokens are compared with the mean of the dense network's
        self.merged: tuple[str, ...] = ()  # the parts of its state that there are so far
        self.outputs = outputs  # per consumer whose outputs are units, those that stay
        # What the blocks passed so far return on each batch, the hidden states without their values.
        self.templates: dict[str, list[list[object]]] = {"dense": [], "pruned": []}

    def block(self, gates: Sequence[Gate], weights: WeightsOf) -> None:
        """Refit the consumers of a block that runs once, then move both networks behind it."""
        outputs: list[object] = []
        for index, batch in enumerate(self.batches):
            totals = Recorder([_total(gate) for gate in gates])
            with totals.recording(self.models["dense"]):
                output = self._run("dense", index, batch)
            for place, gate in enumerate(gates):
                consumer = self.models["dense"].get_submodule(gate.module)
                total = rows_made(consumer, gate, totals.calls[_total(gate)][0])
                if gate.module in self.outputs:
                    total = total[..., list(self.outputs[gate.module])]
                self.store["total", index, place] = total
            self._keep("dense", index, hidden_of(output))
            outputs.append(template(output))
        self.templates["dense"].append(outputs)
        for place, gate in enumerate(gates):
            folds = self._folds(gate)
            for index, batch in enumerate(self.batches):
                reads = Recorder([_total(gate), _read(gate)])
                with reads.recording(self.models["pruned"]):
                    self._run("pruned", index, batch, until=_total(gate))
                total, weight = self.store["total", index, place], weights(index, gate.module)[0]
                if self.merging is not None and self.space.block_of(gate.module) in self.merging.space.blocks:
                    total, weight = self.merging.mean(total), self.merging.total(weight)
                consumer = self.models["pruned"].get_submodule(gate.module)
                lack = total - rows_made(consumer, gate, reads.calls[_total(gate)][0])
                read = rows_read(consumer, gate, reads.calls[_read(gate)][0])
                self._add(folds, gate, batch, read, lack, weight)
            self.update(gate, folds)
        state: State = {}
        outputs = []
        for index, batch in enumerate(self.batches):
            output = self._run("pruned", index, batch)
            self._keep("pruned", index, hidden_of(output))
            outputs.append(template(output))
            state = {} if self.merging is None else self.merging.state
            for name, value in state.items():
                self.store["merged", name, index] = value
        self.merged = tuple(state)
        self.templates["pruned"].append(outputs)

    def shared(self, gates: Sequence[Gate], weights: WeightsOf) -> None:
        """Refit the consumers of a block that runs many times: every run is given the dense network's state."""
        blocks = self.space.blocks
        for gate in gates:
            positions = [place for place, block in enumerate(blocks) if block == self.space.block_of(gate.module)]
            folds = self._folds(gate)
            for index, batch in enumerate(self.batches):
                outputs: list[object] = []
                totals = Recorder([_total(gate)])
                with totals.recording(self.models["dense"]), recorded_blocks(self.models["dense"], blocks, outputs):
                    call(self.models["dense"], batch)
                for run, position in enumerate(positions):
                    reads = Recorder([_total(gate), _read(gate)])
                    with reads.recording(self.models["pruned"]):
                        run_block(self.models["pruned"], blocks, batch, outputs[:position], _total(gate))
                    lack = totals.calls[_total(gate)][run] - reads.calls[_total(gate)][-1]
                    read = reads.calls[_read(gate)][-1]
                    self._add(folds, gate, batch, read, lack, weights(index, gate.module)[run])
            self.update(gate, folds)

    def tied(self, gates: Sequence[Gate], weights: WeightsOf) -> None:
        """Refit consumers that run many times where what blocks hand on is cut too: both networks run as a whole."""
        for gate in gates:
            folds, kept = self._folds(gate), self.outputs.get(gate.module)
            for index, batch in enumerate(self.batches):
                totals, reads = Recorder([_total(gate)]), Recorder([_total(gate), _read(gate)])
                with totals.recording(self.models["dense"]), reads.recording(self.models["pruned"]):
                    for model in self.models.values():
                        call(model, batch)
                runs = (totals.calls[_total(gate)], reads.calls[_total(gate)], reads.calls[_read(gate)])
                for total, reached, read, weight in zip(*runs, weights(index, gate.module), strict=True):
                    total = total if kept is None else total[..., list(kept)]
                    self._add(folds, gate, batch, read, total - reached, weight)
            self.update(gate, folds)

    def head(self, gates: Sequence[Gate]) -> None:
        """Refit the maps behind the last block, in the order in which they run, every position alike.

        Most have few, so ridges are validated.
        """
        for index, batch in enumerate(self.batches):
            totals = Recorder([_total(gate) for gate in gates])
            with totals.recording(self.models["dense"]):
                self._run_on("dense", index, batch, until=_total(gates[-1]))
            for place, gate in enumerate(gates):
                total = totals.calls[_total(gate)][0]
                kept = self.outputs.get(gate.module)
                self.store["total", index, place] = total if kept is None else total[..., list(kept)]
        for place, gate in enumerate(gates):
            folds = self._folds(gate, least=2)
            for index, batch in enumerate(self.batches):
                reads = Recorder([_total(gate), _read(gate)])
                with reads.recording(self.models["pruned"]):
                    self._run_on("pruned", index, batch, until=_total(gate))
                read = reads.calls[_read(gate)][0]
                lack = self.store["total", index, place] - reads.calls[_total(gate)][0]
                self._add(folds, gate, batch, read, lack, lack.new_ones(read.shape[:-1]))
            self.update(gate, folds)

    def _keep(self, which: str, index: int, hidden: Tensor) -> None:
        """Keep what a block returned: the last one's if they form a chain, else all."""
        self.store[which, index, 0 if self.space.chained else len(self.templates[which])] = hidden

    def _before(self, which: str, index: int) -> list[object]:
        """What the blocks passed so far return."""
        templates = [outputs[index] for outputs in self.templates[which]]
        if not templates:
            return []
        if self.space.chained:
            return with_last_state(templates, self.store[which, index, 0])
        states = (self.store[which, index, place].clone() for place in range(len(templates)))
        return [with_hidden(kept, state) for kept, state in zip(templates, states, strict=True)]

    def _run(self, which: str, index: int, batch: Batch, until: Tap | None = None) -> object:
        before = self._before(which, index)
        with self._merged(which, index, len(before)):
            return run_block(self.models[which], self.space.blocks, batch, before, until)

    def _run_on(self, which: str, index: int, batch: Batch, until: Tap) -> None:
        """Run from behind the blocks passed so far up to a tap."""
        model, before = self.models[which], self._before(which, index)
        with self._merged(which, index, len(before)), resumed_at(model, self.space.blocks, before):
            run_until(model, batch, until)

    def _merged(self, which: str, index: int, place: int) -> contextlib.AbstractContextManager[None]:
        """Have the merging go on from what it had merged before a block."""
        if which == "dense" or self.merging is None:
            return contextlib.nullcontext()
        passed = sum(block in self.merging.space.blocks for block in self.space.blocks[:place])
        return self.merging.resumed_at(passed, {name: self.store["merged", name, index] for name in self.merged})

    def _folds(self, gate: Gate, least: int = 1) -> Folds:
        weight = matrix(self.models["pruned"].get_submodule(gate.module))
        targets, features = weight.shape
        return Folds(max(least, self.options.folds), features, targets, weight.device, weight.dtype)

    def _add(self, folds: Folds, gate: Gate, batch: Batch, read: Tensor, lack: Tensor, weights: Tensor) -> None:
        """Add the positions of one batch; what multiplies the output before the sum is divided out."""
        scale = scale_of(self.models["pruned"], gate)
        if scale is not None:
            lack = torch.where(scale == 0, 0, lack / scale)
        mask = position_mask(batch, read)
        lack = lack.reshape(*read.shape[:-1], lack.shape[-1])  # a map of positions may be read as a list
        if weights.dim() > 1 and weights.numel() < mask.numel():
            weights = padded(weights, mask.numel() // len(weights))
        folds.add(read, lack, weights.reshape(mask.shape), mask)

    def update(self, gate: Gate, folds: Folds) -> None:
        """Refit a consumer, of whose rows these are the moments."""
        model = self.models["pruned"]
        module = model.get_submodule(gate.module)
        add(model, gate, *self.refitted(folds, gate, matrix(module)))

    def refitted(self, folds: Folds, gate: Gate, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the weights of a consumer, which are given, and to its bias."""
        module, ridge = self.models["pruned"].get_submodule(gate.module), self.options.ridge
        if self.options.kind == "scales" and weight.shape[1]:
            size = weight.shape[1] // features_per_unit(module, gate)
            units = features_of_units(module, replace(gate, start=0), size).to(weight.device)
            change = folds.rescaled(weight, units, ridge)
            return change, change.new_zeros(len(change))
        return folds.refit(ridge, bias=can_shift(module, gate))


def _read(gate: Gate) -> Tap:
    return Tap(gate.module, "input")


def _total(gate: Gate) -> Tap:
    if gate.total is None:
        raise ArchitectureError(f"the description of {gate.module!r} does not say where its total can be read.")
    return gate.total
