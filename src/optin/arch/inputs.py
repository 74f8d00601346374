"""What a network takes: tokens, images or both, and how large they may be."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modules import device_of


def takes(model: nn.Module, name: str) -> bool:
    """Whether the forward has an argument of this name, for example "pixel_values"."""
    return name in inspect.signature(model.forward).parameters


def default_length(model: nn.Module) -> int:
    """Length at which MACs are counted if nothing else is known: 128 tokens, or the image side in pixels."""
    return _image_side(model) if image_input(model) else 128


def image_input(model: nn.Module) -> str | None:
    """The name of the argument that takes images; None if there is none."""
    return next((name for name in ("pixel_values", "x") if takes(model, name)), None)


def example_inputs(model: nn.Module, length: int, batch: int = 1) -> dict[str, Tensor]:
    """Random inputs: `length` is in tokens for a text encoder, in pixels of a side for an image encoder.

    Raises:
        InputError: the model has fewer positions than `length`.
    """
    device, generator = device_of(model), torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {}
    images = image_input(model)
    if images is not None:
        shape = (batch, _channels(model), length, length)
        inputs[images] = torch.randn(shape, generator=generator).to(device, next(model.parameters()).dtype)
    if takes(model, "input_ids"):
        config: Any = model.config
        text = getattr(config, "text_config", config)
        limit = max_positions(model)
        tokens = text.max_position_embeddings if images is not None else length
        if limit is not None and tokens > limit:
            raise InputError(f"the length {length} is beyond the {limit} tokens of this model. Ask for less.")
        # Token 0 to 4 are special in most vocabularies; padding among them would change the positions.
        ids = torch.randint(5, text.vocab_size, (batch, tokens), generator=generator)
        inputs |= {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    return inputs


def max_positions(model: nn.Module) -> int | None:
    """The longest sequence that a network takes, in tokens; None where there is no limit."""
    config: Any = getattr(model, "config", None)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None or getattr(config, "position_biased_input", True) is False:
        return None
    # These count positions from behind the padding index.
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return limit - offset


def _image_side(model: nn.Module) -> int:
    network: Any = model
    if not hasattr(model, "config"):
        side = network.patch_embed.img_size
    else:
        side = getattr(network.config, "vision_config", network.config).image_size
    return int(side if isinstance(side, int) else side[0])


def _channels(model: nn.Module) -> int:
    network: Any = model
    if not hasattr(model, "config"):
        return int(network.patch_embed.proj.in_channels)
    return int(getattr(getattr(network.config, "vision_config", network.config), "num_channels", 3))
