"""BEiT: tables of relative position biases, one per block or one for all, and LayerScale."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..units import UnitSpace
from .layers import base_prefix, transformer_space, with_tokens
from .vit import LAYOUT as VIT

MODEL_TYPES = ("beit",)

LAYOUT = dataclasses.replace(VIT, attention_scale="lambda_1", scale="lambda_2")


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `layers`; tokens, but for the class token."""
    config: Any = model.config
    prefix = base_prefix(model)
    layout = LAYOUT
    if config.use_relative_position_bias:
        layout = dataclasses.replace(
            layout, head_tables=(("relative_position_bias.relative_position_bias_table", 1),)
        )
    if config.use_shared_relative_position_bias:
        # Computed once for all blocks and so never cut: each block picks the biases of its own heads.
        layout = dataclasses.replace(layout, head_bias=("", "attention_mask", 1))
    blocks = [f"{prefix}layers.{index}" for index in range(config.num_hidden_layers)]
    space = transformer_space(model, blocks, layout)
    averaged = f"{prefix}layernorm" if config.use_mean_pooling else None
    return with_tokens(space, layout, protected=1, averaged=averaged)
