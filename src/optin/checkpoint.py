"""Checkpoints: a folder that transformers understands, plus the plan that made the network small.

`config.json` stays the dense network's configuration with one more section, "optin": the plan in roles and
kept units. A load builds the dense network without memory, shrinks it to the plan and lets the library's own
loader fill it, so names in memory and names on disk may differ as they like. Nothing is unpickled, and no
code of the checkpoint runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .arch import architectures, describe
from .arch.inputs import default_length
from .card import base_model, model_card
from .errors import ArchitectureError, CheckpointError, DependencyError, InputError, OptinError, first_line
from .files import new_folder, read_json, write_text
from .merging import Merging
from .other_models import create_from, fill, is_other, save_origin, save_other
from .plans import Cost, Plan
from .quiet import quiet
from .report import render
from .scores import Curve, Scores
from .surgery import shrink
from .units import UnitSpace
from .untrusted import check_folder

if TYPE_CHECKING:
    from .pipeline import Result

SECTION = "optin"
REPORT = "report.html"
STUB = "modeling_optin"

_STUB_SOURCE = '''"""Lets the Auto classes of transformers load this pruned network (trust_remote_code=True).

Needs the package: pip install optin. `optin.load(folder)` does the same and runs no code of this folder.
"""

from optin.checkpoint import shrinking


class {name}(shrinking("{name}")):
    """{name}, cut to the plan in config.json."""
'''


def establish(model: nn.Module, plan: Plan, space: UnitSpace | None = None) -> None:
    """Cut a network to a plan in place, and let its tokens merge as the plan says.

    Args:
        space: its description, if that is known.

    Raises:
        CheckpointError: the plan does not fit the network.
    """
    space = space or describe(model)
    shrink(model, space, plan)
    if plan.tokens and space.tokens is not None:
        Merging(model, space.tokens, plan.tokens)


def attach(model: nn.Module, plan: Plan, original: Mapping[str, int] | None = None) -> None:
    """Write the plan into the model's configuration, so that the model can be saved by any means.

    A network that has none gets it as an attribute.

    A network pruned before gets the composition of both plans: its dense sizes stay those of the first.

    Args:
        original: MACs and parameters of the network before it was pruned first, at the size of this plan.
    """
    earlier = section_of(model)
    combined = plan if earlier is None else compose(Plan.from_dict(earlier), plan)
    if original is not None:
        combined = dataclasses.replace(combined, dense=Cost(original["macs"], original["parameters"]))
    setattr(getattr(model, "config", model), SECTION, combined.to_dict())


def section_of(model: nn.Module) -> Any:
    """The plan that a network was cut to, as `attach` wrote it; None for a dense one."""
    return getattr(getattr(model, "config", model), SECTION, None)


def input_shape(model: nn.Module) -> tuple[int, int | None]:
    """The length, and for images that are not square the width, that a pruned network was planned for.

    Of a dense one, what it takes by itself.
    """
    section = section_of(model)
    return (section["length"], section.get("width")) if section else (default_length(model), None)


def compose(first: Plan, second: Plan) -> Plan:
    """One plan for pruning by `first` and the result by `second`."""
    return Plan(
        architecture=first.architecture,
        sizes=first.sizes,
        keep={name: tuple(first.keep[name][unit] for unit in units) for name, units in second.keep.items()},
        dense=first.dense if first.size == second.size else second.dense,
        pruned=Cost(second.pruned.macs, second.pruned.parameters),
        length=second.length,
        provenance={**second.provenance, "earlier": dict(first.provenance)},
        tokens=second.tokens or first.tokens,
        width=second.width,
        latency=second.latency,
    )


def save(result: Result, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write a pruned network.

    The folder holds config.json, safetensors weights, the tokenizer if given, plan.json, recipe.yaml,
    report.json, report.html, a model card and a stub for `trust_remote_code`. It appears whole or not at all.

    Args:
        tokenizer: anything with `save_pretrained`.

    Raises:
        InputError: the folder exists and holds something else.
        CheckpointError: it cannot be written.
    """
    model: Any = result.model
    target = Path(folder)
    name = type(model).__name__
    auto = None if is_other(model) else _auto_class(model)
    with new_folder(target) as work:
        if is_other(model):
            save_other(model, work, section_of(model))
        else:
            with _auto_map(model, auto), quiet():
                model.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        result.plan.save(work / "plan.json")
        result.recipe.save(work / "recipe.yaml")
        write_text(work / "report.json", json.dumps(result.report, indent=2) + "\n")
        write_text(work / "README.md", model_card(result, name, auto))
        write_text(work / REPORT, render(result.report, result.plan, result.recipe, base_model(result)))
        if not is_other(model):
            write_text(work / f"{STUB}.py", _STUB_SOURCE.format(name=name))
    return target


def save_configuration(model: nn.Module, folder: Path) -> None:
    """Write config.json of a network, dense or pruned, without its weights."""
    if is_other(model):
        save_origin(model, folder, section_of(model))
    else:
        network: Any = model
        network.config.save_pretrained(folder)


