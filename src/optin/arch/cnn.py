"""Convolutional and segmentation networks of any make: channels and neurons, found by tracing (`graph.py`).

From transformers those named below; from timm, torchvision and elsewhere whatever can be traced.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ArchitectureError
from ..modules import device_of
from ..units import UnitSpace
from .graph import channel_space
from .inputs import example_inputs, image_input, image_side
from .layers import architecture_of

MODEL_TYPES = ("convnext", "efficientnet", "mask2former", "mobilenet_v2", "resnet", "segformer", "upernet")

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
        with _with_weights(model) as real:
            found = (shapes, channel_space(real, example_inputs(real, image_side(real), 2), architecture))
        _known[model] = found
    return found[1]


@contextlib.contextmanager
def _with_weights(model: nn.Module) -> Iterator[nn.Module]:
    """The network; while it is being loaded another of its kind on the CPU, since not every forward runs without."""
    if device_of(model).type != "meta":
        yield model
        return
    kind: Any = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    with torch.device("cpu"):
        yield kind(model.config).eval()
