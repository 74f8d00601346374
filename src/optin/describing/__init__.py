"""What a network takes, what is refused, and what can be removed.

Networks are described by the labels of one forward (`labels`). A package describes networks of its own by an entry
point `optin.architectures`: a module with `MODEL_TYPES` (values of `config.model_type`, or names of classes)
and `describe(model, inputs) -> UnitSpace`, where `inputs` are keyword inputs of two examples. It is asked first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import torch
from torch import nn

from ..errors import ArchitectureError, first_line
from ..running.modules import call, inference_mode_of
from ..running.twins import on_twins
from ..space.units import UnitSpace
from ..support.untyped import Arguments
from . import labels
from .inputs import example_inputs, image_input, image_side, with_weights
from .refusals import check_network, check_shared

TOKENS = 8  # of a text, in the forward that labels travel through

Describe = Callable[[nn.Module, Mapping[str, object]], UnitSpace]


def architectures() -> Mapping[str, Describe]:
    """What other packages describe, by `config.model_type` or the name of a class."""
    modules = [entry.load() for entry in entry_points(group="optin.architectures")]
    return {kind: module.describe for module in modules for kind in module.MODEL_TYPES}


def architecture_of(model: nn.Module) -> str:
    """`config.model_type` of a transformers model; "timm." and its class for a timm model; the class of others."""
    kind = type(model).__name__
    if type(model).__module__.startswith("timm.models."):
        return f"timm.{kind}"
    return getattr(getattr(model, "config", None), "model_type", None) or kind


@on_twins
def describe(
    model: nn.Module, inputs: Mapping[str, object] | None = None, *, parts: bool = False, queries: bool = False
) -> UnitSpace:
    """What can be removed from a network.

    Args:
        model: any module, with its weights.
        inputs: keyword inputs of two examples; without them some are made by the network's configuration and the
            names of its arguments, where these say enough.
        parts: say too which groups may go as a whole, which takes longer to find.
        queries: where heads share keys and values, equally many of every group are units, not whole groups.

    Raises:
        InputError: no network, or one in a wrapper.
        ArchitectureError: a forward that cannot be followed, nothing that can be cut, or weights that are not the
            network's own; the message names what stands in the way.
    """
    check_network(model)
    space = _describe(model, inputs, parts, queries)
    check_shared(model, space)
    return space


def _describe(model: nn.Module, inputs: Mapping[str, object] | None, parts: bool, queries: bool) -> UnitSpace:
    known = architectures()
    name = next((name for name in (architecture_of(model), type(model).__name__) if name in known), None)
    # While a network without weights is made, ours are on the CPU still.
    meta = torch.get_default_device().type == "meta"
    with with_weights(model, labels.LARGE) as real, torch.device("cpu") if meta else contextlib.nullcontext():
        if inputs is None:
            inputs = _made_up(real)
        if name is None:
            return labels.describe(real, inputs, architecture_of(model), parts=parts, queries=queries)
        space = known[name](real, inputs)
        return (
            space if space.products else dataclasses.replace(space, products=labels.products_of(real, space, inputs))
        )


def _made_up(model: nn.Module) -> Arguments:
    """Random inputs as a configuration and the names of arguments say.

    Raises:
        ArchitectureError: the network takes something else; says what to pass.
    """
    try:
        inputs = example_inputs(model, image_side(model) if image_input(model) else TOKENS, 2)
        with inference_mode_of(model), torch.no_grad():
            call(model, inputs)
    except Exception as error:  # on inputs that are none of its own a forward may fail in any way
        raise ArchitectureError(
            f"nothing says what {type(model).__name__} takes ({first_line(error).rstrip('.'):.160}). Pass some of "
            "its inputs, in Python: optin.describe(model, batch), optin.inspect(model, example=batch). On "
            "the command line --data is for texts and images."
        ) from error
    return inputs
