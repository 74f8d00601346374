"""Where the tokens of a network can be merged, found by experiment: see `optin.running.merging`.

A token that is duplicated must count as much as one that an additive mask (log 2) and a weighted mean count twice.
Of the linear maps that read a block's state, the one that makes the keys is the one to whose output a constant can be
added without an effect: it shifts all logits of a query alike, and the softmax cancels the shift.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..running.cost import flop_counter
from ..running.merging import weighted
from ..running.modules import call, first_of, hooks, inference_mode_of, with_first
from ..running.tensors import hidden_of, tensors_of, with_hidden
from ..space.units import TokenSpace, UnitSpace, lies_in, pattern
from ..support.untyped import Foreign, Hook

EQUAL = 1e-4  # of the largest value
MASK = "attention_mask"


def token_space(model: nn.Module, space: UnitSpace, inputs: Mapping[str, Foreign]) -> TokenSpace | None:
    """Where tokens can be merged; None where nothing shows that they can.

    Args:
        model: with weights large enough for a difference to show.
        inputs: keyword inputs of two examples, one of them images.
    """
    images = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.dim() == 4]
    if len(images) != 1:
        return None
    seen = inputs[images[0]]
    drawn = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0)).to(seen)
    chains: dict[str, dict[str, str]] = defaultdict(dict)
    for group in space:
        if group.of.attention and len(group.gates) == 1 and not group.shared:
            block = space.block_of(group.gates[0].module)
            chains[pattern(block)][block] = group.name
    for heads in chains.values():
        if len(heads) > 1:
            with contextlib.suppress(Exception), inference_mode_of(model), torch.no_grad():
                return _Chain(model, space, {**inputs, images[0]: drawn}, heads).tokens()
    return None


class _Unlike(Exception):
    """An experiment shows that tokens cannot be merged."""


class _Chain:
    """Blocks that are alike, each with one group of heads, and what they read and return on two examples."""

    def __init__(
        self, model: nn.Module, space: UnitSpace, inputs: Mapping[str, object], heads: Mapping[str, str]
    ) -> None:
        self.model, self.space, self.inputs, self.heads = model, space, inputs, heads
        self.blocks = tuple(heads)
        self.calls: dict[str, tuple[Any, Any]] = {}
        self.states: list[Tensor] = []
        self.after: dict[str, object] = {}  # what modules return behind the last block
        with self._recording():
            call(model, inputs)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        def begin(name: str) -> Hook:
            return lambda module, args, kwargs: self.calls.update({name: (args, kwargs)})

        def end(name: str) -> Hook:
            def hook(module: nn.Module, args: object, output: object) -> None:
                if name in self.heads:
                    self.states.append(hidden_of(output))
                elif len(self.states) == len(self.blocks):
                    self.after[name] = output

            return hook

        modules = dict(self.model.named_modules())
        before = [modules[name].register_forward_pre_hook(begin(name), with_kwargs=True) for name in self.blocks]
        with hooks(*before, *(module.register_forward_hook(end(name)) for name, module in modules.items() if name)):
            yield

    def tokens(self) -> TokenSpace:
        """The description.

        Raises:
            Exception: tokens cannot be merged; a network that is called in ways that are none of its own may fail in
                any way.
        """
        first = self.read(self.blocks[0])
        states = [first, *self.states]
        if first.dim() != 3 or any(state.shape != first.shape for state in states):
            raise _Unlike
        protected = self._protected(first)
        keys = self._keys()
        attention = next(
            path for path in _around(keys) if MASK in inspect.signature(self._part(path).forward).parameters
        )
        for block in self.blocks:
            self._check_sizes(block, attention)
        averaged = self._averaged(protected)
        return TokenSpace(self.blocks, keys, attention, tuple(self.heads.values()), protected, averaged)

    def read(self, block: str) -> Tensor:
        """The state that a block reads: shape (example, token, features)."""
        state = first_of(self.model.get_submodule(block), *self.calls[block])
        assert isinstance(state, Tensor)
        return state

    def _part(self, path: str, block: str | None = None) -> nn.Module:
        return self.model.get_submodule(f"{block or self.blocks[0]}.{path}")

    def _run(self, block: str, state: Tensor) -> Tensor:
        module = self.model.get_submodule(block)
        args, kwargs = with_first(module, *self.calls[block], state)
        return hidden_of(module(*args, **kwargs))

    def _protected(self, state: Tensor) -> int:
        """Leading tokens that no image changes: of the class, of distillation, registers."""
        same = (state[:1] == state[1:]).all(-1).all(0)
        count = int(same.long().cumprod(0).sum())
        if bool(same[count:].any()) or count + 1 >= len(same):
            raise _Unlike
        return count

    def _keys(self) -> str:
        """The path, inside a block, of the map that makes the keys."""
        block = self.blocks[0]
        group = self.space[self.heads[block]]
        paths = dict.fromkeys(cut.parameter.rpartition(".")[0] for cut in group.cuts if cut.dim == 0)
        state, found = self.read(block), []
        expected = self._run(block, state)
        for path in (path for path in paths if lies_in(path, block)):
            module = self.model.get_submodule(path)

            def shift(module: nn.Module, args: object, output: Tensor) -> Tensor:
                return output + torch.linspace(-1, 1, output.shape[-1], device=output.device)

            with hooks(module.register_forward_hook(shift)):
                if _equal(expected, self._run(block, state)):
                    found.append(path.removeprefix(f"{block}."))
        (keys,) = found
        if any(not isinstance(self._part(keys, other), nn.Linear) for other in self.blocks):
            raise _Unlike
        return keys

    def _check_sizes(self, block: str, attention: str) -> None:
        """A last token that stands twice, beside one whose logits a mask says to be those of two."""
        state = self.read(block)
        count = state.shape[1]
        twice = torch.cat([state, state[:, -1:]], 1)
        sizes = torch.ones(len(state), 1, 1, count, device=state.device)
        sizes[..., -1] = 2
        module = self._part(attention, block)
        expected, alone, weighed = (
            self._masked(block, module, given, mask)
            for given, mask in ((twice, None), (state, None), (state, sizes.log().expand(-1, -1, count, -1)))
        )
        if _equal(expected[:, :count], alone) or not _equal(expected[:, :count], weighed):
            raise _Unlike

    def _masked(self, block: str, attention: nn.Module, state: Tensor, mask: Tensor | None) -> Tensor:
        def give(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return args[:1], {**kwargs, MASK: mask}

        with hooks(attention.register_forward_pre_hook(give, with_kwargs=True)):
            return self._run(block, state)

    def _averaged(self, protected: int) -> str | None:
        """The module whose output the rest of the network averages over tokens; None where it does not read them."""
        state = self.states[-1]
        sizes = state.new_ones(*state.shape[:2], 1)
        sizes[:, -1] = 2
        expected, more = self._outputs(torch.cat([state, state[:, -1:]], 1))
        got, macs = self._outputs(state)
        if more != macs:
            raise _Unlike  # tokens cost something behind the blocks too
        if _alike(expected, got):
            return None
        plain = [name for name, output in self.after.items() if isinstance(output, Tensor)]
        for name in dict.fromkeys([*plain, *self.after]):
            output = self.after[name]
            hidden = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
            if not isinstance(hidden, Tensor) or hidden.shape[:2] != state.shape[:2]:
                continue
            module = self.model.get_submodule(name)
            with hooks(module.register_forward_hook(lambda module, args, out: weighted(out, sizes, protected))):
                if _alike(expected, self._outputs(state)[0], pooled=True):
                    return name
        raise _Unlike

    def _outputs(self, state: Tensor) -> tuple[list[Tensor], int]:
        """What the network makes of a state behind the last block, and the MACs of the whole forward."""

        def exchange(module: nn.Module, args: object, output: object) -> Any:
            return with_hidden(output, state.clone())

        last, counter = self.model.get_submodule(self.blocks[-1]), flop_counter()
        with hooks(last.register_forward_hook(exchange, prepend=True)), counter:
            return tensors_of(call(self.model, self.inputs)), counter.get_total_flops()


def _around(path: str) -> Sequence[str]:
    """The modules around one, from the inside out."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= EQUAL * one.abs().max())


def _alike(longer: Sequence[Tensor], plain: Sequence[Tensor], pooled: bool = False) -> bool:
    """Whether outputs are equal; those with an entry for every token have one more in the first.

    Args:
        pooled: compare those alone that have no such entries.
    """
    pairs = list(zip(longer, plain, strict=True))
    if pooled:
        pairs = [(one, other) for one, other in pairs if one.shape == other.shape]
    return bool(pairs) and all(
        _equal(one if one.shape == other.shape else one[:, : other.shape[1]], other) for one, other in pairs
    )
