"""What is checked in a checkpoint before any library meets it: its author need not be a friend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import CheckpointError
from .files import read_json

LARGEST = 10**7  # number in a configuration: beyond any vocabulary, width or image
BLOCKS = 1000  # that a network may have whatever its weights, since blocks may share them
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
FETCHING = ("checkpoint_path", "cache_dir", "weights", "weights_backbone")  # and what begins with "pretrained"
ADAPTER = "adapter_config.json"


def check_folder(folder: Path, config: Any) -> None:
    """Refuse what is damaged, asks for absurd memory, reads outside of the folder or runs other code than installed.

    Args:
        config: what config.json holds.

    Raises:
        CheckpointError: says what is wrong.
    """
    tensors = _check_weights(folder)
    if (folder / ADAPTER).exists():
        raise CheckpointError(f"{folder} holds an adapter, whose weights are none of the pruned network: {ADAPTER}.")
    for name, value in _entries({key: value for key, value in config.items() if key != "optin"}):
        if isinstance(value, int):
            _check_size(name, value, tensors)
        # Other names are those of kernels, which the library fetches from the hub and runs.
        if "_implementation" in name and value not in (None, *ATTENTIONS):
            raise CheckpointError(
                f"config.json asks for the kernels {value!r:.60}, which may be code from elsewhere."
            )
        if name == "quantization_config" and value is not None:
            raise CheckpointError("config.json asks for a quantised network; checkpoints of optin hold none.")


def fetches(argument: str) -> bool:
    """Whether an argument of a network makes its library fetch or read weights."""
    return argument in FETCHING or argument.startswith("pretrained")


def check_arguments(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a network that make its library fetch or read other weights than those beside them.

    Raises:
        CheckpointError: names the argument.
    """
    for name in arguments:
        if fetches(name):
            raise CheckpointError(f"{folder / 'config.json'} asks for weights from elsewhere: {name!r}.")


def _check_weights(folder: Path) -> int:
    """Report truncated or damaged files as such; returns how many tensors there are.

    Nothing outside of the folder is read: an index of parts may name only files that lie beside it.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors weights.")
    for index in folder.glob("*.index.json"):
        parts = read_json(index)
        named = parts.get("weight_map") if isinstance(parts, dict) else None
        if not isinstance(named, dict) or not set(map(str, named.values())) <= {file.name for file in files}:
            raise CheckpointError(f"{index} names weights that do not lie beside it.")
    tensors = 0
    for file in files:
        try:
            with safe_open(file, "pt") as handle:
                tensors += len(handle.keys())
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged: {error}") from None
    return tensors


def _check_size(name: str, value: int, tensors: int) -> None:
    """Numbers beyond all networks, and more blocks than there are weights for."""
    if abs(value) > LARGEST:
        raise CheckpointError(f"config.json asks for {name!r} of {value}, which no network has.")
    if ("layers" in name or "depth" in name) and value > max(tensors, BLOCKS):
        raise CheckpointError(f"config.json asks for {name!r} of {value}, and there are only {tensors} tensors.")


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a configuration, with the name that it stands under; parts after the whole."""
    yield name, value
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _entries(part, str(key))
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part, name)
