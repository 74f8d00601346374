"""Checkpoints: a folder that transformers understands, plus the plan that made the network small.

`config.json` stays the dense network's configuration with one more section, "optin": the plan in roles and
kept units. A load builds the dense network without memory, shrinks it to the plan and lets the library's own
loader fill it, so names in memory and names on disk may differ as they like. Nothing is unpickled, and no
code of the checkpoint runs.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import InputError, OptinError
from ..result import Result
from ..running.modules import device_of
from ..space.plans import Plan
from ..space.scores import Scores
from ..support.files import given, json_text, write_text
from ..support.folders import new_folder
from ..support.untyped import Foreign
from . import modeling_optin
from .answers import alike, answers_of, keep_answers
from .card import base_model, model_card
from .libraries import is_other, named, save_origin, save_other
from .loading import load
from .planned import auto_class, section_of, shrinking
from .report import render
from .scores import keep_scores
from .silenced import silenced

NETWORK = "network"  # kind of result
REPORT = "report.html"
STUB = "modeling_optin"


def save(
    result: Result,
    folder: str | Path,
    tokenizer: object = None,
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
    model: Foreign = result.model
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
        write_figures(result, work, auto_class(model) if known else None)
    return Path(folder)


def push(result: Result, repo_id: str, tokenizer: object = None, *, private: bool | None = None) -> str:
    """`Result.push_to_hub`."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        folder = save(result, Path(scratch) / "network", tokenizer)
        hub = HfApi()
        place = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=place.repo_id, commit_message="Pruned with optin")
    return str(place)


def write_figures(result: Result, folder: Path, auto: str | None) -> None:
    """Write report.json, report.html and the model card; those that are there are replaced one by one.

    Args:
        auto: the Auto class that loads the network, if any does.
    """
    write_text(folder / "report.json", json_text(result.report))
    write_text(folder / REPORT, render(result.report, result.plan, result.recipe, base_model(result)))
    write_text(folder / "README.md", model_card(result, type(result.model).__name__, auto, own=not named(folder)))


def update_figures(result: Result, folder: str | Path) -> None:
    """`write_figures` in a folder that `save` wrote: what was measured since is in the report."""
    path = given(folder).resolve()
    known = (path / f"{STUB}.py").is_file()
    write_figures(result, path, auto_class(result.model) if known else None)


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


def _save_network(model: Foreign, work: Path) -> bool:
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
        if not named(work):
            keep_answers(model, Plan.from_dict(section), work)
        return False
    try:
        with silenced():
            model.save_pretrained(work)
        back = _same_parts(model, work) and _comes_back(model, work)
    except RuntimeError:  # weights that its class does not know to be shared
        back = False
    if not back:
        for file in work.iterdir():
            file.unlink()
        save_other(model, work, section, own=True)
        keep_answers(model, Plan.from_dict(section), work)
        return False
    write_text(work / f"{STUB}.py", inspect.getsource(modeling_optin))
    return True


def _same_parts(model: Foreign, folder: Path) -> bool:
    """Whether the configuration just written makes a network of the same weights, by their names and shapes."""
    try:
        with silenced(), torch.device("meta"):
            again = shrinking(type(model).__name__)(type(model.config).from_pretrained(folder))
    except Exception:  # a changed network may fail anywhere when it is made by the configuration of another
        return False
    return _shapes(model) == _shapes(again)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def _comes_back(model: nn.Module, folder: Path) -> bool:
    """Whether a network is itself when it is loaded: what it was made with, or changed to since, is not all known."""
    try:
        again = load(folder, dtype=next(model.parameters()).dtype).to(device_of(model))
    except OptinError:
        return False
    one, other = (answers_of(network, Plan.from_dict(section_of(model))) for network in (model, again))
    return one is None or other is None or alike(one, other)


def save_configuration(model: nn.Module, folder: Path) -> None:
    """Write config.json of a network, dense or pruned, without its weights."""
    if is_other(model):
        save_origin(model, folder, section_of(model))
    else:
        network: Foreign = model
        network.config.save_pretrained(folder)
