"""DeBERTa v2 and v3: disentangled attention, with projections of the relative positions per head."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..units import UnitSpace
from .bert import LAYOUT as BERT
from .layers import base_prefix, transformer_space

MODEL_TYPES = ("deberta-v2",)

LAYOUT = dataclasses.replace(
    BERT, projections=("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj")
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `encoder.layer`."""
    config: Any = model.config
    layers = f"{base_prefix(model)}encoder.layer"
    blocks = [f"{layers}.{index}" for index in range(config.num_hidden_layers)]
    first: Any = model.get_submodule(f"{blocks[0]}.{LAYOUT.attention}")
    return transformer_space(model, blocks, LAYOUT, _position_products(first))


def _position_products(attention: Any) -> int:
    """MACs per token and head of content times position: each used direction meets 2 * span positions."""
    if not attention.relative_attention:
        return 0
    directions = sum(kind in attention.pos_att_type for kind in ("c2p", "p2c"))
    return int(directions * 2 * attention.pos_ebd_size * attention.attention_head_size)
