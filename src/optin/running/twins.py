"""Exact twins: modules that compute what others do, with heads counted off their weights.

Some forwards take the heads to fill the width of their input, or hand all weights to one function of torch, so that
no single head can leave. A module becomes its twin by its `__class__`: its tensors and their names stay. Where
sizes of reshapes alone stand in the way the twin runs the same forward, and makes these fit. The experts of a mixture
are twins only while they are described, scored and refitted: each then reads its neurons through a module of its own.
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
from torch.overrides import TorchFunctionMode

PLAIN = "_optin_plain"  # where a twin remembers the class that it was
HEADS = "_optin_heads"  # where an elastic one remembers how many heads there were, and are, and how wide all were
EXPERT = "optin_expert_"  # before the number of an expert: the name of the module that reads its neurons

Function = TypeVar("Function", bound=Callable[..., Any])


class SelfAttention(nn.Module):
    """What Mask2Former's own class computes for its queries."""

    head_dim: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def forward(self, hidden_states: Tensor, position_embeddings: Tensor, **_: Any) -> tuple[Tensor, None]:
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


class Experts(nn.Module):
    """The experts of a mixture as transformers keeps them, all in one parameter (`use_experts_implementation`).

    Each works on the positions that are routed to it alone, in order, and what it weighs is in its neurons already:

        y_t = sum_e W_e ( p_te h_e(x_t) )
    """

    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    down_proj: nn.Parameter
    down_proj_bias: nn.Parameter
    act_fn: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """States of shape (position, feature), and for each the experts that it is routed to, with their shares."""
        # What is routed to no expert has a number behind the last.
        shares = hidden_states.new_zeros(len(hidden_states), self.num_experts + 1)
        shares = shares.scatter_add(1, top_k_index, top_k_weights.to(shares.dtype))
        result = torch.zeros_like(hidden_states)
        for place in range(self.num_experts):
            share = shares[:, place, None]
            rows = _nonzero(share[:, 0], top_k_index.shape[-1] / self.num_experts)
            neurons = self._neurons(hidden_states[rows], place) * share[rows]
            read = hidden_states.new_zeros(len(hidden_states), neurons.shape[-1]).index_put((rows,), neurons)
            result = result + self.get_submodule(f"{EXPERT}{place}")(read, rows)
            if self.has_bias:
                result = result + share * self.down_proj_bias[place]
        return result

    def _neurons(self, states: Tensor, place: int) -> Tensor:
        name = "gate_up_proj" if self.has_gate else "up_proj"
        weight = getattr(self, name)[place]
        bias = getattr(self, f"{name}_bias")[place] if self.has_bias else None
        made = F.linear(states, weight.mT if self.is_transposed else weight, bias)
        return self._apply_gate(made) if self.has_gate else self.act_fn(made)


class ExpertMap(nn.Module):
    """The map that reads the neurons of one expert; its weight lies in the parameter of all."""

    bias = None

    def __init__(self, experts: nn.Module, place: int) -> None:
        super().__init__()
        self.of: tuple[Any, int] = (experts, place)  # in a tuple, so that they do not become a module of this one

    @property
    def weight(self) -> Tensor:
        """Shape (feature, neuron)."""
        experts, place = self.of
        stored: Tensor = experts.down_proj[place]
        return stored.mT if experts.is_transposed else stored

    @weight.setter
    def weight(self, value: Tensor) -> None:
        """What is added to it in place is where it belongs."""

    def forward(self, read: Tensor, rows: Tensor) -> Tensor:
        """Neurons of shape (position, neuron), zero at all positions but `rows`."""
        made = F.linear(read[rows], self.weight)
        return read.new_zeros(len(read), made.shape[-1]).index_put((rows,), made)


_made: dict[tuple[type, type], type[nn.Module]] = {}


def _mixed(twin: type[nn.Module], kind: type[nn.Module], **own: Any) -> type[nn.Module]:
    """The one class that is both a twin and what a module was."""
    if (twin, kind) not in _made:
        _made[twin, kind] = type(kind.__name__, (twin, kind), {**own, "__module__": kind.__module__})
    return _made[twin, kind]


def _nonzero(share: Tensor, part: float) -> Tensor:
    """Where an expert has a share; without values as many positions as each has if all have as many."""
    if share.is_meta:
        return torch.arange(int(len(share) * part), device="meta")
    return share.nonzero()[:, 0]


def _are_experts(module: nn.Module) -> bool:
    """Whether a module follows the protocol that `Experts` does, all experts on one device."""
    facts = ("is_transposed", "has_gate", "has_bias", "num_experts", "_apply_gate", "_is_expert_parallel")
    if not all(hasattr(module, name) for name in facts):
        return False
    plain = not getattr(module, "has_post_expert_norm", False) and not module._is_expert_parallel
    return plain and isinstance(getattr(module, "down_proj", None), nn.Parameter)


