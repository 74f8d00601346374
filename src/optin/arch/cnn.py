"""Convolutional and segmentation networks of any make: channels and neurons, found by tracing (`graph.py`).

Blocks of attention inside them also give their heads: those of a Swin backbone, of SegFormer, and in Mask2Former
those of the pixel decoder and the queries' own attention in the transformer decoder.

From transformers those named below; from timm, torchvision and elsewhere whatever can be traced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ArchitectureError
from ..labels.remembered import tried
from ..modules import device_of
from ..units import Attention, Tap, UnitSpace
from .graph import channel_space
from .inputs import example_inputs, image_input, image_side
from .layers import Place, architecture_of, head_group
from .swin import SWIN

MODEL_TYPES = ("convnext", "efficientnet", "mask2former", "mobilenet_v2", "resnet", "segformer", "upernet")

SEGFORMER = dataclasses.replace(SWIN, attention_total=Tap("layernorm_after", "input"), head_tables=())
QUERIES = dataclasses.replace(
    SEGFORMER,
    attention="self_attn",
    attention_output="self_attn.out_proj",
    attention_total=Tap("self_attn.out_proj", "output"),
    head_count="num_heads",
    reheaded=True,
)
DEFORMABLE = dataclasses.replace(
    QUERIES,
    projections=("value_proj",),
    attention_output="self_attn.output_proj",
    attention_total=Tap("self_attn_layer_norm", "input"),
    head_count="n_heads",
    head_width="d_model",
    head_tables=tuple(
        (f"self_attn.{name}.{part}", 0)
        for name in ("sampling_offsets", "attention_weights")
        for part in ("weight", "bias")
    ),
    reheaded=False,
)
LAYOUTS = {
    "SwinLayer": SWIN,
    "SegformerLayer": SEGFORMER,
    "Mask2FormerPixelDecoderEncoderLayer": DEFORMABLE,
    "Mask2FormerMaskedAttentionDecoderLayer": QUERIES,
}  # by the class of the block

_known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, UnitSpace]] = weakref.WeakKeyDictionary()


def describe(model: nn.Module) -> UnitSpace:
    """Channels of every convolution that can lose some, and neurons of linear maps behind one another.

    Raises:
        ArchitectureError: the network takes no images, cannot be traced, or nothing can be cut; names what stops it.
    """
    shapes = tuple((name, tensor.shape) for name, tensor in model.named_parameters())
    found = _known.get(model)
    if found is None or found[0] != shapes:
        if image_input(model) is None or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            raise ArchitectureError(f"{type(model).__name__} is no network of images: it has no convolutions.")
        architecture = architecture_of(model) or type(model).__name__
        with with_weights(model) as real:
            inputs = example_inputs(real, image_side(real), 2)
            space, whole = tried(real, channel_space(real, inputs, architecture), inputs)
            if not len(space):
                name, reason = next(iter(whole.items()))
                raise ArchitectureError(f"nothing can be cut from this {architecture}: {reason} ({name}).")
            found = (shapes, _with_heads(real, space))
        _known[model] = found
    return found[1]


def _with_heads(model: nn.Module, space: UnitSpace) -> UnitSpace:
    """The description with the heads of blocks whose neurons were found."""
    groups, products = list(space.groups), []
    for number, block in enumerate(space.blocks):
        layout = LAYOUTS.get(type(model.get_submodule(block)).__name__)
        if layout is None:
            continue
        heads = head_group(model, Place(block, number, number, shared=False), layout)
        groups.append(dataclasses.replace(heads, name=f"{block}.heads"))
        attention = f"{block}.{layout.attention}"
        if len(layout.projections) > 1:  # deformable attention samples values instead of multiplying
            queries, keys = (f"{attention}.{name}" for name in layout.projections[:2])
            products.append(Attention(attention, f"{block}.heads", 2 * heads.gates[0].block, maps=(queries, keys)))
    groups.sort(key=lambda group: (group.layer, group.kind != "head"))
    return dataclasses.replace(space, groups=tuple(groups), attention=tuple(products))


@contextlib.contextmanager
def with_weights(model: nn.Module) -> Iterator[nn.Module]:
    """The network; while it is being loaded another of its kind on the CPU, since not every forward runs without."""
    if device_of(model).type != "meta":
        yield model
        return
    kind: Any = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    with torch.device("cpu"):
        yield kind(model.config).eval()
