"""The model card: what a folder holds and what it cost, in Markdown with Hugging Face metadata."""

from __future__ import annotations

import math
import re
from pathlib import Path

import yaml

from ..result import Result
from ..support.files import given
from ..support.untyped import Figures, Foreign
from .libraries import is_other
from .report import share_of
from .templates import filled
from .timm_models import is_timm

TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
    "ForUniversalSegmentation": "image-segmentation",
}


def model_card(result: Result, name: str, auto: str | None, own: bool = False) -> str:
    """README.md of a checkpoint; of a network of one's own making it says what to load it into."""
    plan, report = result.plan, result.report
    costs = [(f"MACs per example of length {plan.size}", plan.dense.macs, plan.pruned.macs)]
    costs.append(("parameters", plan.dense.parameters, plan.pruned.parameters))
    base = base_model(result)
    metadata: dict[str, object] = {"library_name": _library(result.model), "tags": ["optin", "pruned"]}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        metadata["base_model"] = base
    metadata |= _index(result, name)
    return filled(
        "card.md.j2",
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        name=as_text(name),
        base=plain(base).replace("`", "'"),
        auto=auto,
        own=own,
        budget=as_text(str(report["budget"])),
        costs=[(label, f"{dense:,}", f"{pruned:,}", f"{pruned / dense:.1%}") for label, dense, pruned in costs],
        quality=_quality(report.get("quality", {})),
        notes=share_of(report),
        repeats=result.recipe.model is not None and result.recipe.task.data is not None,
        groups={as_text(group): counts for group, counts in report["groups"].items()},
    )


def plain(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def as_text(text: str) -> str:
    """A name as Markdown shows it: no markup, no HTML, no cell of a table ends in it."""
    return re.sub(r"([\\`|<>\[\]!*#&~])", r"\\\1", plain(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")


def base_model(result: Result) -> str:
    """The network that a result was made of: a hub id, the name of a folder, or its class."""
    config = getattr(result.model, "config", None)
    source = result.recipe.model or getattr(config, "_name_or_path", "") or type(result.model).__name__
    return given(source).name if given(source).is_dir() else source


def _index(result: Result, name: str) -> dict[str, object]:
    """The metadata that the hub reads quality from; empty if none was measured."""
    figures = result.report.get("quality", {}).get("pruned", {})
    quality = {metric: value for metric, value in figures.items() if math.isfinite(value)}
    if not quality:
        return {}
    task = next((task for suffix, task in TASKS.items() if name.endswith(suffix)), "feature-extraction")
    if is_other(result.model):
        task = "image-classification"
    data = plain(result.recipe.task.name)
    found = {
        "task": {"type": task},
        "dataset": {"type": data, "name": data},
        "metrics": [{"type": plain(metric), "value": round(value, 6)} for metric, value in quality.items()],
    }
    return {"model-index": [{"name": plain(f"{name}, pruned"), "results": [found]}]}


def _library(model: Foreign) -> str:
    if not is_other(model):
        return "transformers"
    return "timm" if is_timm(model) else "pytorch"


def _quality(quality: Figures) -> list[tuple[str, str, str, str]]:
    dense, pruned = quality.get("dense", {}), quality.get("pruned", {})
    return [
        (as_text(name), f"{dense[name]:.4f}" if name in dense else "", f"{value:.4f}", "")
        for name, value in pruned.items()
    ]
