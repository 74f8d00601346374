"""Fewer dimensions inside the attention heads of a BERT, by the best products of low rank."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from optin.running.modules import hooks
from optin.scoring.moments import Moments, factored

RIDGE = 1e-4


@torch.no_grad()
def narrowed(model: Any, batches: list[dict[str, Tensor]], dimensions: int) -> Any:
    """A copy whose heads have so many dimensions each, for queries and keys and for values.

    Of every head the products W_q^T W_k and W_o W_v are replaced by those of lower rank that are closest on the
    inputs of its layer, x with second moment C = L L^T:

        L^T W_q^T W_k L  ~  U_r S_r V_r^T,      W_o W_v L  ~  U_r S_r V_r^T

    with biases as a feature that is always 1; that of the values, which are only averaged, goes into the output.
    """
    small = copy.deepcopy(model)
    for layer in small.bert.encoder.layer:
        attention, output = layer.attention.self, layer.attention.output.dense
        factor = factored(_moments(small, attention, batches).second, RIDGE)
        size = attention.attention_head_size
        output.bias += output.weight @ attention.value.bias
        attention.value.bias.zero_()
        queries, keys, values = (_with_bias(getattr(attention, name)) for name in ("query", "key", "value"))
        made: list[list[Tensor]] = [[], [], [], []]
        for head in range(attention.num_attention_heads):
            part = slice(head * size, (head + 1) * size)
            q, k = _product(queries[part].mT, keys[part], factor, factor, dimensions)
            o, v = _product(output.weight[:, part].double(), values[part], None, factor, dimensions)
            for kept, value in zip(made, (q.mT, k, v, o.mT), strict=True):
                kept.append(value)
        for name, rows in zip(("query", "key", "value"), made, strict=False):
            _set(getattr(attention, name), torch.cat(rows))
        output.weight = nn.Parameter(torch.cat(made[3]).mT.to(output.weight))
        output.in_features = output.weight.shape[1]
        attention.attention_head_size = dimensions
        attention.all_head_size = attention.num_attention_heads * dimensions
    return small


def _product(left: Tensor, right: Tensor, before: Tensor | None, after: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the matrix of `rank` closest to `left @ right`, seen through `before` and `after`."""
    outer = torch.linalg.qr(left if before is None else before.mT @ left).R
    inner = torch.linalg.qr(after.mT @ right.mT).R
    u, s, vh = torch.linalg.svd(outer @ inner.mT)
    root = s[:rank].sqrt()
    columns = torch.linalg.solve_triangular(outer, u[:, :rank] * root, upper=True)
    rows = torch.linalg.solve_triangular(inner, vh[:rank].mT * root, upper=True)
    return left @ columns, rows.mT @ right


def _moments(model: Any, attention: nn.Module, batches: list[dict[str, Tensor]]) -> Moments:
    """C of what a layer reads, in the network narrowed so far."""
    found, masks = Moments(attention.query.in_features, 0, torch.device("cpu")), []

    def add(module: nn.Module, args: Any, kwargs: Any) -> None:
        found.add((args or tuple(kwargs.values()))[0][masks[-1]])

    with hooks(attention.register_forward_pre_hook(add, with_kwargs=True)):
        for batch in batches:
            masks.append(batch["attention_mask"].bool())
            model(**batch)
    return found


def _with_bias(linear: Any) -> Tensor:
    return torch.cat([linear.weight, linear.bias[:, None]], 1).double()


def _set(linear: Any, rows: Tensor) -> None:
    linear.weight = nn.Parameter(rows[:, :-1].to(linear.weight))
    linear.bias = nn.Parameter(rows[:, -1].to(linear.bias))
    linear.out_features = len(rows)
