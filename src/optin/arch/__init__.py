"""Architectures: each module here turns a network into a `UnitSpace`, and nothing else knows their names.

What none of them knows is described by the labels of one forward (`optin.labels`). A package describes networks of
its own by an entry point `optin.architectures`: a module with `MODEL_TYPES` (values of `config.model_type`, or names
of classes) and `describe(model, inputs) -> UnitSpace`, where `inputs` are keyword inputs of two examples or None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points, version
from inspect import signature
from typing import Any

import torch
from torch import nn

from .. import labels
from ..errors import ArchitectureError, first_line
from ..modules import inference_mode_of
from ..twins import on_twins
from ..units import UnitSpace
from . import albert, beit, bert, clip, deberta_v2, dinov2, distilbert, mpnet, swin, timm, vit
from .inputs import example_inputs, image_input, image_side, with_weights
from .layers import architecture_of
from .refusals import check_network, check_shared

TOKENS = 8  # of a text, in the forward that labels travel through

Describe = Callable[[nn.Module], UnitSpace]


def architectures() -> Mapping[str, Describe]:
    """Every known `config.model_type` and the function that describes it."""
    modules = [albert, beit, bert, clip, deberta_v2, dinov2, distilbert, mpnet, swin, timm, vit]
    modules += [entry.load() for entry in entry_points(group="optin.architectures")]
    return {kind: module.describe for module in modules for kind in module.MODEL_TYPES}


@on_twins
def describe(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> UnitSpace:
    """What can be removed from a network.

    Args:
        model: any module, with its weights.
        inputs: keyword inputs of two examples; without them some are made by the network's configuration and the
            names of its arguments, where these say enough.

    Raises:
        InputError: no network, or one in a wrapper.
        ArchitectureError: a forward that cannot be followed, nothing that can be cut, or weights that are not the
            network's own; the message names what stands in the way.
    """
    check_network(model)
    space = _describe(model, inputs)
    check_shared(model, space)
    return space


def _labelled(model: nn.Module, kind: str | None, inputs: Mapping[str, Any] | None) -> UnitSpace:
    """By the labels of one forward, see `optin.labels`."""
    # While a network without weights is made, ours are on the CPU still.
    meta = torch.get_default_device().type == "meta"
    with with_weights(model) as real, torch.device("cpu") if meta else contextlib.nullcontext():
        if inputs is None:
            inputs = _made_up(real)
        return labels.describe(real, inputs, kind or type(model).__name__)


def _made_up(model: nn.Module) -> dict[str, Any]:
    """Random inputs as a configuration and the names of arguments say.

    Raises:
        ArchitectureError: the network takes something else; says what to pass.
    """
    try:
        inputs = example_inputs(model, image_side(model) if image_input(model) else TOKENS, 2)
        with inference_mode_of(model), torch.no_grad():
            model(**inputs)
    except Exception as error:  # on inputs that are none of its own a forward may fail in any way
        raise ArchitectureError(
            f"nothing says what {type(model).__name__} takes ({first_line(error):.160}). Pass some of its inputs: "
            "optin.inspect(model, example=batch), or --data on the command line."
        ) from error
    return inputs


def _describe(model: nn.Module, inputs: Mapping[str, Any] | None) -> UnitSpace:
    known = architectures()
    kind = architecture_of(model)
    name = next((name for name in (kind, type(model).__name__) if name in known), None)
    if name is None:
        return _labelled(model, kind, inputs)
    describer: Any = known[name]
    try:
        space: UnitSpace = describer(model, inputs) if len(signature(describer).parameters) > 1 else describer(model)
        return space
    except AttributeError as error:
        raise ArchitectureError(
            f"the modules of this {type(model).__name__} are not those that optin knows ({first_line(error)}): they "
            f"are named otherwise in transformers {version('transformers')}. Install the version that optin is "
            "tested with: constraints.txt of its repository."
        ) from error
