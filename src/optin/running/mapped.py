"""Weights in files that are mapped into memory: the system pages them out where it needs the room."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..support.files import disk_errors


def copied(model: nn.Module, offload: bool) -> nn.Module:
    """A copy of a network that shares nothing with it; its weights in a file if memory is short (`Recipe.offload`).

    Weights on other devices than the CPU stay there. The files have no names when they are mapped: their room is
    free again when the last tensor in them is gone.
    """
    if not offload:
        return copy.deepcopy(model)
    memo: dict[int, object] = {}
    for value in model.parameters():
        memo[id(value)] = nn.Parameter(_mapped(value.detach()), value.requires_grad)
    memo |= {id(value): _mapped(value) for value in model.buffers()}
    return copy.deepcopy(model, memo)


def into_files(model: nn.Module, offload: bool) -> None:
    """Put what a network has in memory into files, in place, if memory is short."""
    for value in [*model.parameters(), *model.buffers()] if offload else ():
        if value.device.type == "cpu" and not value.untyped_storage().filename:
            value.data = _mapped(value.data)


def _mapped(value: Tensor) -> Tensor:
    """A copy in a file."""
    if value.device.type != "cpu" or not value.numel():
        return value.clone()
    with disk_errors(Path(tempfile.gettempdir())), tempfile.NamedTemporaryFile(prefix="optin-") as file:
        file.truncate(value.nbytes)
        flat = torch.from_file(file.name, shared=True, size=value.numel(), dtype=value.dtype)
    strides = torch.empty_like(value, device="meta").stride()  # as those of a clone
    return flat.as_strided(value.shape, strides).copy_(value)
