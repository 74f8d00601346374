"""DistilBERT: BERT's layers under other names, attention and output projection in one module."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..units import Tap, UnitSpace
from .layers import Layout, base_prefix, transformer_space

MODEL_TYPES = ("distilbert",)

LAYOUT = Layout(
    attention="attention",
    projections=("q_lin", "k_lin", "v_lin"),
    attention_output="attention.out_lin",
    attention_total=Tap("sa_layer_norm", "input"),
    expand=("ffn.lin1",),
    contract="ffn.lin2",
    total=Tap("output_layer_norm", "input"),
    head_count="n_heads",
    head_width="dim",
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `transformer.layer`."""
    config: Any = model.config
    layers = f"{base_prefix(model)}transformer.layer"
    return transformer_space(model, [f"{layers}.{index}" for index in range(config.n_layers)], LAYOUT)
