"""Record the blocks of a network once, then run any part of it again from there.

A part is run through the model's own forward: blocks before it return what was recorded, and an exception
ends the forward after it. So masks, position biases and heads need no special care, and no upstream forward
is copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .batches import Batch
from .modules import hidden_of, hooks, patched_forward
from .units import Tap


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
                model.get_submodule(tap.module).register_forward_pre_hook(self._input(tap))
                if tap.side == "input"
                else model.get_submodule(tap.module).register_forward_hook(self._output(tap))
                for tap in self.calls
            )
        ):
            yield

    def _input(self, tap: Tap) -> Any:
        return lambda module, args: self.calls[tap].append(args[0])

    def _output(self, tap: Tap) -> Any:
        return lambda module, args, output: self.calls[tap].append(hidden_of(output))


@contextlib.contextmanager
def recorded_blocks(model: nn.Module, blocks: Sequence[str], outputs: list[Any]) -> Iterator[None]:
    """Append what each block returns to `outputs`, in order of execution."""
    with hooks(
        *(
            model.get_submodule(name).register_forward_hook(lambda module, args, output: outputs.append(output))
            for name in dict.fromkeys(blocks)
        )
    ):
        yield


@contextlib.contextmanager
def resumed_at(model: nn.Module, blocks: Sequence[str], position: int, before: Any) -> Iterator[None]:
    """Make the blocks before `position` return `before`, the recorded output of block `position - 1`.

    Args:
        blocks: module names in order of execution; a module that runs several times is named as often.
    """
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(blocks[:position]):
            module = model.get_submodule(name)
            skips = blocks[:position].count(name)
            stack.enter_context(patched_forward(module, _SkipFirst(module.forward, skips, before)))
        yield


class _SkipFirst:
    """A forward that returns a recorded value the first few times."""

    def __init__(self, forward: Any, skips: int, value: Any) -> None:
        self.forward, self.skips, self.value = forward, skips, value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.skips > 0:
            self.skips -= 1
            return self.value
        return self.forward(*args, **kwargs)


def run_block(
    model: nn.Module,
    blocks: Sequence[str],
    position: int,
    batch: Batch,
    before: Any,
    until: Tap | None = None,
) -> Any:
    """Output of block `position` alone, given what the block before it returned (None for the first).

    The embeddings run too, since the first block reads them and every mask is made there.

    Args:
        until: stop already at this tap inside the block; the return value is then None.
    """
    name, result = blocks[position], []
    passes = blocks[:position].count(name)

    def finish(module: nn.Module, args: Any, output: Any) -> None:
        result.append(output)
        if len(result) > passes:
            raise _Stop

    def leave(*_: Any) -> None:
        result.append(None)
        raise _Stop

    with resumed_at(model, blocks, position, before), contextlib.ExitStack() as stack:
        stack.enter_context(hooks(model.get_submodule(name).register_forward_hook(finish)))
        if until is not None:
            module = model.get_submodule(until.module)
            add = module.register_forward_pre_hook if until.side == "input" else module.register_forward_hook
            stack.enter_context(hooks(add(leave)))
        stack.enter_context(contextlib.suppress(_Stop))
        model(**batch)
    return result[-1]


class Trail:
    """What the parts of one block returned, and which of them were done when each consumer began.

    Attributes:
        finished: per consumer, the largest finished parts of the block by path, with their outputs. Whoever
            returns these and replaces the consumer's output has the block resume behind the consumer.
    """

    def __init__(self, block: str, consumers: Sequence[str]) -> None:
        self.block, self.consumers = block, consumers
        self.finished: dict[str, dict[str, Any]] = {}
        self._done: dict[str, Any] = {}

    @contextlib.contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record until the block ends."""
        parts = [
            (f"{self.block}.{name}", module)
            for name, module in model.get_submodule(self.block).named_modules()
            if name
        ]
        with hooks(
            *(module.register_forward_hook(self._finish(name)) for name, module in parts),
            *(model.get_submodule(name).register_forward_pre_hook(self._begin(name)) for name in self.consumers),
        ):
            yield

    def _finish(self, name: str) -> Any:
        return lambda module, args, output: self._done.__setitem__(name, output)

    def _begin(self, consumer: str) -> Any:
        def snapshot(module: nn.Module, args: Any) -> None:
            self.finished[consumer] = {
                name: output
                for name, output in self._done.items()
                if not any(name.startswith(f"{other}.") for other in self._done)
            }

        return snapshot
