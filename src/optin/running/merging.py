"""Token merging: before a block, the most similar tokens become one (docs/method.md, Tokens).

Tokens are split alternately into two halves. Each token of the first half has one partner in the second, the one
whose attention key is most like its own; the r closest pairs merge into their size-weighted mean. The logarithm
of the sizes is added to the attention logits, so that a merged token counts as often as what it stands for.

No shape depends on the data, and no upstream forward is copied: a schedule works through hooks on the model's
own blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..space.units import TokenSpace

ATTRIBUTE = "optin_merging"  # where a network keeps the merging that is at work in it


def match(keys: Float[Tensor, "batch token dim"], r: int, protected: int) -> Int[Tensor, "batch token"]:
    """Where each token goes when `r` of them merge: its new position, out of token - r.

    Args:
        protected: leading tokens that take no part and stay where they are.
    """
    unit = F.normalize(keys[:, protected:], dim=-1)
    first, second = unit[:, ::2], unit[:, 1::2]
    similarity, partner = (first @ second.mT).max(-1)
    rank = similarity.argsort(-1, descending=True).argsort(-1)
    staying = protected + first.shape[1] - r  # where the second half begins
    places = torch.arange(keys.shape[1], device=keys.device).repeat(keys.shape[0], 1)
    places[:, protected::2] = torch.where(rank < r, staying + partner, protected + rank - r)
    places[:, protected + 1 :: 2] = staying + torch.arange(second.shape[1], device=keys.device)
    return places


def merge(
    hidden: Float[Tensor, "batch token dim"], places: Int[Tensor, "batch token"], left: int
) -> Float[Tensor, "batch left dim"]:
    """The sum of the tokens that share a place."""
    index = places.unsqueeze(-1).expand_as(hidden)
    return hidden.new_zeros(hidden.shape[0], left, hidden.shape[-1]).scatter_add(1, index, hidden)


def most(tokens: int, protected: int) -> int:
    """How many of so many tokens can merge at once: all of the first half, if the second is not empty."""
    free = tokens - protected
    return -(-free // 2) if free > 1 else 0


State = dict[str, Tensor]  # what a forward has merged so far, see `Merging.state`


class Merging:
    """A schedule at work in a network, with the state of its latest forward.

    Args:
        schedule: tokens to merge before each block of `space.blocks`; none before the first, since a block
            merges by the keys of the block before it.

    Attributes:
        sizes: shape (batch, token, 1): how many of the original tokens each one stands for.
        places: shape (batch, original token): the token that stands for each original one.
        origins: shape (batch, token): the position of each token; a merged one has that of its partner.
        enabled: set to False, the network computes with all tokens.
    """

    def __init__(self, model: nn.Module, space: TokenSpace, schedule: Sequence[int]) -> None:
        self.space, self.schedule, self.enabled = space, tuple(schedule), True
        self.sizes: Tensor | None = None
        self.places: Tensor | None = None
        self.origins: Tensor | None = None
        self._keys: Tensor | None = None
        self._start: tuple[int, State] = (0, {})  # the first block that merges, and what was merged before it
        self._handles = [model.get_submodule(space.blocks[0]).register_forward_pre_hook(self._begin)]
        first = next((index for index, r in enumerate(schedule) if r), len(schedule))
        for index in range(first, len(space.blocks)):
            block = space.blocks[index]
            if schedule[index]:
                keys = model.get_submodule(f"{space.blocks[index - 1]}.{space.keys}")
                self._handles.append(keys.register_forward_hook(self._remember))
                step = _Step(self, index, schedule[index])
                self._handles.append(model.get_submodule(block).register_forward_pre_hook(step))
            attention = model.get_submodule(f"{block}.{space.attention}")
            self._handles.append(attention.register_forward_pre_hook(self._weigh, with_kwargs=True))
        if space.averaged is not None:
            self._handles.append(model.get_submodule(space.averaged).register_forward_hook(self._average))
        setattr(model, ATTRIBUTE, self)

    def remove(self, model: nn.Module) -> None:
        """Take the schedule out of the network."""
        for handle in self._handles:
            handle.remove()
        delattr(model, ATTRIBUTE)

    def spread(self, hidden: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch original dim"]:
        """Every original token with the state of the token that stands for it."""
        if self.places is None:
            return hidden
        return hidden.gather(1, self.places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))

    def mean(self, hidden: Float[Tensor, "batch original dim"]) -> Float[Tensor, "batch token dim"]:
        """The mean state of the original tokens that each token stands for."""
        if self.places is None or self.sizes is None:
            return hidden
        return merge(hidden, self.places, self.sizes.shape[1]) / self.sizes

    def total(self, weights: Float[Tensor, "batch original"]) -> Float[Tensor, "batch token"]:
        """The summed weight of the original tokens that each token stands for."""
        if self.places is None or self.sizes is None:
            return weights
        return merge(weights.unsqueeze(-1), self.places, self.sizes.shape[1]).squeeze(-1)

    def step(self, hidden: Tensor, r: int) -> Tensor:
        """Merge `r` tokens by the keys of the block before.

        Raises:
            InputError: there are too few tokens.
        """
        tokens, protected, keys = hidden.shape[1], self.space.protected, self._keys
        if r > most(tokens, protected):
            raise InputError(
                f"the schedule merges {r} of {tokens} tokens, {protected} of which must stay: the images are too "
                "small for it. Use images of the size that the plan was made for."
            )
        if keys is None:
            raise InputError("tokens are merged by the keys of the block before, which did not run.")
        places, left = match(keys, r, protected), tokens - r
        if self.sizes is None or self.places is None or self.origins is None:
            self.sizes = hidden.new_ones(*hidden.shape[:2], 1)
            self.places = self.origins = torch.arange(tokens, device=hidden.device).repeat(hidden.shape[0], 1)
        merged, self.sizes = merge(hidden * self.sizes, places, left), merge(self.sizes, places, left)
        self.places = places.gather(1, self.places)
        second = slice(protected + 1, None, 2)
        moved = self.origins.new_zeros(hidden.shape[0], left).scatter(1, places, self.origins)
        self.origins = moved.scatter(1, places[:, second], self.origins[:, second])
        return merged / self.sizes

    @property
    def state(self) -> State:
        """What the latest forward has merged when it ended: enough to go on from there."""
        parts = {"sizes": self.sizes, "places": self.places, "origins": self.origins, "keys": self._keys}
        return {name: value for name, value in parts.items() if value is not None}

    @contextmanager
    def resumed_at(self, place: int, state: State) -> Iterator[None]:
        """Have forwards, whose blocks before `place` are skipped, go on from a state."""
        self._start = (place, state)
        try:
            yield
        finally:
            self._start = (0, {})

    def merges_before(self, place: int) -> bool:
        """Whether this forward merges before this block."""
        return self.enabled and place >= self._start[0]

    def _begin(self, module: nn.Module, args: object) -> None:
        _, state = self._start
        self.sizes, self.places, self.origins = state.get("sizes"), state.get("places"), state.get("origins")
        self._keys = state.get("keys")

    def _remember(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._keys = output

    def _weigh(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[object, Any]:
        """Add the logarithm of the sizes to the attention logits, as an additive mask."""
        if self.sizes is None or self.origins is None:
            return args, kwargs
        given = kwargs.get("attention_mask") if len(args) < 2 else args[1]
        mask = self.sizes.log().transpose(1, 2).unsqueeze(1)  # (batch, 1, 1, token)
        mask = mask.expand(-1, -1, mask.shape[-1], -1)
        if given is not None:
            mask = mask + _reduced(given, self.origins)
        return args[:1], {**kwargs, "attention_mask": mask}

    def _average(self, module: nn.Module, args: object, output: object) -> object:
        return output if self.sizes is None else weighted(output, self.sizes, self.space.protected)


def weighted(output: Any, sizes: Float[Tensor, "batch token 1"], protected: int) -> Any:
    """What a module returns, tokens scaled so that their plain mean, which a head takes, is the size-weighted one."""
    hidden = output if isinstance(output, Tensor) else output.last_hidden_state
    free = sizes[:, protected:]
    scaled = hidden[:, protected:] * (free / free.mean(1, keepdim=True))
    hidden = torch.cat([hidden[:, :protected], scaled], 1)
    if isinstance(output, Tensor):
        return hidden
    output.last_hidden_state = hidden
    return output


class _Step:
    """Forward pre-hook of a block: merge, unless the merging rests or the block is skipped."""

    def __init__(self, merging: Merging, place: int, r: int) -> None:
        self.merging, self.place, self.r = merging, place, r

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[object, ...]:
        merges = self.merging.merges_before(self.place)
        return (self.merging.step(args[0], self.r), *args[1:]) if merges else args


def _reduced(
    mask: Float[Tensor, "one head original original"] | Bool[Tensor, "one head original original"],
    origins: Int[Tensor, "batch token"],
) -> Float[Tensor, "batch head token token"]:
    """Biases between positions, or a mask of them, for the positions that are left."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    heads, original = mask.shape[1], mask.shape[-1]
    batch, tokens = origins.shape
    rows = origins.view(batch, 1, tokens, 1).expand(-1, heads, -1, original)
    columns = origins.view(batch, 1, 1, tokens).expand(-1, heads, tokens, -1)
    return mask.expand(batch, -1, -1, -1).gather(2, rows).gather(3, columns)


def merging_of(model: nn.Module) -> Merging | None:
    """The merging at work in a network."""
    found: Merging | None = getattr(model, ATTRIBUTE, None)
    return found


@contextmanager
def all_tokens(model: nn.Module) -> Iterator[None]:
    """Let the merging in a network rest for a while."""
    merging = merging_of(model)
    if merging is None:
        yield
        return
    merging.enabled = False
    try:
        yield
    finally:
        merging.enabled = True
