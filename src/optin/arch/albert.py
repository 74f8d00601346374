"""ALBERT: a few layers run many times each, so that a unit is tied across depth."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..units import Tap, UnitSpace
from .layers import Layout, base_prefix, transformer_space

MODEL_TYPES = ("albert",)

LAYOUT = Layout(
    attention="attention",
    projections=("query", "key", "value"),
    attention_output="attention.dense",
    attention_total=Tap("attention.LayerNorm", "input"),
    expand=("ffn",),
    contract="ffn_output",
    total=Tap("full_layer_layer_norm", "input"),
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every distinct layer; `blocks` names a layer once for each time it runs."""
    config: Any = model.config
    groups = f"{base_prefix(model)}encoder.albert_layer_groups"
    passes = config.num_hidden_layers / config.num_hidden_groups
    blocks = [
        f"{groups}.{int(step / passes)}.albert_layers.{inner}"
        for step in range(config.num_hidden_layers)
        for inner in range(config.inner_group_num)
    ]
    return transformer_space(model, blocks, LAYOUT)
