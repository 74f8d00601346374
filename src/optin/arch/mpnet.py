"""MPNet: one table of relative position biases, a column per head, serves every layer.

The table is shared and so never cut: each layer picks the biases of its own heads from what it is given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..units import Tap, UnitSpace
from .bert import LAYOUT as BERT
from .layers import base_prefix, transformer_space

MODEL_TYPES = ("mpnet",)

LAYOUT = dataclasses.replace(
    BERT,
    attention="attention.attn",
    projections=("q", "k", "v"),
    attention_output="attention.attn.o",
    attention_total=Tap("attention.LayerNorm", "input"),
    head_bias=("attention.attn", "position_bias", 2),
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `encoder.layer`."""
    config: Any = model.config
    layers = f"{base_prefix(model)}encoder.layer"
    return transformer_space(model, [f"{layers}.{index}" for index in range(config.num_hidden_layers)], LAYOUT)
