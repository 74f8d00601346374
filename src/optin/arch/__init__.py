"""Architectures: each module here turns a network into a `UnitSpace`, and nothing else knows their names.

To add one, write `arch/NAME.py` with `MODEL_TYPES` and `describe(model) -> UnitSpace` and list it below, or
publish an entry point `optin.architectures` that names such a module. Then run the contract suite on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points, version

from torch import nn

from .. import labels
from ..errors import ArchitectureError, first_line
from ..units import UnitSpace
from . import albert, beit, bert, clip, cnn, deberta_v2, dinov2, distilbert, mpnet, swin, timm, vit
from .inputs import example_inputs, image_input, image_side
from .layers import architecture_of
from .refusals import check_network, check_shared

TOKENS = 8  # of a text, in the forward that labels travel through

Describe = Callable[[nn.Module], UnitSpace]


def architectures() -> Mapping[str, Describe]:
    """Every known `config.model_type` and the function that describes it."""
    modules = [albert, beit, bert, clip, cnn, deberta_v2, dinov2, distilbert, mpnet, swin, timm, vit]
    modules += [entry.load() for entry in entry_points(group="optin.architectures")]
    return {kind: module.describe for module in modules for kind in module.MODEL_TYPES}


def describe(model: nn.Module) -> UnitSpace:
    """What can be removed from a network.

    Args:
        model: a transformers encoder of text or images, bare or with a head, or a convolutional network of any make.

    Raises:
        InputError: no network, or one in a wrapper.
        ArchitectureError: a network of transformers of no known architecture (the message lists those known), one
            of another make that cannot be traced, or one whose weights are not its own; the message names what stops
            it.
    """
    check_network(model)
    space = _describe(model)
    check_shared(model, space)
    return space


def _labelled(model: nn.Module, kind: str | None) -> UnitSpace:
    """By the labels of one forward, see `optin.labels`."""
    with cnn.with_weights(model) as real:
        length = image_side(real) if image_input(real) else TOKENS
        return labels.describe(real, example_inputs(real, length, 2), kind or type(model).__name__)


def _describe(model: nn.Module) -> UnitSpace:
    known = architectures()
    kind = architecture_of(model)
    if kind is None or (kind not in known and kind.startswith("timm.")):
        try:
            return cnn.describe(model)
        except ArchitectureError as error:
            with contextlib.suppress(ArchitectureError):
                return _labelled(model, kind)
            raise error from None
    if kind not in known:
        return _labelled(model, kind)
    try:
        return known[kind](model)
    except AttributeError as error:
        raise ArchitectureError(
            f"the modules of this {type(model).__name__} are not those that optin knows ({first_line(error)}): they "
            f"are named otherwise in transformers {version('transformers')}. Install the version that optin is "
            "tested with: constraints.txt of its repository."
        ) from error
