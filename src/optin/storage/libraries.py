"""Networks that transformers does not know: timm's, torchvision's, those of `networks.py`, and classes of one's own.

Their folders hold config.json, with the library and the name to make the dense network by, and safetensors. A module
of one's own has no such name: whoever loads its folder passes the dense network.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import CheckpointError, DependencyError, InputError, first_line, unknown
from ..running.modules import in_precision
from ..support.files import read_json, write_text
from ..support.untyped import Figures, Foreign
from . import timm_models
from .networks import NETWORKS
from .untrusted import Stored, check_arguments, check_folder, fetches

LIBRARIES = ("timm", "torchvision", "optin")
ORIGIN = "optin_origin"  # where a network of torchvision or of `networks.py` remembers what it is


def is_other(model: nn.Module) -> bool:
    """Whether transformers cannot make a network by the name of its class, as none of one's own classes."""
    if not hasattr(model, "save_pretrained"):
        return True
    import transformers

    kind: Foreign = type(model)
    known: object = getattr(transformers, kind.__name__, None)
    if not (inspect.isclass(known) and isinstance(model, known)):
        return True
    library: Foreign = known
    return bool(kind.forward is not library.forward)


def of_other(source: str) -> bool:
    """Whether a source is "LIBRARY:NAME" or a folder of such a network."""
    file = Path(source) / "config.json"
    named = source.partition(":")[0] in LIBRARIES and ":" in source
    return named or (file.is_file() and isinstance(config := read_json(file), dict) and "architecture" in config)


def create(source: str, *, pretrained: bool = False, **arguments: object) -> nn.Module:
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
        make: Foreign = NETWORKS[name]
    else:
        make = _torchvision(name, pretrained)
    try:
        model: nn.Module = make(**arguments)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a library does with arguments that are none of its own
        raise InputError(f"cannot make {source!r:.80}: {first_line(error)}") from error
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
    model = make_within(folder, check_folder(folder, read_json(folder / "config.json")))
    fill(model, folder)
    return model


def create_from(folder: Path) -> nn.Module:
    """The dense network of a folder, without its weights.

    Raises:
        CheckpointError: the folder names no network that can be made.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} names no network of {', '.join(LIBRARIES)}.")
    library, name, arguments = config.get("library", "timm"), config.get("architecture"), config.get("model_args", {})
    if library is None:
        raise CheckpointError(
            f"{folder} holds {name}, a network of your own making, which only Python can make: pass the dense one, "
            "optin.load(folder, into=network)."
        )
    if library not in LIBRARIES or not isinstance(name, str) or not isinstance(arguments, dict):
        raise CheckpointError(f"{folder / 'config.json'} names no network of {', '.join(LIBRARIES)}.")
    check_arguments(folder, arguments)
    keywords = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    return create(f"{library}:{name}", **{**keywords, **arguments})


def make_within(folder: Path, stored: Stored) -> nn.Module:
    """`create_from`, once without memory before it is made: nothing that the weights cannot be of.

    Raises:
        CheckpointError: the folder names no network that can be made, or one that is far too large.
    """
    with stored.bounded():
        try:
            with torch.device("meta"):
                create_from(folder)
        except (NotImplementedError, InputError):
            pass  # some count in tensors while they are made; what is wrong with the arguments is said below
        return create_from(folder)


def fill(model: nn.Module, folder: Path) -> None:
    """Read the weights of a folder into a network of the same shapes, which takes on their precision.

    Raises:
        CheckpointError: weights are missing or of other shapes.
    """
    try:
        weights = load_file(folder / "model.safetensors")
        _take_on(model, weights)
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (RuntimeError, OSError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]  # what differs stands behind the first line
        raise CheckpointError(f"{folder} cannot be loaded: {said}") from None
    state = model.state_dict()
    filled = {_place(state[name]) for name in weights if name in state}
    if lacking := [name for name in missing if name in state and _place(state[name]) not in filled]:
        raise CheckpointError(f"{folder} lacks the weights of {lacking[0]!r} ({len(lacking)} in all).")
    if unexpected:
        raise CheckpointError(f"{folder} holds weights of {unexpected[0]!r}, which the network has not.")


def _take_on(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give tensors the types of those stored, and buffers that are not stored the precision of the others."""
    precisions = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(precisions) == 1:
        in_precision(model, precisions.pop())
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        if name in weights:
            value.data = value.data.to(weights[name].dtype)


def named(folder: Path) -> bool:
    """Whether config.json of such a network says by which name it is made."""
    return read_json(folder / "config.json").get("library", "timm") is not None


def save_other(
    model: nn.Module, folder: Path, section: Mapping[str, object] | None = None, *, own: bool = False
) -> None:
    """Write config.json and the weights; what several names share is written once.

    Args:
        own: as a network of one's own making, whatever made it.
    """
    save_origin(model, folder, section, own=own)
    weights: dict[str, Tensor] = {}
    places, storages = set(), set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name!r} of the network is no tensor: it cannot be saved in safetensors.")
        if _place(value) in places and value.numel():
            continue
        places.add(_place(value))
        storage = value.untyped_storage().data_ptr()
        weights[name] = value.clone().contiguous() if storage in storages else value.contiguous()
        storages.add(storage)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _place(value: Tensor) -> tuple[object, ...]:
    return (value.data_ptr(), value.shape, value.stride(), value.dtype)


def save_origin(
    model: nn.Module, folder: Path, section: Mapping[str, object] | None = None, *, own: bool = False
) -> None:
    """Write config.json: how the dense network is made, with the plan as its section "optin" if there is one."""
    unknown_origin: Figures = {"library": None, "architecture": type(model).__name__}
    if own:
        origin = unknown_origin
    elif timm_models.is_timm(model):
        origin = timm_models.describe_creation(model)
    else:
        origin = dict(getattr(model, ORIGIN, unknown_origin))
    arguments = {name: value for name, value in origin.pop("model_args", {}).items() if not fetches(name)}
    settings: object = getattr(model, "config", None)
    known = json.loads(settings.to_json_string(use_diff=False)) if hasattr(settings, "to_json_string") else {}
    config = {**known, **origin, "model_args": arguments, **({} if section is None else {"optin": section})}
    try:
        text = json.dumps(config, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{type(model).__name__} was made with arguments that no file holds ({first_line(error)}): make it with "
            "plain numbers and words."
        ) from None
    write_text(folder / "config.json", text)


def processor_settings(source: str) -> Figures:
    """How images are prepared for a network, as arguments of an image processor of transformers.

    Raises:
        InputError: nothing is known about it.
    """
    library, _, name = source.partition(":")
    folder = Path(source)
    if folder.is_dir() and (config := read_json(folder / "config.json")).get("library", "timm") == "timm":
        model: Foreign = create_from(folder)
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


def _torchvision(name: str, pretrained: bool) -> object:
    models = _models()
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(unknown("torchvision model", name, known))
    weights = _torchvision_weights(name) if pretrained else None
    return lambda **arguments: models.get_model(name, weights=weights, **arguments)


def _torchvision_weights(name: str) -> Foreign:
    return _models().get_model_weights(name).DEFAULT


def _models() -> Foreign:
    try:
        from torchvision import models
    except ImportError:
        raise DependencyError("this needs the package 'torchvision' that belongs to your torch.") from None
    except RuntimeError as error:
        raise DependencyError(f"torchvision does not match torch ({first_line(error)}): install its pair.") from None
    return models
