"""timm's VisionTransformer (vit, deit, deit3) and SwinTransformer: query, key and value in one matrix."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..errors import ArchitectureError
from ..units import Tap, UnitSpace
from .layers import Layout, transformer_space
from .vit import LAYOUT as VIT

MODEL_TYPES = ("timm.VisionTransformer", "timm.VisionTransformerDistilled", "timm.SwinTransformer")

BLOCK = dataclasses.replace(
    VIT,
    attention="attn",
    projections=("qkv",),
    fused=3,
    attention_output="attn.proj",
    attention_total=Tap("norm2", "input"),
    attention_scale="ls1.gamma",
    scale="ls2.gamma",
    head_count="num_heads",
    head_width="attn_dim",
)
SWIN: Layout = dataclasses.replace(
    BLOCK,
    attention_total=Tap("attn.proj", "output"),
    head_width=None,
    head_tables=(("attn.relative_position_bias_table", 1),),
)
_KNOWN = {"Block": "Mlp", "SwinTransformerBlock": "Mlp"}  # kinds of blocks, and of their feed-forward halves


def describe(model: nn.Module) -> UnitSpace:
    """Heads and neurons of every block.

    Raises:
        ArchitectureError: blocks of another make than those of the models named above.
    """
    network: Any = model
    if type(model).__name__ == "SwinTransformer":
        blocks: list[str] = []
        merging: list[str] = []
        for stage, layer in enumerate(network.layers):
            if not isinstance(layer.downsample, nn.Identity):
                merging.append(f"layers.{stage}.downsample")
                blocks.append(merging[-1])
            blocks += [f"layers.{stage}.blocks.{index}" for index in range(len(layer.blocks))]
        _check(model, [block for block in blocks if block not in merging])
        return transformer_space(model, blocks, SWIN, between=merging)
    blocks = [f"blocks.{index}" for index in range(len(network.blocks))]
    _check(model, blocks)
    return transformer_space(model, blocks, BLOCK)


def _check(model: nn.Module, blocks: list[str]) -> None:
    for path in blocks:
        block: Any = model.get_submodule(path)
        plain = isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
        gated = getattr(block.attn, "gate", None) is not None
        if _KNOWN.get(type(block).__name__) != type(block.mlp).__name__ or not plain or gated:
            raise ArchitectureError(
                f"{path!r} of this timm model is a {type(block).__name__} with {type(block.mlp).__name__}: optin "
                f"knows {', '.join(sorted(_KNOWN))} with a plain Mlp and attention."
            )
