"""DINOv2, with and without registers: LayerScale behind each consumer, and gated feed-forwards in the giant."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..units import Tap, UnitSpace
from .layers import base_prefix, transformer_space, with_tokens
from .vit import LAYOUT as VIT

MODEL_TYPES = ("dinov2", "dinov2_with_registers")

LAYOUT = dataclasses.replace(
    VIT,
    attention_total=Tap("norm2", "input"),
    attention_scale="layer_scale1.lambda1",
    scale="layer_scale2.lambda1",
)
GATED = dataclasses.replace(LAYOUT, expand=("mlp.gate_proj", "mlp.up_proj"), contract="mlp.down_proj")


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `encoder.layer`; tokens, but for the class token and the registers.

    The classifier averages the patches that the last normalisation returns.
    """
    config: Any = model.config
    prefix = base_prefix(model)
    blocks = [f"{prefix}encoder.layer.{index}" for index in range(config.num_hidden_layers)]
    space = transformer_space(model, blocks, GATED if config.use_swiglu_ffn else LAYOUT)
    protected = 1 + getattr(config, "num_register_tokens", 0)
    averaged = f"{prefix}layernorm" if hasattr(model, "classifier") else None
    return with_tokens(space, LAYOUT, protected, averaged=averaged)
