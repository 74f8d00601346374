"""Exact twins: modules that compute what others do, with the number of heads read from their weights.

Some forwards assume that heads times head size is the width of their input, or hand all weights to one function of
torch, so that no single head can be removed. A module becomes its twin by its `__class__`: its tensors and their
names stay. Where only sizes of reshapes are in the way, the twin runs the same forward and adjusts these. The experts
of a mixture are twins only while they are described, scored and refitted: each then reads its neurons through a
module of its own.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .elastic import Elastic, elastic, mixed, remember_heads
from .experts import EXPERT, ExpertMap, Experts, are_experts
from .modules import become, without_autocast

PLAIN = "_optin_plain"  # where a twin remembers the class that it was

Function = TypeVar("Function", bound=Callable[..., object])


class SelfAttention(nn.Module):
    """What Mask2Former's own class computes for its queries."""

    head_dim: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def forward(self, hidden_states: Tensor, position_embeddings: Tensor, **_: object) -> tuple[Tensor, None]:
        """States and positions of shape (query, example, feature)."""
        values = hidden_states.transpose(0, 1)
        placed = values + position_embeddings.transpose(0, 1)
        query, key, value = (
            made.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for made in (self.q_proj(placed), self.k_proj(placed), self.v_proj(values))
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)).transpose(0, 1), None


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` in operations of its own; the heads are as many as its weights hold."""

    # Fast paths of the layers around take all weights at once, and the heads to fill the width.
    _qkv_same_embed_dim = property(lambda self: False, lambda self, value: None)

    def _reset_parameters(self) -> None:
        """As torch's, of the weights that there are: libraries do so before they load."""
        for weight in self.parameters(recurse=False):
            (nn.init.xavier_uniform_ if weight.dim() > 1 else nn.init.zeros_)(weight)

    def forward(  # as that of torch
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        places = 0 if not batched or self.batch_first else 1  # the axis of the examples
        query, key, value = (self._heads(part, batched, places) for part in self._projected(query, key, value))
        mask = self._mask(query, key, key_padding_mask, attn_mask)
        causal = is_causal and key_padding_mask is None and not need_weights
        mixed, weights = self._attended(query, key, value, None if causal else mask, causal, need_weights)
        joined = mixed.transpose(1, 2).flatten(2)  # (example, query, head and feature)
        joined = joined if batched and self.batch_first else joined.transpose(0, 1)
        output = self.out_proj(joined if batched else joined.squeeze(1))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        return output, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, by as many products as torch takes."""
        bias = self.in_proj_bias
        if self.in_proj_weight is None:
            shifts = [None] * 3 if bias is None else bias.chunk(3)
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            return tuple(map(F.linear, (query, key, value), weights, shifts))
        if query is key and key is value:
            return F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
        width = len(self.in_proj_weight) // 3
        split = [width, 2 * width] if key is value else [width] * 3
        shifts = [None] * len(split) if bias is None else bias.split(split)
        parts = map(F.linear, (query, key, value), self.in_proj_weight.split(split), shifts)
        made = tuple(parts)
        return made if len(made) == 3 else (made[0], *made[1].chunk(2, -1))

    def _heads(self, made: Tensor, batched: bool, places: int) -> Tensor:
        """Shape (example, head, position, feature)."""
        made = made if batched else made.unsqueeze(0)
        made = made.transpose(0, 1) if places else made
        heads: Tensor = made.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads

    def _mask(self, query: Tensor, key: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to the products of queries and keys."""

        def added(given: Tensor | None) -> Tensor | None:
            if given is None or given.is_floating_point():
                return given
            return torch.zeros(given.shape, dtype=query.dtype, device=given.device).masked_fill(given, -math.inf)

        mask, padding = added(mask), added(padding)
        if mask is not None and mask.dim() == 3 and len(mask) > 1:
            mask = mask.view(len(query), -1, *mask.shape[1:])
        if padding is None:
            return mask
        padding = padding.view(-1, 1, 1, key.shape[2])
        return padding if mask is None else mask + padding

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal), None
        products = (query * math.sqrt(1.0 / self.head_dim)) @ key.mT
        weights = F.dropout(F.softmax(products if mask is None else products + mask, -1), dropout)
        return weights @ value, weights


TWINS = (SelfAttention, MultiheadAttention, Elastic)  # those that have lost heads stay so


def twin_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of a module's twin; None if it has none of its own: see `elastic` for those."""
    if isinstance(module, (*TWINS, Experts)):
        return type(module)
    if are_experts(module):
        return mixed(Experts, type(module))
    if type(module) is nn.MultiheadAttention:
        plain = module.bias_k is None and not module.add_zero_attn
        return MultiheadAttention if plain else None
    return SelfAttention if type(module).__name__ == "Mask2FormerAttention" else None


def become_twin(model: nn.Module, path: str, dense: int, kept: int, features: int) -> None:
    """Exchange a module of a network that lost units for its twin.

    Args:
        dense: heads that it had.
        kept: heads that it has.
        features: of each.
    """
    module = model.get_submodule(path)
    _exchange(module)
    if twin_of(module) is None:
        become(module, elastic(type(module)))
    if isinstance(module, Elastic):
        remember_heads(module, dense, kept, features)
    for around in model.modules():
        if isinstance(around, nn.TransformerEncoder) and module in around.modules():
            around.use_nested_tensor = False  # only the fast path of its layers can read one


def _exchange(module: nn.Module) -> None:
    twin = twin_of(module)
    if twin is not None and twin is not type(module):
        vars(module)[PLAIN] = type(module)
        become(module, twin)
        for place in range(module.num_experts if isinstance(module, Experts) else 0):
            module.add_module(f"{EXPERT}{place}", ExpertMap(module, place))


@contextlib.contextmanager
def twinned(model: nn.Module) -> Iterator[None]:
    """The modules that have twins as these, until the block ends; those that have lost heads stay twins."""
    changed = [module for module in model.modules() if twin_of(module) not in (None, type(module))]
    for module in changed:
        _exchange(module)
    try:
        yield
    finally:
        _plain_again(changed)


def on_twins(function: Function) -> Function:
    """Run a function of a network while that is `twinned`."""

    @functools.wraps(function)
    def run(model: object, *args: object, **kwargs: object) -> Any:
        with twinned(model) if isinstance(model, nn.Module) else contextlib.nullcontext():
            return function(model, *args, **kwargs)

    return run  # type: ignore[return-value]


def stage(function: Function) -> Function:
    """A step of the job: on twins, in the network's own precision, with gradients, whatever the caller is in."""
    return on_twins(without_autocast()(torch.inference_mode(mode=False)(function)))


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """A network inside of `twinned` as it will be outside of it, until the block ends."""
    plain_again(model)
    try:
        yield
    finally:
        for module in list(model.modules()):
            _exchange(module)


def plain_again(model: nn.Module) -> None:
    """Exchange the twins that have all their heads, and those of mixtures, for what they were."""
    _plain_again(model.modules())


def _plain_again(modules: Iterable[nn.Module]) -> None:
    for module in list(modules):
        if isinstance(module, Experts):
            for place in range(module.num_experts):
                delattr(module, f"{EXPERT}{place}")
            become(module, vars(module).pop(PLAIN))
        elif isinstance(module, (SelfAttention, MultiheadAttention)) and PLAIN in vars(module):
            weight = module.out_proj.weight
            if weight.shape[0] == weight.shape[1]:
                become(module, vars(module).pop(PLAIN))
