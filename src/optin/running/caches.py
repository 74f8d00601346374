"""What a network that generates keeps of every token: keys and values."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from ..errors import FAILURES
from ..support.untyped import Foreign
from .batch import Batch
from .modules import call, inference_mode_of


def generates(model: Foreign) -> bool:
    """Whether a network makes texts token by token, as those of transformers say it."""
    return hasattr(model, "can_generate") and bool(model.can_generate())


@torch.inference_mode()
def cache_bytes(model: nn.Module, inputs: Batch) -> int | None:
    """Bytes that one more token of one example takes in the cache; None of a network that keeps none.

    Of encoder-decoders what is said is counted, not what is read.
    """
    if not generates(model):
        return None
    cache = None
    with inference_mode_of(model), contextlib.suppress(*FAILURES):  # a forward that takes no `use_cache`, say
        cache = getattr(call(model, {**inputs, "use_cache": True}), "past_key_values", None)
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    # A layer whose attention is gone has a place in the cache that was never filled.
    filled = [layer for layer in layers if getattr(layer, "is_initialized", True)]
    kept = [value for layer in filled for value in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    known = [value for value in kept if isinstance(value, Tensor) and value.dim() == 4]
    if not known or len(known) < len(kept):
        return None
    # Of shape (example, head, token, feature).
    return sum(value.shape[1] * value.shape[3] * value.element_size() for value in known)
