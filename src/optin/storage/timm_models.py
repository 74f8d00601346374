"""timm models: by name, and in folders laid out as timm lays them out on the hub."""

from __future__ import annotations

from torch import nn

from ..errors import CheckpointError, DependencyError, InputError, first_line, unknown
from ..support.untyped import Figures, Foreign

ARGUMENTS = "optin_arguments"  # where a model remembers what it was created with


def is_timm(model: nn.Module) -> bool:
    """Whether a network is one of timm's."""
    return type(model).__module__.startswith("timm.models.")


def create(name: str, *, pretrained: bool = False, **arguments: object) -> nn.Module:
    """A timm model in evaluation mode, which remembers what it was created with.

    Raises:
        DependencyError: timm is not installed, or torchvision does not match torch.
        InputError: an unknown name, arguments that it does not take, or a hub that cannot be reached.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:8]}*")[:8]
        raise InputError(unknown("timm model", name, near or ["see timm.list_models()"]))
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except CheckpointError:
        raise
    except Exception as error:  # whatever timm does with arguments that are none of the model's
        raise InputError(f"cannot make the timm model {name!r:.80}: {first_line(error)}") from error
    setattr(model, ARGUMENTS, {"architecture": name, **arguments})
    return model.eval()


def describe_creation(model: Foreign) -> Figures:
    """What a folder must say so that the dense network can be made again."""
    remembered = dict(getattr(model, ARGUMENTS, {}))
    settings = getattr(model, "pretrained_cfg", None) or {}
    name = remembered.pop("architecture", None) or settings.get("architecture")
    if name is None:
        raise CheckpointError(
            "this timm model does not say which one it is: make it with timm.create_model, or with "
            "optin.storage.timm_models.create if it takes arguments."
        )
    arguments = {"num_classes": model.num_classes, **_pooling(model), **remembered}
    side = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if side is not None:
        arguments.setdefault("img_size", list(side))
    known = ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes")
    return {
        "architecture": name,
        **{key: arguments.pop(key) for key in ("num_classes", "global_pool") if key in arguments},
        "model_args": arguments,
        "pretrained_cfg": {key: settings[key] for key in known if key in settings},
    }


def _pooling(model: object) -> dict[str, str]:
    """How the last map becomes a vector: a word, or what a module or the head says of itself."""
    places = (model, getattr(model, "head", None))
    pooling = next((found for place in places if (found := getattr(place, "global_pool", None)) is not None), None)
    kind = getattr(pooling, "pool_type", pooling)
    return {"global_pool": kind} if isinstance(kind, str) and kind else {}


def processor_settings(model: Foreign) -> Figures:
    """How images are prepared for a timm model, as arguments of an image processor of transformers."""
    settings = model.pretrained_cfg
    side = int(model.patch_embed.img_size[0]) if hasattr(model, "patch_embed") else int(settings["input_size"][-1])
    resample = {"nearest": 0, "lanczos": 1, "bilinear": 2}.get(settings.get("interpolation", ""), 3)
    return {
        "size": {"shortest_edge": round(side / (settings.get("crop_pct") or 1.0))},
        "crop_size": {"height": side, "width": side},
        "resample": resample,
        "image_mean": list(settings.get("mean", (0.5, 0.5, 0.5))),
        "image_std": list(settings.get("std", (0.5, 0.5, 0.5))),
        "do_convert_rgb": True,
    }


def _timm() -> Foreign:
    try:
        import timm
    except ImportError:
        raise DependencyError("timm models need the package 'timm': pip install 'optin[timm]'") from None
    except RuntimeError as error:
        raise DependencyError(
            f"timm cannot be imported ({first_line(error)}): torchvision does not match torch. Install the "
            "torchvision that was released with your torch, for example torch 2.14.1 with torchvision 0.29.1."
        ) from None
    return timm
