"""A transformer block by the names of its parts: what every encoder here shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ArchitectureError
from ..units import Argument, Attention, Attribute, Cut, Gate, Tap, UnitGroup, UnitSpace


@dataclass(frozen=True, slots=True)
class Layout:
    """Module paths inside one block.

    Attributes:
        attention: the module that computes the attention products; it remembers `head_count` heads and a
            total width `head_width`.
        projections: maps to queries, keys and values, under `attention`, absent ones left out.
        attention_output: the consumer of the heads.
        attention_total: where its output plus the residual is read.
        expand: map into the feed-forward layer.
        contract: the consumer of its neurons.
        total: where that output plus the residual is read.
        head_bias: an argument of `attention` with one slice per head along dim 1, as (name, position).
    """

    attention: str
    projections: tuple[str, ...]
    attention_output: str
    attention_total: Tap
    expand: str
    contract: str
    total: Tap
    head_count: str = "num_attention_heads"
    head_width: str = "all_head_size"
    head_bias: tuple[str, int] | None = None


def transformer_space(model: nn.Module, blocks: Sequence[str], layout: Layout, per_position: int = 0) -> UnitSpace:
    """Heads and neurons of every distinct block, in order of execution.

    Args:
        blocks: block paths; one that runs several times is named as often.
        per_position: MACs per token and head beside the two attention products.

    Raises:
        ArchitectureError: the model is configured as a decoder.
    """
    config: Any = model.config
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ArchitectureError(
            f"{type(model).__name__} is configured as a decoder (is_decoder or add_cross_attention). "
            "optin prunes encoders: load it with is_decoder=False."
        )
    groups: list[UnitGroup] = []
    products: list[Attention] = []
    for index, block in enumerate(dict.fromkeys(blocks)):
        place = Place(block, index, blocks.index(block), shared=blocks.count(block) > 1)
        heads = _heads(model, place, layout)
        groups += [heads, _neurons(model, place, layout)]
        products.append(Attention(f"{block}.{layout.attention}", heads.name, 2 * heads.gates[0].block, per_position))
    return UnitSpace(config.model_type, tuple(groups), tuple(blocks), tuple(products))


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


def _heads(model: nn.Module, place: Place, layout: Layout) -> UnitGroup:
    path, output = f"{place.block}.{layout.attention}", f"{place.block}.{layout.attention_output}"
    attention: Any = model.get_submodule(path)
    consumer: Any = model.get_submodule(output)
    size: int = attention.attention_head_size
    cuts = [
        cut
        for name in layout.projections
        if hasattr(attention, name)
        for cut in _linear_cuts(model, f"{path}.{name}", 0, size)
    ]
    arguments = (Argument(path, *layout.head_bias, dim=1),) if layout.head_bias else ()
    return UnitGroup(
        name=f"layers.{place.number}.heads",
        kind="head",
        size=consumer.in_features // size,
        layer=place.position,
        cuts=(*cuts, *_linear_cuts(model, output, 1, size)),
        gates=(Gate(output, -1, size, _inside(place.block, layout.attention_total)),),
        attributes=(Attribute(path, layout.head_count), Attribute(path, layout.head_width, size)),
        arguments=arguments,
        shared=place.shared,
    )


def _neurons(model: nn.Module, place: Place, layout: Layout) -> UnitGroup:
    output = f"{place.block}.{layout.contract}"
    consumer: Any = model.get_submodule(output)
    return UnitGroup(
        name=f"layers.{place.number}.neurons",
        kind="neuron",
        size=consumer.in_features,
        layer=place.position,
        cuts=(*_linear_cuts(model, f"{place.block}.{layout.expand}", 0), *_linear_cuts(model, output, 1)),
        gates=(Gate(output, -1, 1, _inside(place.block, layout.total)),),
        shared=place.shared,
    )


def _linear_cuts(model: nn.Module, path: str, dim: int, block: int = 1) -> tuple[Cut, ...]:
    """Output features (dim 0, the bias too) or input features (dim 1) of a linear map."""
    cuts: tuple[Cut, ...] = (Cut(f"{path}.weight", dim, block),)
    if dim == 0 and model.get_submodule(path).bias is not None:
        cuts += (Cut(f"{path}.bias", 0, block),)
    return cuts


def _inside(block: str, tap: Tap) -> Tap:
    return Tap(f"{block}.{tap.module}", tap.side)
