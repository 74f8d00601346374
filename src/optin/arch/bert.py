"""BERT and the encoders built from its layers: RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..units import Tap, UnitSpace
from .layers import Layout, base_prefix, transformer_space

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")

LAYOUT = Layout(
    attention="attention.self",
    projections=("query", "key", "value"),
    attention_output="attention.output.dense",
    attention_total=Tap("attention.output.LayerNorm", "input"),
    expand=("intermediate.dense",),
    contract="output.dense",
    total=Tap("output.LayerNorm", "input"),
)


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every `encoder.layer`."""
    config: Any = model.config
    layers = f"{base_prefix(model)}encoder.layer"
    return transformer_space(model, [f"{layers}.{index}" for index in range(config.num_hidden_layers)], LAYOUT)
