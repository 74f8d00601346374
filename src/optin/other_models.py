"""Networks that transformers does not know: timm's, torchvision's, those of `networks.py`, and modules of one's own.

Their folders hold config.json, with the library and the name to make the dense network by, and safetensors. A module
of one's own has no such name: whoever loads its folder passes the dense network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from . import timm_models
from .errors import CheckpointError, DependencyError, InputError, first_line, unknown
from .files import read_json, write_text
from .networks import NETWORKS
from .untrusted import check_arguments, fetches

LIBRARIES = ("timm", "torchvision", "optin")
ORIGIN = "optin_origin"  # where a network of torchvision or of `networks.py` remembers what it is


def is_other(model: nn.Module) -> bool:
    """Whether a network is none of transformers."""
    return not hasattr(model, "save_pretrained")


def of_other(source: str) -> bool:
    """Whether a source is "LIBRARY:NAME" or a folder of such a network."""
    file = Path(source) / "config.json"
    named = source.partition(":")[0] in LIBRARIES and ":" in source
    return named or (file.is_file() and "architecture" in read_json(file))


def create(source: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A network by "LIBRARY:NAME", in evaluation mode.

    Raises:
        InputError: an unknown name, arguments that it does not take, or a hub that cannot be reached.
        DependencyError: the library is not installed, or torchvision does not match torch.
    """
    library, _, name = source.partition(":")
    if library == "timm":
        return timm_models.create(name, pretrained=pretrained, **arguments)
    if library == "optin":
        if name not in NETWORKS:
            raise InputError(unknown("network", name, NETWORKS))
        if pretrained:
            raise InputError(f"{source} has no published weights: pass a folder with trained ones.")
        make: Any = NETWORKS[name]
    else:
        make = _torchvision(name, pretrained)
    try:
        model: nn.Module = make(**arguments)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"cannot make {source!r}: {first_line(error)}") from None
    setattr(model, ORIGIN, {"library": library, "architecture": name, "model_args": arguments})
    return model.eval()


def load_dense(source: str) -> nn.Module:
    """A dense network: "LIBRARY:NAME" with its published weights, or a folder.

    Raises:
        InputError, CheckpointError, DependencyError: as `create` and `fill`.
    """
    folder = Path(source)
    if not folder.is_dir():
        return create(source, pretrained=True)
    model = create_from(folder)
    fill(model, folder)
    return model


def create_from(folder: Path) -> nn.Module:
    """The dense network of a folder, without its weights.

    Raises:
        CheckpointError: the folder names no network that can be made.
    """
    config = read_json(folder / "config.json")
    library, name, arguments = config.get("library", "timm"), config.get("architecture"), config.get("model_args", {})
    if library is None:
        raise CheckpointError(
            f"{folder} holds a {name} of your own making: pass the dense network, optin.load(folder, into=network)."
        )
    if library not in LIBRARIES or not isinstance(name, str) or not isinstance(arguments, dict):
        raise CheckpointError(f"{folder / 'config.json'} names no network of {', '.join(LIBRARIES)}.")
    check_arguments(folder, arguments)
    keywords = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    return create(f"{library}:{name}", **{**keywords, **arguments})


def fill(model: nn.Module, folder: Path) -> None:
    """Read the weights of a folder into a network of the same shapes.

    Raises:
        CheckpointError: weights are missing or of other shapes.
    """
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {first_line(error)}") from None


def save_other(model: nn.Module, folder: Path, section: Mapping[str, Any] | None = None) -> None:
    """Write config.json and the weights."""
    save_origin(model, folder, section)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def save_origin(model: nn.Module, folder: Path, section: Mapping[str, Any] | None = None) -> None:
    """Write config.json: how the dense network is made, with the plan as its section "optin" if there is one."""
    if timm_models.is_timm(model):
        origin = timm_models.describe_creation(model)
    else:
        origin = dict(getattr(model, ORIGIN, {"library": None, "architecture": type(model).__name__}))
    arguments = {name: value for name, value in origin.pop("model_args", {}).items() if not fetches(name)}
    config = {**origin, "model_args": arguments, **({} if section is None else {"optin": section})}
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def processor_settings(source: str) -> dict[str, Any]:
    """How images are prepared for a network, as arguments of an image processor of transformers.

    Raises:
        InputError: nothing is known about it.
    """
    library, _, name = source.partition(":")
    folder = Path(source)
    if folder.is_dir() and (config := read_json(folder / "config.json")).get("library", "timm") == "timm":
        model: Any = create_from(folder)
        model.pretrained_cfg = {**model.pretrained_cfg, **(config.get("pretrained_cfg") or {})}
        return timm_models.processor_settings(model)
    if library == "timm":
        return timm_models.processor_settings(create(source))
    if library == "torchvision":
        preset = _torchvision_weights(name).transforms()
        return {
            "size": {"shortest_edge": int(preset.resize_size[0])},
            "crop_size": {"height": int(preset.crop_size[0]), "width": int(preset.crop_size[0])},
            "resample": 3 if "bicubic" in str(preset.interpolation) else 2,
            "image_mean": list(preset.mean),
            "image_std": list(preset.std),
            "do_convert_rgb": True,
        }
    raise InputError(f"{source} does not say how images are prepared: put a preprocessor_config.json beside it.")


def _torchvision(name: str, pretrained: bool) -> Any:
    models = _models()
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(unknown("torchvision model", name, known))
    weights = _torchvision_weights(name) if pretrained else None
    return lambda **arguments: models.get_model(name, weights=weights, **arguments)


def _torchvision_weights(name: str) -> Any:
    return _models().get_model_weights(name).DEFAULT


def _models() -> Any:
    try:
        from torchvision import models
    except ImportError:
        raise DependencyError("this needs the package 'torchvision' that belongs to your torch.") from None
    except RuntimeError as error:
        raise DependencyError(f"torchvision does not match torch ({first_line(error)}): install its pair.") from None
    return models
