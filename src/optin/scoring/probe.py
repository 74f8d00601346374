"""Random projections of the trajectory and their gradients: what `sketch` and everything built on it share.

One forward of a micro-batch and two backward passes, one for the manifold part and one for the output part,
give for ALL units the derivative of <v, phi> by the unit's multiplier, and for every consumer the derivative
by its output, token by token. No weight needs a gradient.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from ..errors import InputError, NumericalError, first_line
from ..running.batch import Batch, batched, position_mask, size_of, split, tile
from ..running.batches import MICRO, Batches
from ..running.consumers import rows_made, rows_read
from ..running.gating import gated
from ..running.job import Job
from ..running.modules import call, inference_mode_of
from ..running.outputs import Output, field_reader, read_output
from ..running.replay import Recorder, recorded_blocks
from ..running.tensors import hidden_of
from ..space.options import Trajectory
from ..space.units import Tap, UnitSpace
from .trajectory import Positions, manifold_probe, output_probe

PARTS = ("manifold", "output")
STACKED = 16  # examples at most in one forward of small inputs that are drawn for again and again
SMALL = 2**14  # values of one such input at most


@dataclass(frozen=True)
class Probe:
    """One micro-batch seen through one random projection.

    Attributes:
        masks: per consumer, shape (batch, token), bool: positions that are not padding.
        real: per consumer, shape (row,): their places among all positions in a row.
        inputs: per consumer and call, the rows that it read: shape (batch, token, features).
        units: per part and group, d<v, phi> / dm: shape (size,), or (draw, size) of several draws at once.
        outputs: per part and consumer, for each call d<v, phi> / dy: shape (batch, token, dim).
    """

    masks: dict[str, Tensor]
    real: dict[str, Tensor]
    inputs: dict[str, list[Tensor]]
    units: dict[str, dict[str, Tensor]]
    outputs: dict[str, dict[str, list[Tensor]]]


class Objective(Protocol):
    """Scalars to differentiate, by part, from the network's output and its blocks' hidden states."""

    def __call__(self, batch: Batch, output: object, hidden: list[Tensor], stack: int = 1) -> dict[str, Tensor]:
        """Of `stack` copies of the batch, each with a random projection of its own."""


def trajectory_objective(
    model: nn.Module, space: UnitSpace, options: Trajectory, generator: torch.Generator
) -> Objective:
    """<v, phi> of the manifold and of the output map, with v and the token rows drawn afresh at each call.

    Raises (when called):
        NumericalError: NaN or infinity in a block's output; names the block.
    """

    def objective(batch: Batch, output: object, hidden: list[Tensor], stack: int = 1) -> dict[str, Tensor]:
        positions = Positions(batch, options.rows, generator, space.of_maps)
        check_activations(space.blocks, [state[: len(state) // stack] for state in hidden], positions)
        maps = [positions.manifold(hidden[place], stack) for place in options.compared(len(space.body))]
        final = read_final(model, output, positions, options, stack)
        probes = [manifold_probe(phi, generator) for phi in maps]
        return {
            "manifold": torch.stack(probes).sum(),
            "output": output_probe(final, options.temperature, generator),
        }

    return objective


def read_final(model: nn.Module, output: object, positions: Positions, options: Trajectory, stack: int = 1) -> Output:
    """The final output of `stack` networks on one batch, read as the model's configuration says."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if getattr(model, "num_classes", None) == 0:  # timm's way to say that the output is an embedding
        problem = "regression"
    output = field_reader(options.output)(output) if options.output else output
    return read_output(output, positions, stack=stack, pooling=options.pooling, problem=problem)


def check_activations(blocks: Sequence[str], hidden: Sequence[Tensor], positions: Positions) -> None:
    """Refuse activations that no statistic survives.

    Raises:
        NumericalError: names the block.
    """
    # One answer for all blocks: a GPU is waited for once.
    fine = [(torch.isfinite(state).all(-1) | ~positions.mask(state)).all() for state in hidden]
    if fine and not torch.stack(fine).all():
        name = next(block for block, good in zip(blocks, fine, strict=True) if not good)
        raise NumericalError(
            f"the output of {name!r} contains NaN or infinity on the calibration inputs. "
            "Try --dtype float32, or look for inputs that the network cannot take."
        )


