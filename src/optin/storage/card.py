"""The model card: what a folder holds and what it cost, in Markdown with Hugging Face metadata."""

from __future__ import annotations

import math
import re
from pathlib import Path

from ..result import Result
from ..support.files import given
from ..support.untyped import Figures, Foreign
from .libraries import is_other
from .report import notes
from .templates import filled
from .timm_models import is_timm

TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForCTC": "automatic-speech-recognition",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
    "MTModel": "translation",
    "ForConditionalGeneration": "text2text-generation",
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
    return filled(
        "card.md.j2",
        metadata=_metadata(result, name, base, own),
        name=as_text(name),
        base=plain(base).replace("`", "'"),
        auto=auto,
        own=own,
        budget=as_text(str(report["budget"])),
        costs=[(label, f"{dense:,}", f"{pruned:,}", f"{pruned / dense:.1%}") for label, dense, pruned in costs],
        quality=_quality(report.get("quality", {})),
        notes=notes(report),
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
    return given(source).name if given(source).exists() else source


def _metadata(result: Result, name: str, base: str, own: bool) -> str:
    """What the hub reads, as YAML: what it was made of, its task and licence, and quality where it was measured."""
    from huggingface_hub import EvalResult, ModelCardData

    task = next((task for suffix, task in TASKS.items() if name.endswith(suffix)), None)
    if is_other(result.model):
        task = None if own else "image-classification"
    quality = result.report.get("quality", {})
    figures = {metric: value for metric, value in quality.get("pruned", {}).items() if math.isfinite(value)}
    data = quality.get("data") or {"type": plain(result.recipe.task.name)}
    found = [
        EvalResult(
            task_type=task or "feature-extraction",
            dataset_type=data["type"],
            dataset_name=data.get("config") or data["type"],
            dataset_config=data.get("config"),
            dataset_split=data.get("split"),
            metric_type=plain(metric),
            metric_value=round(value, 6),
        )
        for metric, value in figures.items()
    ]
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    card = ModelCardData(
        base_model=base if known else None,
        license=_license(result),
        library_name=_library(result.model),
        pipeline_tag=task,
        tags=["optin", "pruned"],
        model_name=plain(f"{name}, pruned") if found else None,
        eval_results=found or None,
    )
    return f"{card.to_yaml()}\n"


def _license(result: Result) -> str | None:
    """That of the network in whose folder a card says it; of others nothing is known."""
    from huggingface_hub import ModelCard

    if result.recipe.model is None or not (card := given(result.recipe.model) / "README.md").is_file():
        return None
    try:
        found = ModelCard.load(card).data.get("license")
    except Exception:  # a card may hold anything
        return None
    return found if isinstance(found, str) else None


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
