"""A transformer block by the names of its parts: what every architecture here shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ArchitectureError
from ..modules import tensor_of
from ..units import Argument, Attention, Attribute, Cut, Gate, Tap, TokenSpace, UnitGroup, UnitSpace


@dataclass(frozen=True, slots=True)
class Layout:
    """Module paths inside one block.

    Attributes:
        attention: the module that computes the attention products.
        projections: maps to queries, keys and values, under `attention`, absent ones left out.
        attention_output: the consumer of the heads.
        attention_total: where its output plus the residual is read; the consumer's own output where no place
            inside the block adds them (windows, a normalisation before the sum).
        expand: maps into the feed-forward layer, absent ones left out; a gated layer has two.
        contract: the consumer of its neurons.
        total: where that output plus the residual is read; a path of "" is the block itself.
        head_count, head_width: attributes of `attention` that hold the number of heads and their total width;
            None where it reads them off its weights.
        head_bias: an argument with one slice per head along dim 1, as (module, name, position).
        head_tables: further parameters with equal slices for all heads, as (path, dim).
        attention_scale, scale: parameters that multiply a consumer's output before the residual is added.
        fused: how many maps `projections[0]` holds one after the other (3: query, key and value in one matrix).
        reheaded: the module computes with fewer heads only as `twins.SelfAttention`.
    """

    attention: str
    projections: tuple[str, ...]
    attention_output: str
    attention_total: Tap
    expand: tuple[str, ...]
    contract: str
    total: Tap
    head_count: str | None = "num_attention_heads"
    head_width: str | None = "all_head_size"
    head_bias: tuple[str, str, int] | None = None
    head_tables: tuple[tuple[str, int], ...] = ()
    attention_scale: str | None = None
    scale: str | None = None
    fused: int = 1
    reheaded: bool = False


def transformer_space(
    model: nn.Module, blocks: Sequence[str], layout: Layout, per_position: int = 0, between: Sequence[str] = ()
) -> UnitSpace:
    """Heads and neurons of every distinct block, in order of execution.

    Args:
        blocks: block paths; one that runs several times is named as often.
        per_position: MACs per token and head beside the two attention products.
        between: those of `blocks` that hold no units, such as the patch merging between two stages.

    Raises:
        ArchitectureError: the model is configured as a decoder.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ArchitectureError(
            f"{type(model).__name__} is configured as a decoder (is_decoder or add_cross_attention). "
            "optin prunes encoders: load it with is_decoder=False."
        )
    groups: list[UnitGroup] = []
    products: list[Attention] = []
    for index, block in enumerate(name for name in dict.fromkeys(blocks) if name not in between):
        place = Place(block, index, blocks.index(block), shared=blocks.count(block) > 1)
        heads = head_group(model, place, layout)
        groups += [heads, _neurons(model, place, layout)]
        products.append(Attention(f"{block}.{layout.attention}", heads.name, 2 * heads.gates[0].block, per_position))
    return UnitSpace(architecture_of(model) or "", tuple(groups), tuple(blocks), tuple(products))


def with_tokens(space: UnitSpace, layout: Layout, protected: int, **options: Any) -> UnitSpace:
    """The description of a network whose tokens can be merged. `options` are those of `TokenSpace`."""
    keys = next(name for name in layout.projections if name.startswith("k"))
    heads = tuple(group.name for group in space if group.kind == "head")
    tokens = TokenSpace(
        space.blocks, f"{layout.attention}.{keys}", layout.attention, heads, protected=protected, **options
    )
    return dataclasses.replace(space, tokens=tokens)


def architecture_of(model: nn.Module) -> str | None:
    """`config.model_type` of a transformers model; "timm." and its class for a timm model; None for others."""
    if type(model).__module__.startswith("timm.models."):
        return f"timm.{type(model).__name__}"
    return getattr(getattr(model, "config", None), "model_type", None)


