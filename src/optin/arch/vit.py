"""ViT and DeiT (plain and distilled): normalisation before each half of a block."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..units import Tap, UnitSpace
from .layers import Layout, base_prefix, transformer_space, with_tokens

MODEL_TYPES = ("vit", "deit")

LAYOUT = Layout(
    attention="attention",
    projections=("q_proj", "k_proj", "v_proj"),
    attention_output="attention.o_proj",
    attention_total=Tap("layernorm_after", "input"),
    expand=("mlp.fc1",),
    contract="mlp.fc2",
    total=Tap("", "output"),
    head_count="num_attention_heads",
    head_width=None,
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `layers`; tokens, but for the class and the distillation token."""
    config: Any = model.config
    layers = f"{base_prefix(model)}layers"
    space = transformer_space(model, [f"{layers}.{index}" for index in range(config.num_hidden_layers)], LAYOUT)
    return with_tokens(space, LAYOUT, protected=2 if config.model_type == "deit" else 1)
