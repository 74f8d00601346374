"""Times that were measured before, kept by what they depend on: the network, its inputs, the machine."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import OptinError
from ..running.batch import Batch
from ..running.cost import Term
from ..running.modules import device_of
from ..space.units import UnitSpace
from ..support.files import cache_folder, read_json, write_text

MOST = 10**18  # picoseconds: ten days

Key = dict[str, object]


def key_of(model: nn.Module, space: UnitSpace, inputs: Batch) -> Key:
    """What the latency of a network depends on."""
    device = device_of(model)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "architecture": space.architecture,
        "parameters": [[name, str(value.dtype), list(value.shape)] for name, value in model.named_parameters()],
        "channels_last": [name for name, value in model.named_parameters() if _channels_last(value)],
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "inputs": {name: _form(value) for name, value in inputs.items()},
        "machine": [platform.node(), platform.machine(), str(device), kind],
        "threads": torch.get_num_threads(),
        "parts": sum(not group.min_keep for group in space),
        "torch": torch.__version__,
    }


def _channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def _form(value: object) -> object:
    """Of an input: its shape, type and memory format, or what it is."""
    if not isinstance(value, Tensor):
        return value
    return [list(value.shape), str(value.dtype), _channels_last(value)]


def kept_terms(key: Key, space: UnitSpace) -> list[Term] | None:
    """The terms that were measured for this key; None if there are none, or anything else than optin writes."""
    try:
        data = read_json(_file(key))
    except OptinError:
        return None
    if not isinstance(data, dict) or data.get("key") != key or not isinstance(data.get("terms"), list):
        return None
    if not all(_is_term(row, space) for row in data["terms"]):
        return None
    return [Term(module, amount, tuple(groups), there=there) for module, amount, groups, there in data["terms"]]


def keep_terms(key: Key, terms: Sequence[Term]) -> None:
    """Keep what was measured."""
    rows = [[term.module, term.amount, list(term.groups), term.there] for term in terms]
    write_text(_file(key), json.dumps({"key": key, "terms": rows}) + "\n")


def _file(key: Key) -> Path:
    return cache_folder() / "latency" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"


def _is_term(row: object, space: UnitSpace) -> bool:
    if not isinstance(row, list) or len(row) != 4:
        return False
    module, amount, groups, there = row
    known = isinstance(groups, list) and all(isinstance(name, str) and name in space.sizes for name in groups)
    known = known and (there is None or (isinstance(there, str) and there in space.sizes))
    return known and isinstance(module, str) and type(amount) is int and 0 <= amount < MOST