@dataclass(frozen=True)
class Micro:
    """A few examples that are differentiated at once.

    Attributes:
        batch: their inputs.
        index: the number of the batch that they are of.
        again: they were drawn before.
        stack: draws that are made at once.
    """

    batch: Batch
    index: int
    again: bool
    stack: int = 1


def micro_batches(batches: Batches, draws: int) -> Iterator[Micro]:
    """The calibration set in micro-batches, over and over until there are at least `draws` of them."""
    size, count, again = batches.micro_size(draws), 0, False
    while count < draws:
        for index, batch in enumerate(batches):
            for micro in micro_batches_of(batch, index, size, again):
                count += 1
                yield micro
        again = True


def micro_batches_of(batch: Batch, index: int, size: int, again: bool, stack: int = 1) -> Iterator[Micro]:
    """One batch in micro-batches of at most `size` examples."""
    for micro in split(batch, size):
        yield Micro(micro, index, again, stack)


def parts_of(batches: Batches, size: int) -> int:
    """How many micro-batches of at most `size` examples there are."""
    return sum(-(-size_of(batch) // size) for batch in batches)


def passes(job: Job) -> list[int]:
    """How many draws each pass over the calibration set makes of every micro-batch: one, then several at once."""
    draws = job.recipe.trajectory.draws
    size = job.batches.micro_size(draws)
    left = -(-draws // parts_of(job.batches, size)) - 1
    if not left:
        return [1]
    micro = next(split(job.first, size))
    values = max(value[0].numel() for value in micro.values() if batched(value))
    most = max(1, (STACKED if values <= SMALL else MICRO) // size)
    most = most if most > 1 and _stackable(job.model, job.space, micro) else 1
    return [1, *[most] * (left // most), *[left % most] * (left % most > 0)]


def _stackable(model: nn.Module, space: UnitSpace, batch: Batch) -> bool:
    """Whether every consumer and every block works on twice as much where the batch is there twice."""
    sizes = []
    for times in (1, 2):
        recorder = Recorder([Tap(gate.module, "input") for group in space for gate in group.gates])
        outputs: list[object] = []
        with (
            inference_mode_of(model),
            torch.inference_mode(),
            recorder.recording(model),
            recorded_blocks(model, space.blocks, outputs),
        ):
            call(model, tile(batch, times))
        gates = {gate.module: gate.examples for group in space for gate in group.gates}
        read = [value.shape[gates[tap.module]] for tap, calls in recorder.calls.items() for value in calls]
        sizes.append([*read, *(len(state) for state in states(space, outputs))])
    return [2 * size for size in sizes[0]] == sizes[1]


def draw_probes(job: Job, description: str = "sketch", once: bool = False) -> Iterator[tuple[Micro, Probe]]:
    """At least as many probes of the trajectory as the recipe draws; every example is used equally often.

    Args:
        description: what `job.track` shows.
        once: no more than one of each example.
    """
    options = job.recipe.trajectory
    objective = trajectory_objective(job.model, job.space, options, job.generator)
    drawn, count = micro_batches(job.batches, options.draws), options.draws
    if once:
        drawn = itertools.takewhile(lambda micro: not micro.again, drawn)
        count = min(count, parts_of(job.batches, job.batches.micro_size(count)))
    for micro in job.track(drawn, description, count):
        yield micro, differentiate(job.model, job.space, micro.batch, objective)


def states(space: UnitSpace, outputs: Sequence[object]) -> list[Tensor]:
    """The hidden state in what each block returned, the examples first; all where the first lies."""
    found = [hidden_of(output).transpose(0, run.examples) for run, output in zip(space.runs, outputs, strict=True)]
    return [state.to(found[0].device) for state in found]


def derivatives(objectives: Mapping[str, Tensor], by: Sequence[Tensor]) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """The gradients of every part of an objective, one part after the other; zeros by what it does not depend on.

    Raises:
        InputError: the forward does something that no gradient goes through; says what to change.
    """
    for index, (part, scalar) in enumerate(objectives.items()):
        yield part, _gradients(part, scalar, by, index + 1 < len(objectives))


def _gradients(part: str, scalar: Tensor, by: Sequence[Tensor], again: bool) -> tuple[Tensor, ...]:
    """Of a part of an objective; the graph is kept if it is needed for another part."""
    try:
        return torch.autograd.grad(scalar, by, retain_graph=again, materialize_grads=True)
    except CheckpointError as error:
        raise InputError("the network checkpoints its gradients: turn that off for the time of this.") from error
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise InputError(
                f"no gradient reaches the {part} of this network: what is compared must be computed from its "
                "weights by differentiable operations, with gradients allowed. Name another output (output=)."
            ) from error
        if "inplace operation" not in str(error):
            raise
        raise InputError(
            f"an operation in place overwrites what a gradient needs ({first_line(error):.160}): write "
            "y = f(y) in the network's forward instead."
        ) from error


class Watched:
    """A batch on its way through the consumers of some groups: gates that are 1, and what each reads and makes.

    Args:
        space: of these groups.
        stack: copies of the batch that are drawn for at once, see `passes`.

    Attributes:
        batch: all copies.
    """

    def __init__(self, model: nn.Module, space: UnitSpace, batch: Batch, stack: int = 1) -> None:
        like, copies = next(model.parameters()), () if stack == 1 else (stack,)
        self.model, self.space, self.batch = model, space, tile(batch, stack)
        self.multipliers = {group.name: like.new_ones((*copies, group.size)).requires_grad_() for group in space}
        self._given = {
            name: m if stack == 1 else m.repeat_interleave(size_of(batch), 0) for name, m in self.multipliers.items()
        }
        self.gates = {gate.module: gate for group in space for gate in group.gates}
        self.modules = {name: model.get_submodule(name) for name in self.gates}
        self.recorder = Recorder([Tap(name, side) for name in self.modules for side in ("input", "output")])
        self._units, self._outputs = dict[str, dict[str, Tensor]](), dict[str, dict[str, list[Tensor]]]()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch what runs until the block ends."""
        with gated(self.model, self.space, self._given), self.recorder.recording(self.model):
            yield

    def _made(self) -> dict[str, list[Tensor]]:
        return {name: self.recorder.calls[Tap(name, "output")] for name in self.modules}

    @property
    def by(self) -> list[Tensor]:
        """What is to be differentiated by: multipliers, then what consumers made."""
        return [*self.multipliers.values(), *(value for values in self._made().values() for value in values)]

    def take(self, part: str, gradients: Sequence[Tensor]) -> None:
        """Be given the gradients of a part of the objective, by `by`."""
        rest = iter(gradients)
        self._units[part] = {name: next(rest) for name in self.multipliers}
        self._outputs[part] = {
            name: [rows_made(self.modules[name], self.gates[name], next(rest)) for _ in values]
            for name, values in self._made().items()
        }

    def probe(self) -> Probe:
        """All of it."""
        inputs = {
            name: [
                rows_read(module, self.gates[name], value.detach())
                for value in self.recorder.calls[Tap(name, "input")]
            ]
            for name, module in self.modules.items()
        }
        masks, real = dict[str, Tensor](), dict[str, Tensor]()
        known: dict[object, tuple[Tensor, Tensor]] = {}  # found once for every shape and device
        for name, values in inputs.items():
            place = values[0].shape[:-1], values[0].device
            if place not in known:
                mask = position_mask(self.batch, values[0])
                known[place] = mask, mask.flatten().nonzero().squeeze(1)
            masks[name], real[name] = known[place]
        return Probe(masks, real, inputs, self._units, self._outputs)


def differentiate(model: nn.Module, space: UnitSpace, batch: Batch, objective: Objective, stack: int = 1) -> Probe:
    """One forward, and one backward for each part of the objective.

    Args:
        stack: copies of the batch that are drawn for at once, see `passes`.
    """
    watched, blocks = Watched(model, space, batch, stack), list[object]()
    with inference_mode_of(model), torch.enable_grad():
        with watched.running(), recorded_blocks(model, space.blocks, blocks):
            output = call(model, watched.batch)
        objectives = objective(batch, output, states(space, blocks), *(() if stack == 1 else (stack,)))
        for part, gradients in derivatives(objectives, watched.by):
            watched.take(part, gradients)
    return watched.probe()
