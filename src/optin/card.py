"""The model card: what a folder holds and what it cost, in Markdown with Hugging Face metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from .other_models import is_other
from .timm_models import is_timm

if TYPE_CHECKING:
    from .pipeline import Result


def model_card(result: Result, name: str, auto: str | None) -> str:
    """README.md of a checkpoint."""
    base = result.recipe.model or getattr(getattr(result.model, "config", None), "_name_or_path", "") or name
    environment = Environment(
        loader=PackageLoader("optin", ""), undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    plan, report = result.plan, result.report
    costs = [(f"MACs per example of length {plan.size}", plan.dense.macs, plan.pruned.macs)]
    costs.append(("parameters", plan.dense.parameters, plan.pruned.parameters))
    metadata = {"library_name": _library(result.model), "tags": ["optin", "pruned"]}
    return environment.get_template("card.md.j2").render(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        name=name,
        base=base,
        auto=auto,
        budget=report["budget"],
        costs=[(label, f"{dense:,}", f"{pruned:,}", f"{pruned / dense:.1%}") for label, dense, pruned in costs],
        quality=_quality(report.get("quality", {})),
        groups=report["groups"],
    )


def _library(model: Any) -> str:
    if not is_other(model):
        return "transformers"
    return "timm" if is_timm(model) else "pytorch"


def _quality(quality: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    dense, pruned = quality.get("dense", {}), quality.get("pruned", {})
    return [
        (name, f"{dense[name]:.4f}" if name in dense else "", f"{value:.4f}", "") for name, value in pruned.items()
    ]