def base_prefix(model: nn.Module) -> str:
    """Path of the bare encoder inside the model: "" or for example "bert."."""
    base: Any = model.base_model
    path = next(name for name, module in model.named_modules() if module is base)
    return f"{path}." if path else ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block stands: its path, its number among distinct blocks, and the first time that it runs."""

    block: str
    number: int
    position: int
    shared: bool


def head_group(model: nn.Module, place: Place, layout: Layout) -> UnitGroup:
    """The heads of one block."""
    path, output = f"{place.block}.{layout.attention}", f"{place.block}.{layout.attention_output}"
    attention: Any = model.get_submodule(path)
    consumer: Any = model.get_submodule(output)
    size = head_size(attention)
    width: int = consumer.in_features
    cuts = [
        cut
        for name in layout.projections
        if hasattr(attention, name)
        for part in range(layout.fused)
        for cut in _linear_cuts(model, f"{path}.{name}", 0, size, part * width)
    ]
    count = width // size
    tables = [
        Cut(name, dim, tensor_of(model, name).shape[dim] // count)
        for name, dim in ((f"{place.block}.{table}", dim) for table, dim in layout.head_tables)
    ]
    arguments: tuple[Argument, ...] = ()
    if layout.head_bias:
        module, name, position = layout.head_bias
        arguments = (Argument(_inside(place.block, module), name, position, dim=1),)
    counters = [(layout.head_count, 1), (layout.head_width, size)]
    return UnitGroup(
        name=f"layers.{place.number}.heads",
        kind="head",
        size=count,
        layer=place.position,
        cuts=(*cuts, *tables, *_linear_cuts(model, output, 1, size)),
        gates=(_gate(model, place.block, output, size, layout.attention_total, layout.attention_scale),),
        attributes=tuple(Attribute(path, name, per_unit) for name, per_unit in counters if name is not None),
        arguments=arguments,
        shared=place.shared,
        twins=(path,) if layout.reheaded else (),
    )


def _neurons(model: nn.Module, place: Place, layout: Layout) -> UnitGroup:
    output = f"{place.block}.{layout.contract}"
    consumer: Any = model.get_submodule(output)
    present = {name for name, _ in model.get_submodule(place.block).named_modules()}
    cuts = [
        cut for name in layout.expand if name in present for cut in _linear_cuts(model, f"{place.block}.{name}", 0)
    ]
    return UnitGroup(
        name=f"layers.{place.number}.neurons",
        kind="neuron",
        size=consumer.in_features,
        layer=place.position,
        cuts=(*cuts, *_linear_cuts(model, output, 1)),
        gates=(_gate(model, place.block, output, 1, layout.total, layout.scale),),
        shared=place.shared,
    )


def head_size(attention: Any) -> int:
    """Features of one head."""
    if hasattr(attention, "qkv") and not hasattr(attention, "head_dim"):
        return int(attention.qkv.out_features // (3 * attention.num_heads))
    if hasattr(attention, "d_model"):
        return int(attention.d_model // attention.n_heads)
    size: int = attention.attention_head_size if hasattr(attention, "attention_head_size") else attention.head_dim
    return size


def _gate(model: nn.Module, block: str, output: str, size: int, total: Tap, scale: str | None) -> Gate:
    parameters = dict(model.get_submodule(block).named_parameters())
    scaled = f"{block}.{scale}" if scale in parameters else None
    return Gate(output, -1, size, Tap(_inside(block, total.module), total.side), scaled)


def _inside(block: str, path: str) -> str:
    return f"{block}.{path}" if path else block


def _linear_cuts(model: nn.Module, path: str, dim: int, block: int = 1, offset: int = 0) -> tuple[Cut, ...]:
    """Output features (dim 0, the bias too) or input features (dim 1) of a linear map."""
    cuts: tuple[Cut, ...] = (Cut(f"{path}.weight", dim, block, offset),)
    if dim == 0 and model.get_submodule(path).bias is not None:
        cuts += (Cut(f"{path}.bias", 0, block, offset),)
    return cuts
