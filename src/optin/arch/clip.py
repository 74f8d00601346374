"""CLIP and SigLIP: either tower alone, a classifier on the vision tower, or both towers, of which the vision tower
is pruned."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..units import Attention, Tap, UnitSpace
from .layers import transformer_space, with_tokens
from .vit import LAYOUT as VIT

MODEL_TYPES = (
    "clip",
    "clip_vision_model",
    "clip_text_model",
    "siglip",
    "siglip_vision_model",
    "siglip_text_model",
)

LAYOUT = dataclasses.replace(
    VIT,
    attention="self_attn",
    attention_output="self_attn.out_proj",
    attention_total=Tap("layer_norm2", "input"),
    head_count=None,
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `encoder.layers` of one tower; tokens of CLIP's vision tower."""
    towers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if name.endswith("encoder.layers")
    }
    layers = next((name for name in towers if "vision_model" in name), next(iter(towers)))
    space = transformer_space(model, [f"{layers}.{index}" for index in range(len(towers[layers]))], LAYOUT)
    fixed = tuple(
        Attention(f"{name}.{index}.self_attn", None, 2 * layer.embed_dim)
        for name, stack in towers.items()
        for index, layer in enumerate(stack)
        if name != layers
    )
    space = dataclasses.replace(space, attention=(*space.attention, *fixed))
    if space.architecture.startswith("clip") and space.architecture != "clip_text_model":
        averaged = layers.removesuffix(".layers") if hasattr(model, "classifier") else None
        return with_tokens(space, LAYOUT, protected=1, averaged=averaged)
    return space
