"""Checkpoints: a folder that transformers understands, plus the plan that made the network small.

`config.json` stays the dense network's configuration with one more section, "optin": the plan in roles and
kept units. A load builds the dense network without memory, shrinks it to the plan and lets the library's own
loader fill it, so names in memory and names on disk may differ as they like. Nothing is unpickled, and no
code of the checkpoint runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..describing import architecture_of, architectures, describe
from ..describing.inputs import default_length, planned_inputs
from ..errors import (
    ArchitectureError,
    CheckpointError,
    DependencyError,
    InputError,
    OptinError,
    first_line,
)
from ..running.merging import Merging
from ..running.modules import (
    align,
    call,
    device_of,
    inference_mode_of,
)
from ..running.outputs import answers, tolerance_of
from ..running.surgery import check_description, fits, shrink
from ..space.plans import Cost, Plan
from ..space.scores import Curve, Scores
from ..space.units import UnitSpace
from ..support.files import (
    given,
    json_text,
    read_json,
    write_text,
)
from ..support.folders import mark, new_folder
from . import modeling_optin
from .card import base_model, model_card
from .other_models import (
    fill,
    is_other,
    make_within,
    named,
    save_origin,
    save_other,
)
from .quiet import quiet
from .report import render
from .untrusted import Stored, check_folder

if TYPE_CHECKING:
    from ..pipeline import Result

SECTION = "optin"
NETWORK, SCORES = "network", "scores"  # kinds of results; scores beside a network lie in a folder of that name
REPORT = "report.html"
STUB = "modeling_optin"
GENERAL = ("PreTraining", "TextEncoding", "MultimodalLM")  # end the names of Auto classes that another stands for too


def establish(model: nn.Module, plan: Plan, space: UnitSpace | None = None) -> None:
    """Cut a network to a plan in place, and let its tokens merge as the plan says.

    Args:
        space: its description; that which the plan holds if not given, or found anew for one that holds none.

    Raises:
        CheckpointError: the plan does not fit the network.
    """
    space = space or _description(model, plan)
    plan = plan.renamed(space)
    shrink(model, space, plan)
    if any(plan.tokens) and space.tokens is not None:
        Merging(model, space.tokens, plan.tokens)


def _description(model: nn.Module, plan: Plan) -> UnitSpace:
    """The description that a plan holds, checked, or one made anew."""
    kinds = (architecture_of(model), type(model).__name__)
    if plan.description is not None and plan.architecture not in kinds:
        raise CheckpointError(f"the plan is for {plan.architecture!r}, the network is {kinds[0] or kinds[1]!r}.")
    if plan.description is not None and fits(model, plan.description):
        check_description(model, plan.description)
        return plan.description
    inputs = None if device_of(model).type == "meta" else planned_inputs(model, plan, 2)  # made with the weights
    return describe(model, inputs)


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
    if not is_other(model) and _auto_class(model) is not None:
        # An object of its class still, that writes what the Auto classes need whoever saves it: see `shrinking`.
        model.__class__ = shrinking(type(model).__name__)


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
    first = first.renamed(second.description) if second.description is not None else first
    description = first.description
    new = [group for group in second.description or () if group.name not in first.sizes]  # whole the first time
    if description is not None and new:
        description = dataclasses.replace(description, groups=(*description.groups, *new))
    before = {name: range(size) for name, size in second.sizes.items()} | dict(first.keep)
    return Plan(
        architecture=first.architecture,
        sizes=dict(second.sizes) | dict(first.sizes),
        keep=dict(first.keep)
        | {name: tuple(before[name][unit] for unit in units) for name, units in second.keep.items()},
        dense=first.dense if first.size == second.size else second.dense,
        pruned=Cost(second.pruned.macs, second.pruned.parameters),
        length=second.length,
        provenance={**second.provenance, "earlier": dict(first.provenance)},
        tokens=second.tokens or first.tokens,
        width=second.width,
        latency=second.latency,
        description=description,
    )


def save(
    result: Result,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    overwrite: bool = False,
    scores: Scores | None = None,
    kind: str = NETWORK,
) -> Path:
    """Write a pruned network.

    The folder holds config.json, safetensors weights, the tokenizer if given, plan.json, recipe.yaml,
    report.json, report.html, a model card and a stub for `trust_remote_code`. It appears whole or not at all.
    A network that its configuration does not make again is written as one of your own making: it is loaded into the
    dense one, `optin.load(folder, into=network)`.

    Args:
        tokenizer: anything with `save_pretrained`.
        overwrite: replace what optin wrote in a folder of the same kind; all else in it stays.
        scores: kept beside the network, in "scores".
        kind: of the result, for the folder's marker.

    Raises:
        InputError: the folder is not empty, or the network computes its weights from others.
        CheckpointError: it cannot be written.
    """
    model: Any = result.model
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise InputError(f"a tokenizer must have 'save_pretrained', and {type(tokenizer).__name__} has not.")
    check_savable(model)
    with new_folder(given(folder), kind, overwrite) as work:
        known = _save_network(model, work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        if scores is not None:
            keep_scores(scores, work)
        result.plan.save(work / "plan.json")
        result.recipe.save(work / "recipe.yaml")
        write_figures(result, work, _auto_class(model) if known else None)
    return Path(folder)


def write_figures(result: Result, folder: Path, auto: str | None) -> None:
    """Write report.json, report.html and the model card; those that are there are replaced one by one.

    Args:
        auto: the Auto class that loads the network, if any does.
    """
    write_text(folder / "report.json", json_text(result.report))
    write_text(folder / REPORT, render(result.report, result.plan, result.recipe, base_model(result)))
    write_text(folder / "README.md", model_card(result, type(result.model).__name__, auto))


def update_figures(result: Result, folder: str | Path) -> None:
    """`write_figures` in a folder that `save` wrote: what was measured since is in the report."""
    path = given(folder).resolve()
    known = (path / f"{STUB}.py").is_file()
    write_figures(result, path, _auto_class(result.model) if known else None)


def check_savable(model: nn.Module) -> None:
    """Refuse weights that are computed from others at every forward: files hold no such rules.

    Raises:
        InputError: names the first module, and says how to make its weights plain.
    """
    cut = _cut_modules(model)
    for name, module in model.named_modules():
        rules = [type(hook) for hook in module._forward_pre_hooks.values()]
        if parametrize.is_parametrized(module) and name in cut:
            remedy = "torch.nn.utils.parametrize.remove_parametrizations"
        elif any(issubclass(rule, BasePruningMethod) for rule in rules):
            remedy = "torch.nn.utils.prune.remove"
        elif any(issubclass(rule, (WeightNorm, SpectralNorm)) for rule in rules):
            remedy = "torch.nn.utils.remove_weight_norm or remove_spectral_norm"
        else:
            continue
        raise InputError(
            f"the weights of {name!r} are computed from others, which no file would hold: make them plain "
            f"first, with {remedy}."
        )


def _cut_modules(model: nn.Module) -> set[str]:
    """The modules that lost units."""
    section = section_of(model)
    groups = section.get("description", {}).get("groups", {}) if isinstance(section, Mapping) else {}
    return {cut[0].rpartition(".")[0] for group in groups.values() for cut in group["cuts"]}


def _save_network(model: Any, work: Path) -> bool:
    """Write configuration and weights; whether the network is one that transformers makes by its configuration."""
    section = section_of(model)
    if is_other(model):
        try:
            save_other(model, work, section)
            back = not named(work) or _comes_back(model, work)
        except OptinError:  # nothing says how it was made
            back = False
        if not back:
            save_other(model, work, section, own=True)
        return False
    try:
        with quiet():
            model.save_pretrained(work)
        back = _same_parts(model, work) and _comes_back(model, work)
    except RuntimeError:  # weights that its class does not know to be shared
        back = False
    if not back:
        for file in work.iterdir():
            file.unlink()
        save_other(model, work, section, own=True)
        return False
    write_text(work / f"{STUB}.py", inspect.getsource(modeling_optin))
    return True


def _same_parts(model: Any, folder: Path) -> bool:
    """Whether the configuration just written makes a network of the same weights, by their names and shapes."""
    try:
        with quiet(), torch.device("meta"):
            again = shrinking(type(model).__name__)(type(model.config).from_pretrained(folder))
    except Exception:  # a changed network may fail anywhere when it is made by the configuration of another
        return False
    return _shapes(model) == _shapes(again)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def _comes_back(model: nn.Module, folder: Path) -> bool:
    """Whether a network is itself when it is loaded: what it was made with, or changed to since, is not all known."""
    try:
        again = load(folder).to(device_of(model), next(model.parameters()).dtype)
    except OptinError:
        return False
    try:
        inputs = planned_inputs(model, Plan.from_dict(section_of(model)), 2)
        with inference_mode_of(model), inference_mode_of(again), torch.inference_mode():
            one, other = (answers(call(network, inputs)) for network in (model, again))
    except Exception:  # random inputs are not for every network
        return True
    share = max(1e-3, tolerance_of(one))
    return one.shape == other.shape and bool(
        torch.allclose(one, other, rtol=share, atol=share * float(one.abs().max()))
    )


def save_configuration(model: nn.Module, folder: Path) -> None:
    """Write config.json of a network, dense or pruned, without its weights."""
    if is_other(model):
        save_origin(model, folder, section_of(model))
    else:
        network: Any = model
        network.config.save_pretrained(folder)


def load(folder: str | Path, *, into: nn.Module | None = None, **options: Any) -> nn.Module:
    """Load what `save` wrote: an object of the original class, in evaluation mode.

    Of networks of transformers its class is one that adds to `save_pretrained` what the Auto classes need.

    Args:
        into: the dense network, where it is neither of transformers, timm or torchvision nor one of optin's own; it
            is cut and filled.
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
        establish(network, plan)
        fill(network, path)
        attach(network, plan)
        return network.eval().to(**({"dtype": options["dtype"]} if "dtype" in options else {}))
    if into is not None:
        raise InputError(f"{path} says itself which network it holds: load it without 'into'.")
    name = _class_name(config)
    _check_kind(name, config)
    try:
        with quiet():
            model, info = _shrinking(name, stored).from_pretrained(  # type: ignore[attr-defined]
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
    model.__class__ = shrinking(name) if _auto_class(model) is not None else type(model).__mro__[1]
    loaded: nn.Module = model.eval()
    align(loaded)
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


@functools.cache
def shrinking(name: str) -> type[nn.Module]:
    """A subclass of the transformers class `name` whose objects are cut to `config.optin` when they are made.

    `save_pretrained` of its objects, and with it the Trainer, puts `modeling_optin.py` beside the weights and says so
    in config.json, as transformers does for every class from a module of one's own.

    Raises:
        ArchitectureError: transformers has no such model class.
    """
    return _shrinking(name)


def _shrinking(name: str, stored: Stored | None = None) -> type[nn.Module]:
    """`shrinking`; with what the weights are, to refuse a configuration that asks for far more."""
    import transformers

    base: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)):
        raise ArchitectureError(f"transformers {transformers.__version__} has no model class {name!r}.")

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        with contextlib.nullcontext() if stored is None else stored.bounded():
            base.__init__(self, config, *args, **kwargs)
            section = getattr(config, SECTION, None)
            if section is not None:
                establish(self, Plan.from_dict(section))
        if stored is not None:
            stored.check_network(self)

    # Weights on disk have the names of the library's own class, which it translates for its own classes only.
    own = {"is_custom_code": classmethod(lambda cls: False), "_auto_class": _auto_class(base)}
    return type(name, (base,), {"__init__": __init__, "__module__": modeling_optin.__name__, **own})


