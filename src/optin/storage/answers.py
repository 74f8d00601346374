"""What a network answers, kept beside its weights where only its maker knows how it is made again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..describing.inputs import planned_inputs
from ..errors import CheckpointError, first_line
from ..running.modules import call, inference_mode_of
from ..running.outputs import answers, tolerance_of
from ..space.plans import Plan
from ..support.files import json_text, read_json, write_text
from ..support.untyped import Json

ANSWERS = "answers"  # in config.json
MOST = 64  # numbers that are kept


def answers_of(model: nn.Module, plan: Plan) -> Tensor | None:
    """What it returns for inputs that are always the same; None where inputs made at random are not for it."""
    try:
        with inference_mode_of(model), torch.inference_mode():
            return answers(call(model, planned_inputs(model, plan, 2)))
    except Exception:  # a forward may fail in any way
        return None


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two networks answered the same, up to rounding."""
    share = max(1e-3, tolerance_of(one))
    return one.shape == other.shape and bool(
        torch.allclose(one, other, rtol=share, atol=share * float(one.abs().max()))
    )


def keep_answers(model: nn.Module, plan: Plan, folder: Path) -> None:
    """Write some of its answers into config.json."""
    found = answers_of(model, plan)
    if found is None or not found.numel() or not bool(found.isfinite().all()):
        return
    kept = {"shape": list(found.shape), "values": _some(found).tolist()}
    write_text(folder / "config.json", json_text({**read_json(folder / "config.json"), ANSWERS: kept}))


def check_answers(model: nn.Module, plan: Plan, config: Mapping[str, Json]) -> None:
    """Warn of a network that answers otherwise than the one that was saved.

    Raises:
        CheckpointError: what was kept is damaged.
    """
    if (kept := config.get(ANSWERS)) is None or (found := answers_of(model, plan)) is None:
        return
    try:
        shape, values = torch.Size(kept["shape"]), torch.tensor(kept["values"], dtype=torch.float32).flatten()
    except (TypeError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{ANSWERS!r} in config.json is damaged: {first_line(error)}") from error
    if found.shape == shape and alike(values, _some(found)):
        return
    warnings.warn(
        f"this {type(model).__name__} answers otherwise than the network that was saved: make it as that one was "
        "made (heads, activations, options), then load into it.",
        stacklevel=3,
    )


def _some(values: Tensor) -> Tensor:
    flat = values.flatten().float().cpu()
    return flat[:: -(-len(flat) // MOST)]
