"""Record the blocks of a network once, then run any part of it again from there.

A part is run through the model's own forward: blocks before it return what was recorded, and an exception
ends the forward after it. So masks, position biases and heads need no special care, and no upstream forward
is copied.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FAILURES, ArchitectureError
from ..space.units import Tap
from ..support.untyped import Hook
from .batch import Batch
from .modules import call, first_of, hooks, patched_forward
from .outputs import answers, distance, tolerance_of
from .tensors import hidden_of, mapped, with_hidden


class _Stop(Exception):
    """Ends a forward early."""


class Recorder:
    """The hidden states at some taps, in order of the calls.

    Attributes:
        calls: per tap, one tensor for each time its module ran.
    """

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.calls: dict[Tap, list[Tensor]] = {tap: [] for tap in taps}

    @contextlib.contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record until the block ends."""
        with hooks(
            *(
                model.get_submodule(tap.module).register_forward_pre_hook(self._input(tap), with_kwargs=True)
                if tap.side == "input"
                else model.get_submodule(tap.module).register_forward_hook(self._output(tap))
                for tap in self.calls
            )
        ):
            yield

    def _input(self, tap: Tap) -> Hook:
        return lambda module, args, kwargs: self.calls[tap].append(_snapshot(first_of(module, args, kwargs)))

    def _output(self, tap: Tap) -> Hook:
        def record(module: nn.Module, args: object, output: object) -> Any:
            if not isinstance(output, Tensor):
                self.calls[tap].append(_snapshot(hidden_of(output)))
                return None
            self.calls[tap].append(output)
            return output.clone()  # what follows may change it in place

        return record


@contextlib.contextmanager
def recorded_blocks(model: nn.Module, blocks: Sequence[str], outputs: list[object]) -> Iterator[None]:
    """Append what each block returns to `outputs`, in order of execution."""

    def record(module: nn.Module, args: object, output: object) -> Any:
        outputs.append(_snapshot(output))
        return output.clone() if isinstance(output, Tensor) and torch.is_grad_enabled() else None

    with hooks(*(model.get_submodule(name).register_forward_hook(record) for name in dict.fromkeys(blocks))):
        yield


def _snapshot(value: object) -> Any:
    """A value that later operations cannot change in place; itself where gradients by it may be asked for."""
    if torch.is_grad_enabled():
        return value
    return mapped(Tensor.clone, value)


@contextlib.contextmanager
def resumed_at(model: nn.Module, blocks: Sequence[str], before: Sequence[object]) -> Iterator[None]:
    """Make the first blocks return what is given instead of running; the last one's is what the rest works on.

    Args:
        blocks: module names in order of execution; a module that runs several times is named as often.
        before: one output per skipped block, see `with_last_state`.
    """
    with contextlib.ExitStack() as stack:
        skipped = blocks[: len(before)]
        for name in dict.fromkeys(skipped):
            module = model.get_submodule(name)
            values = [value for block, value in zip(skipped, before, strict=True) if block == name]
            stack.enter_context(patched_forward(module, Recorded(module.forward, values)))
        yield


def with_last_state(outputs: Sequence[object], hidden: Tensor, times: int = 1) -> list[Any]:
    """What skipped blocks return where nothing flows past them: the last one `hidden`, in the form of its own output.

    Those before it return zeros of their own shapes: what modules between the blocks make of them is read by nothing.

    Args:
        outputs: of the skipped blocks; of all but the last only the shapes of the hidden states matter.
        times: how many networks `hidden` stacks along its first axis.
    """
    if not outputs:
        return []
    zeros: dict[object, Tensor] = {}
    replaced = []
    for output in outputs[:-1]:
        own = hidden_of(output)
        key = ((own.shape[0] * times, *own.shape[1:]), own.dtype)
        if key not in zeros:
            zeros[key] = torch.zeros(key[0], dtype=own.dtype, device=hidden.device)
        replaced.append(with_hidden(output, zeros[key]))
    return [*replaced, with_hidden(outputs[-1], hidden.clone())]  # what follows may change it in place


def template(output: object) -> object:
    """What a block returned, its hidden state without values: see `with_last_state`."""
    stripped: object = with_hidden(output, hidden_of(output).to("meta"))
    return stripped


