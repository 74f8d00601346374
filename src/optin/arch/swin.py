"""Swin and Swin v2: attention in shifted windows, stages of growing width with patch merging between them.

An attention output still lies in windows where the residual is added, so its refit aims at the dense
network's own output there; what that leaves is repaired by the feed-forward half. Swin v2 normalises each
half before the sum, so there both refits do so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..units import Tap, UnitSpace
from .layers import Layout, base_prefix, transformer_space

MODEL_TYPES = ("swin", "swinv2")

SWIN = Layout(
    attention="attention",
    projections=("q_proj", "k_proj", "v_proj"),
    attention_output="attention.o_proj",
    attention_total=Tap("attention.o_proj", "output"),
    expand=("mlp.fc1",),
    contract="mlp.fc2",
    total=Tap("", "output"),
    head_width=None,
    head_tables=(("attention.relative_position_bias.relative_position_bias_table", 1),),
)
SWIN_V2 = dataclasses.replace(
    SWIN,
    attention="attention.self",
    projections=("query", "key", "value"),
    attention_output="attention.output.dense",
    attention_total=Tap("attention.output.dense", "output"),
    expand=("intermediate.dense",),
    contract="output.dense",
    total=Tap("output.dense", "output"),
    head_width="all_head_size",
    head_tables=(
        ("attention.self.logit_scale", 0),
        ("attention.self.continuous_position_bias_mlp.2.weight", 0),
    ),
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every block of every stage."""
    config: Any = model.config
    stages = f"{base_prefix(model)}encoder.layers"
    blocks, merging = [], []
    for stage, depth in enumerate(config.depths):
        blocks += [f"{stages}.{stage}.blocks.{index}" for index in range(depth)]
        if stage + 1 < len(config.depths):
            merging.append(f"{stages}.{stage}.downsample")
            blocks.append(merging[-1])
    layout = SWIN if config.model_type == "swin" else SWIN_V2
    space = transformer_space(model, blocks, layout, between=tuple(merging))
    # Each stage lays its states out as a map, so a block that is skipped must return a state of its own size.
    return dataclasses.replace(space, chained=False)