def load(folder: str | Path, *, into: nn.Module | None = None, **options: Any) -> nn.Module:
    """Load what `save` wrote: a `torch.nn.Module` of the original class, in evaluation mode.

    Args:
        into: the dense network, where it is neither of transformers, timm or torchvision nor one of optin's own; it
            is cut and filled.
        options: passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...).

    Raises:
        InputError: no such folder, or not written by optin.
        CheckpointError: a plan that does not fit, or weights that are missing, damaged or of other shapes.
    """
    path = Path(folder)
    section = manifest(path)
    plan = Plan.from_dict(section)
    config = read_json(path / "config.json")
    check_folder(path, config)
    if "architecture" in config:
        network = create_from(path) if into is None else into
        establish(network, plan)
        fill(network, path)
        attach(network, plan)
        return network.to(**({"dtype": options["dtype"]} if "dtype" in options else {}))
    if into is not None:
        raise InputError(f"{path} says itself which network it holds: load it without 'into'.")
    name = _class_name(config)
    try:
        with quiet():
            model, info = shrinking(name).from_pretrained(  # type: ignore[attr-defined]
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
    # The on-the-fly class has done its work: from here on this is a plain object of the library's class.
    model.__class__ = type(model).__mro__[1]
    loaded: nn.Module = model.eval()
    return loaded


def manifest(folder: Path) -> Any:
    """The "optin" section of a checkpoint's configuration, unchecked.

    Raises:
        InputError: no such folder, or a checkpoint that optin did not write.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or SECTION not in config:
        raise InputError(f"{folder} is not a checkpoint of optin: load it with transformers.")
    return config[SECTION]


def shrinking(name: str) -> type[nn.Module]:
    """A subclass of the transformers class `name` whose objects are cut to `config.optin` when they are made.

    Raises:
        ArchitectureError: transformers has no such model class.
    """
    import transformers

    base: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)):
        raise ArchitectureError(f"transformers {transformers.__version__} has no model class {name!r}.")

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        section = getattr(config, SECTION, None)
        if section is not None:
            establish(self, Plan.from_dict(section))

    # Weights on disk have the names of the library's own class, which it translates for its own classes only.
    own = {"is_custom_code": classmethod(lambda cls: False)}
    return type(name, (base,), {"__init__": __init__, "__module__": __name__, **own})


def save_scores(scores: Scores, folder: str | Path) -> Path:
    """Write removal curves as safetensors beside a JSON file that says what they are."""
    target = Path(folder)
    with new_folder(target) as work:
        tensors = {}
        for name, curve in scores.curves.items():
            tensors[f"{name}/order"], tensors[f"{name}/cost"] = curve.order.contiguous(), curve.cost.contiguous()
        if scores.tokens is not None:
            tensors["tokens"] = scores.tokens.contiguous()
        tensors |= {f"{name}/gradients": value.contiguous() for name, value in scores.gradients.items()}
        save_file(tensors, work / "scores.safetensors")
        description = {
            "architecture": scores.architecture,
            "length": scores.length,
            **({} if scores.width is None else {"width": scores.width}),
            "groups": {name: len(curve.order) for name, curve in scores.curves.items()},
            "provenance": scores.provenance,
        }
        write_text(work / "scores.json", json.dumps(description, indent=2) + "\n")
    return target


def load_scores(folder: str | Path) -> Scores:
    """Read what `save_scores` wrote. Input is not trusted.

    Raises:
        InputError: no such files.
        CheckpointError: damaged or inconsistent files.
    """
    path = Path(folder)
    description = read_json(path / "scores.json")
    try:
        groups = {str(name): int(size) for name, size in description["groups"].items()}
        with safe_open(path / "scores.safetensors", "pt") as file:
            curves = {
                name: Curve(file.get_tensor(f"{name}/order"), file.get_tensor(f"{name}/cost")) for name in groups
            }
            stored = set(file.keys())
            tokens = file.get_tensor("tokens") if "tokens" in stored else None
            gradients = {
                name: file.get_tensor(f"{name}/gradients") for name in groups if f"{name}/gradients" in stored
            }
        if any(value.shape[1:] != (groups[name],) for name, value in gradients.items()):
            raise ValueError("the gradients do not fit the groups")
        if tokens is not None and not (tokens.dim() == 2 and bool(torch.isfinite(tokens).all())):
            raise ValueError("the token costs are no finite table")
        for name, curve in curves.items():
            _check_curve(name, curve, groups[name])
        return Scores(
            str(description["architecture"]),
            curves,
            int(description["length"]),
            dict(description["provenance"]),
            tokens,
            int(description["width"]) if "width" in description else None,
            gradients,
        )
    except FileNotFoundError:
        raise InputError(f"no such file: {path / 'scores.safetensors'}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the scores in {path} are damaged: {error}. Score again.") from None


def _check_curve(name: str, curve: Curve, size: int) -> None:
    ordered = curve.order.dtype == torch.int64 and torch.equal(curve.order.sort().values, torch.arange(size))
    costed = curve.cost.shape == (size + 1,) and bool(torch.isfinite(curve.cost).all())
    if not (ordered and costed):
        raise CheckpointError(f"the scores of {name!r} are damaged: not a removal curve of {size} units.")


def _class_name(config: Any) -> str:
    names = config.get("architectures")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in architectures():
        raise CheckpointError(f"config.json names an unknown model_type {kind!r:.40}.")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise CheckpointError("config.json must name one class in 'architectures'.")
    return names[0]


def _auto_class(model: nn.Module) -> str | None:
    """The Auto class that stands for the model's task."""
    from transformers.models.auto import modeling_auto

    name = type(model).__name__
    tables: dict[str, Any] = {
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    }
    return next((auto for auto, names in tables.items() if name in names.values()), None)


@contextlib.contextmanager
def _auto_map(model: nn.Module, auto: str | None) -> Iterator[None]:
    """The stub's entry in the configuration, for the time of a save."""
    config: Any = model.config
    old = getattr(config, "auto_map", None)
    if auto is not None:
        config.auto_map = {auto: f"{STUB}.{type(model).__name__}"}
    try:
        yield
    finally:
        if old is not None:
            config.auto_map = old
        elif auto is not None:
            del config.auto_map
