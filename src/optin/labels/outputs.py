"""The tensors in whatever a network returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def tensors_of(output: Any) -> list[Tensor]:
    """In order; of mappings, lists and tuples those inside. Caches of keys and values are no answers."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [value for part in parts for value in tensors_of(part)]