def check_replay(model: nn.Module, blocks: Sequence[str], batch: Batch, chained: bool) -> None:
    """Refuse a network that computes something else when it goes on from behind one of its blocks.

    From behind each the next one is run, and from behind the last all the rest: what reads something of earlier
    blocks finds it gone there.

    Args:
        chained: as in `UnitSpace`.

    Raises:
        ArchitectureError: names the block.
    """
    outputs: list[object] = []
    with recorded_blocks(model, blocks, outputs):
        expected = answers(call(model, batch))
    if len(outputs) != len(blocks):
        raise ArchitectureError(
            f"the blocks of this {type(model).__name__} run {len(outputs)} times, not {len(blocks)}."
        )
    for place in range(1, len(blocks) + 1):
        before = _snapshot(outputs[:place])
        before = with_last_state(before, hidden_of(before[-1])) if chained else before
        wanted = _numbers(outputs[place]) if place < len(blocks) else expected
        try:
            if place < len(blocks):
                got = _numbers(run_block(model, blocks, batch, before))
            else:
                with resumed_at(model, blocks, before):
                    got = answers(call(model, batch))
        except FAILURES as error:
            raise _cannot_go_on(model, blocks[place - 1]) from error
        if not distance(wanted, got) <= tolerance_of(wanted):
            raise _cannot_go_on(model, blocks[place - 1])


def _numbers(output: object) -> Tensor:
    """The hidden state; rows of padding may hold NaN."""
    return hidden_of(output).nan_to_num(0.0, math.inf, -math.inf)


def _cannot_go_on(model: nn.Module, block: str) -> ArchitectureError:
    return ArchitectureError(
        f"this {type(model).__name__} cannot go on from behind {block!r}: what that returns is not all that the rest "
        "of the network reads. Score by 'compensated' or 'sketch' and refit nothing (refit.enabled: false)."
    )


class Recorded:
    """A forward that returns recorded values the first few times."""

    def __init__(self, forward: Any, values: list[object]) -> None:
        self.forward, self.values = forward, iter(values)

    def __call__(self, *args: object, **kwargs: object) -> object:
        for value in self.values:
            return value
        return self.forward(*args, **kwargs)


def run_block(
    model: nn.Module,
    blocks: Sequence[str],
    batch: Batch,
    before: Sequence[object],
    until: Tap | None = None,
) -> Any:
    """Output of the block after those whose outputs are given.

    The embeddings run too, since the first block reads them and every mask is made there.

    Args:
        before: one output per earlier block, see `with_last_state`.
        until: stop already at this tap inside the block; the return value is then None.
    """
    name, result = blocks[len(before)], []
    passes = blocks[: len(before)].count(name)

    def finish(module: nn.Module, args: object, output: object) -> None:
        result.append(output)
        if len(result) > passes:
            raise _Stop

    with resumed_at(model, blocks, before), contextlib.ExitStack() as stack:
        stack.enter_context(hooks(model.get_submodule(name).register_forward_hook(finish)))
        if until is not None:
            return run_until(model, batch, until, blocks[: len(before)].count(until.module))
        stack.enter_context(contextlib.suppress(_Stop))
        call(model, batch)
    return result[-1]


def run_until(model: nn.Module, batch: Batch, tap: Tap | None, passes: int = 0) -> None:
    """Run a network up to a tap, or to its end; past the tap where its module only returns what it did before."""
    calls = itertools.count()

    def leave(*_: object) -> None:
        if next(calls) >= passes:
            raise _Stop

    with contextlib.ExitStack() as stack:
        if tap is not None:
            module = model.get_submodule(tap.module)
            add = module.register_forward_pre_hook if tap.side == "input" else module.register_forward_hook
            stack.enter_context(hooks(add(leave)))
        stack.enter_context(contextlib.suppress(_Stop))
        call(model, batch)


class FinishedParts:
    """What the parts of one block returned, and which of them were done when each consumer began.

    Attributes:
        finished: per consumer, the largest finished parts of the block by path, with the outputs of all their
            calls. Whoever returns these and replaces the consumer's output has the block resume behind it.
    """

    def __init__(self, block: str, consumers: Sequence[str]) -> None:
        self.block, self.consumers = block, consumers
        self.finished: dict[str, dict[str, list[object]]] = {}
        self._done: dict[str, list[object]] = defaultdict(list)

    @contextlib.contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record until the block ends."""
        parts = [
            (f"{self.block}.{name}", module)
            for name, module in model.get_submodule(self.block).named_modules()
            if name
        ]
        with hooks(
            *(module.register_forward_hook(self._finish(name), with_kwargs=True) for name, module in parts),
            *(model.get_submodule(name).register_forward_pre_hook(self._begin(name)) for name in self.consumers),
        ):
            yield

    def _finish(self, name: str) -> Hook:
        def finish(module: nn.Module, args: object, kwargs: object, output: object) -> None:
            if args or kwargs:  # what a module makes from nothing (a table of biases) is not of this input
                self._done[name].append(_snapshot(output))

        return finish

    def _begin(self, consumer: str) -> Hook:
        def snapshot(module: nn.Module, args: object) -> None:
            self.finished[consumer] = {
                name: list(outputs)
                for name, outputs in self._done.items()
                if not any(name.startswith(f"{other}.") for other in self._done)
            }

        return snapshot