def save_scores(scores: Scores, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write removal curves as safetensors beside a JSON file that says what they are.

    Args:
        overwrite: replace scores that optin wrote there.

    Raises:
        InputError: the folder is not empty.
        CheckpointError: it cannot be written.
    """
    with new_folder(given(folder), SCORES, overwrite) as work:
        _write_scores(scores, work)
    return Path(folder)


def keep_scores(scores: Scores, work: Path) -> None:
    """Put scores into a folder of another result that is being written."""
    folder = work / SCORES
    folder.mkdir()
    _write_scores(scores, folder)
    mark(folder, SCORES)


def _write_scores(scores: Scores, folder: Path) -> None:
    tensors = {}
    for name, curve in scores.curves.items():
        tensors[f"{name}/order"], tensors[f"{name}/cost"] = curve.order.contiguous(), curve.cost.contiguous()
    if scores.tokens is not None:
        tensors["tokens"] = scores.tokens.contiguous()
    tensors |= {f"{name}/gradients": value.contiguous() for name, value in scores.gradients.items()}
    save_file(tensors, folder / "scores.safetensors")
    description = {
        "architecture": scores.architecture,
        "length": scores.length,
        **({} if scores.width is None else {"width": scores.width}),
        "groups": {name: len(curve.order) for name, curve in scores.curves.items()},
        "provenance": scores.provenance,
    }
    write_text(folder / "scores.json", json_text(description))


def load_scores(folder: str | Path) -> Scores:
    """Read what `save_scores` wrote. Input is not trusted.

    Raises:
        InputError: no such files, or scores that do not say which network they are of.
        CheckpointError: damaged or inconsistent files.
    """
    path = given(folder)
    file = path / "scores.safetensors"
    description = read_json(path / "scores.json")
    try:
        found = _described(description)
        if not file.is_file():
            raise InputError(f"no such file: {file}")
        with safe_open(file, "pt") as handle:
            stored = set(handle.keys())
            curves = {name: _curve(handle, name, size) for name, size in description["groups"].items()}
            tokens = handle.get_tensor("tokens") if "tokens" in stored else None
            gradients = {
                name: handle.get_tensor(f"{name}/gradients") for name in curves if f"{name}/gradients" in stored
            }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the scores in {path} are damaged: {first_line(error)}. Score again.") from None
    for name, value in gradients.items():
        if value.shape[1:] != (len(curves[name].order),) or not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"the scores in {path} are damaged: their gradients do not fit. Score again.")
    if tokens is not None and not (tokens.dim() == 2 and bool(torch.isfinite(tokens).all())):
        raise CheckpointError(f"the scores in {path} are damaged: no finite table of token costs. Score again.")
    if not isinstance(found["provenance"].get("network"), str):
        raise InputError(
            f"the scores in {path} do not say which weights they are of (scores of optin 0.1.0): score again."
        )
    return Scores(curves=curves, tokens=tokens, gradients=gradients, **found)


def _described(description: Any) -> dict[str, Any]:
    """What is in scores.json beside the groups; ValueError where something is of another type."""
    kinds = {"architecture": str, "length": int, "groups": dict, "provenance": dict, "width": int}
    if not isinstance(description, dict):
        raise ValueError("scores.json is no mapping")
    for name, kind in kinds.items():
        value = description.get(name)
        if type(value) is not kind and not (name == "width" and name not in description):
            raise ValueError(f"{name!r} must be {kind.__name__}")
        if kind is int and name in description and not 0 < description[name] <= 10**7:
            raise ValueError(f"{name!r} must be a length")
    return {name: description[name] for name in kinds if name != "groups" and name in description}


def _curve(handle: Any, name: str, size: Any) -> Curve:
    """One removal curve; ValueError where it is none of so many units. Shapes are looked at before a value is."""
    shapes = [handle.get_slice(f"{name}/{part}").get_shape() for part in ("order", "cost")]
    if type(size) is not int or size < 1 or shapes != [[size], [size + 1]]:
        raise ValueError(f"{name!r:.60} holds no removal curve of {size!r:.40} units")
    curve = Curve(handle.get_tensor(f"{name}/order"), handle.get_tensor(f"{name}/cost"))
    ordered = curve.order.dtype == torch.int64 and torch.equal(curve.order.sort().values, torch.arange(size))
    costed = curve.cost.dtype == torch.float64 and bool(torch.isfinite(curve.cost).all())
    if not (ordered and costed):
        raise ValueError(f"{name!r:.60} holds no removal curve of {size} units")
    return curve


def _class_name(config: Any) -> str:
    names = config.get("architectures")
    kind = config.get("model_type")
    from transformers.models.auto import configuration_auto

    known: Any = configuration_auto
    if not isinstance(kind, str) or not (kind in architectures() or kind in known.CONFIG_MAPPING_NAMES):
        raise CheckpointError(f"config.json names an unknown model_type {kind!r:.40}.")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise CheckpointError("config.json must name one class in 'architectures'.")
    return names[0]


def _check_kind(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a class that is not of the kind that a configuration names."""
    import transformers

    settings = getattr(getattr(transformers, name, None), "config_class", None)
    kind = getattr(settings, "model_type", config["model_type"])
    if kind != config["model_type"]:
        raise CheckpointError(
            f"config.json names the class {name!r:.60} and the model_type {config['model_type']!r:.60}."
        )


def _auto_class(model: Any) -> str | None:
    """The Auto class that stands for the task of a network or its class."""
    from transformers.models.auto import modeling_auto

    name = (model if isinstance(model, type) else type(model)).__name__
    tables = {
        auto: found._model_mapping._model_mapping
        for auto in ("AutoModel", *sorted(vars(modeling_auto), key=lambda auto: auto.endswith(GENERAL)))
        if auto.startswith("AutoModel") and hasattr(found := getattr(modeling_auto, auto), "_model_mapping")
    }
    return next((auto for auto, names in tables.items() if name in names.values()), None)
