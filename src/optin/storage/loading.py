"""Load what was saved: an object of the original class, or weights into a network of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..describing import architectures
from ..errors import CheckpointError, DependencyError, InputError, OptinError, first_line
from ..running.modules import align, in_precision
from ..space.plans import Plan
from ..support.files import given, read_json
from ..support.untyped import Foreign, Json
from .answers import check_answers
from .libraries import fill, make_within
from .planned import SECTION, auto_class, cut_to_plan, record_plan, shrinking, shrinking_within
from .silenced import silenced
from .untrusted import check_folder


def load(folder: str | Path, *, into: nn.Module | None = None, **options: Foreign) -> nn.Module:
    """Load what `save` wrote: an object of the original class, in evaluation mode.

        model = optin.load("small")
        own = optin.load("small-own", into=MyNetwork())

    Of networks of transformers its class is one that adds to `save_pretrained` what the Auto classes need.

    Args:
        into: a dense network made as the one that was pruned, where the folder cannot make it: of a class of your
            own, or of timm or torchvision and not loaded by name through optin; it is cut and filled in place. A
            warning says when it answers otherwise than the one that was saved.
        options: passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...).

    Raises:
        InputError: no such folder, or not written by optin.
        CheckpointError: a plan that does not fit, or weights that are missing, damaged or of other shapes.
    """
    path = given(folder)
    section = manifest(path)
    config = read_json(path / "config.json")
    stored = check_folder(path, config)
    stored.check_plan(section)
    plan = Plan.from_dict(section)
    if "architecture" in config:
        network = make_within(path, stored) if into is None else into
        plan = cut_to_plan(network, plan)
        fill(network, path)
        record_plan(network, plan)
        check_answers(network, plan, config)
        if "dtype" in options:
            in_precision(network, options["dtype"])
        return network.eval()
    if into is not None:
        raise InputError(f"{path} says itself which network it holds: load it without 'into'.")
    name = _class_name(config)
    _check_kind(name, config)
    try:
        with silenced():
            model, info = shrinking_within(name, stored).from_pretrained(  # type: ignore[attr-defined]
                path,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                **({"dtype": "auto"} | options),
            )
    except OptinError:
        raise
    except ImportError as error:
        raise DependencyError(f"{path} cannot be loaded: {first_line(error)}") from error
    except Exception as error:  # what the library says of a tampered configuration has no common class but this
        raise CheckpointError(f"{path} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{path} lacks the weights of {missing[0]!r} ({len(missing)} in all).")
    # The class that checked the weights has done its work: one that knows none may be saved and copied.
    model.__class__ = shrinking(name) if auto_class(model) is not None else type(model).__mro__[1]
    loaded: nn.Module = model.eval()
    align(loaded)
    return loaded


def manifest(folder: Path) -> Json:
    """The "optin" section of a checkpoint's configuration, unchecked.

    Raises:
        InputError: no such folder, or a checkpoint that optin did not write.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no checkpoint: it has no config.json.")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or SECTION not in config:
        raise InputError(f"{folder} is not a checkpoint of optin: load it with transformers.")
    return config[SECTION]


def _class_name(config: Json) -> str:
    names = config.get("architectures")
    kind = config.get("model_type")
    from transformers.models.auto import configuration_auto

    known: Foreign = configuration_auto
    if not isinstance(kind, str) or not (kind in architectures() or kind in known.CONFIG_MAPPING_NAMES):
        raise CheckpointError(f"config.json names an unknown model_type {kind!r:.40}.")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise CheckpointError("config.json must name one class in 'architectures'.")
    return names[0]


def _check_kind(name: str, config: Mapping[str, object]) -> None:
    """Refuse a class that is not of the kind that a configuration names."""
    import transformers

    settings = getattr(getattr(transformers, name, None), "config_class", None)
    kind = getattr(settings, "model_type", config["model_type"])
    if kind != config["model_type"]:
        raise CheckpointError(
            f"config.json names the class {name!r:.60} and the model_type {config['model_type']!r:.60}."
        )
