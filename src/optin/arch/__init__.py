"""Architectures: each module here turns a network into a `UnitSpace`, and nothing else knows their names.

To add one, write `arch/NAME.py` with `MODEL_TYPES` and `describe(model) -> UnitSpace` and list it below, or
publish an entry point `optin.architectures` that names such a module. Then run the contract suite on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from ..errors import ArchitectureError, unknown
from ..units import UnitSpace
from . import albert, bert, deberta_v2, distilbert, mpnet

Describe = Callable[[nn.Module], UnitSpace]


def architectures() -> Mapping[str, Describe]:
    """Every known `config.model_type` and the function that describes it."""
    modules = [albert, bert, deberta_v2, distilbert, mpnet]
    modules += [entry.load() for entry in entry_points(group="optin.architectures")]
    return {kind: module.describe for module in modules for kind in module.MODEL_TYPES}


def describe(model: nn.Module) -> UnitSpace:
    """What can be removed from a network.

    Args:
        model: a transformers encoder, bare or with a head.

    Raises:
        ArchitectureError: the network is of no known architecture; the message lists those known.
    """
    known = architectures()
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None:
        raise ArchitectureError(
            f"{type(model).__name__} is not a transformers model (it has no config.model_type). "
            f"Known: {', '.join(sorted(known))}."
        )
    if kind not in known:
        raise ArchitectureError(unknown("architecture", kind, known))
    return known[kind](model)


def max_positions(model: nn.Module) -> int | None:
    """The longest sequence that a network takes, in tokens; None where there is no limit."""
    config: Any = getattr(model, "config", None)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None or getattr(config, "position_biased_input", True) is False:
        return None
    # These count positions from behind the padding index.
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return limit - offset