class Elastic(nn.Module):
    """A module of any class whose forward takes its heads to be as many as they were in sizes of reshapes alone."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle knows the class that it was."""
        return _elastic_again, (type(self).__mro__[2],), vars(self)

    def heads(self, dense: int, kept: int, features: int) -> None:
        """Say how many heads the forward takes there to be, if nobody did before, and how many there are.

        Args:
            features: of each.
        """
        first, _, width = vars(self).get(HEADS, (dense, dense, dense * features))
        setattr(self, HEADS, (first, kept, width))


def elastic(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of the elastic twin of a module of some class."""
    plain: Any = kind.forward

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Reshapes(*vars(self).get(HEADS, (1, 1, 1))):
            return plain(self, *args, **kwargs)

    return _mixed(Elastic, kind, forward=forward)


def _elastic_again(kind: type[nn.Module]) -> nn.Module:
    twin = elastic(kind)
    return twin.__new__(twin)


class _Reshapes(TorchFunctionMode):
    """Sizes that do not fit because heads have left are made to: the count of the heads, or of all their features.

    Those of splits are made to where each part was of all heads: of queries, keys and values in a row.
    """

    def __init__(self, dense: int, kept: int, width: int) -> None:
        super().__init__()
        self.dense, self.kept, self.width = dense, kept, width

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RESHAPES and self.kept < self.dense and not kwargs:
            value, *sizes = args
            sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
            if all(isinstance(size, int) for size in sizes):  # a view may be as another type too
                return func(value, self._fitting(value, sizes))
        if func in SPLITS and self.kept < self.dense and len(args) > 1:
            args = (args[0], self._parts(args[0], args[1], *args[2:3], **(kwargs or {})), *args[2:])
        return func(*args, **(kwargs or {}))

    def _parts(self, value: Tensor, sizes: Any, dim: int = 0) -> Any:
        """The sizes of a split, one for all parts or a list; others than of all heads stay."""
        parts, before = [sizes] if isinstance(sizes, int) else sizes, value.shape[dim] * self.dense
        evenly = before % (sizes * self.kept) == 0 if isinstance(sizes, int) else sum(sizes) * self.kept == before
        if not evenly or any(part % self.width for part in parts):
            return sizes
        fewer = [part // self.dense * self.kept for part in parts]
        return fewer[0] if isinstance(sizes, int) else fewer

    def _fitting(self, value: Tensor, sizes: list[int]) -> list[int]:
        lacking = math.prod(sizes) * self.kept == value.numel() * self.dense
        if min(sizes, default=-1) < 0 or not lacking:
            return sizes
        # What comes before and behind is as it was.
        pairs = zip(sizes, value.shape, strict=False)
        start = next((place for place, (size, own) in enumerate(pairs) if size != own), 0)
        places = [place for place in range(start, len(sizes)) if sizes[place] % self.dense == 0]
        exact = [place for place in places if sizes[place] == self.dense]
        if place := (exact or places)[-1:]:
            sizes = [*sizes]
            sizes[place[0]] = sizes[place[0]] // self.dense * self.kept
        return sizes


RESHAPES = (Tensor.reshape, Tensor.view, torch.reshape)
SPLITS = (Tensor.split, torch.split)
TWINS = (SelfAttention, MultiheadAttention, Elastic)  # those that have lost heads stay so


def twin_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of a module's twin; None if it has none of its own: see `elastic` for those."""
    if isinstance(module, (*TWINS, Experts)):
        return type(module)
    if _are_experts(module):
        return _mixed(Experts, type(module))
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
        module.__class__ = elastic(type(module))
    if isinstance(module, Elastic):
        module.heads(dense, kept, features)
    for around in model.modules():
        if isinstance(around, nn.TransformerEncoder) and module in around.modules():
            around.use_nested_tensor = False  # only the fast path of its layers can read one


def _exchange(module: nn.Module) -> None:
    twin = twin_of(module)
    if twin not in (None, type(module)):
        vars(module)[PLAIN] = type(module)
        module.__class__ = twin
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
    def run(model: Any, *args: Any, **kwargs: Any) -> Any:
        with twinned(model) if isinstance(model, nn.Module) else contextlib.nullcontext():
            return function(model, *args, **kwargs)

    return run  # type: ignore[return-value]


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
            module.__class__ = vars(module).pop(PLAIN)
        elif isinstance(module, (SelfAttention, MultiheadAttention)) and PLAIN in vars(module):
            weight = module.out_proj.weight
            if weight.shape[0] == weight.shape[1]:
                module.__class__ = vars(module).pop(PLAIN)
