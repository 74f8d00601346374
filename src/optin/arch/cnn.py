"""Convolutional networks of any make: groups of channels, found by tracing (`graph.py`).

From transformers those named below; from timm, torchvision and elsewhere whatever can be traced.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from ..errors import ArchitectureError
from ..units import UnitSpace
from .graph import channel_space
from .inputs import example_inputs, image_input, image_side
from .layers import architecture_of

MODEL_TYPES = ("convnext", "resnet")

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
        found = (shapes, channel_space(model, example_inputs(model, image_side(model), 2), architecture))
        _known[model] = found
    return found[1]
