"""What a run gives back, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from .recipe import Recipe
from .space.plans import Plan
from .support.listing import Listed, Listing
from .support.untyped import Figures, Json


@dataclass(frozen=True)
class Result(Listed):
    """A pruned network and how it came about.

        print(result.summary())
        result.save("small", tokenizer)

    Attributes:
        model: the small network, ready to run.
        plan: the units it keeps.
        report: figures by name: "macs", "parameters" ("dense", "pruned"), "groups", "seconds" per stage, ...
        recipe: the effective options.
    """

    model: nn.Module
    plan: Plan
    report: Figures
    recipe: Recipe = field(default_factory=Recipe)

    def __repr__(self) -> str:
        left = ", ".join(
            f"{share:.1%} of the {'MACs' if name == 'macs' else name}" for name, share in self.plan.shares.items()
        )
        return f"Result({type(self.model).__name__} with {left} of the dense network)"

    def listing(self) -> Listing:
        """What the network costs and, where it was measured, how good and fast it is, before and after."""
        return Listing(repr(self), ("", "before", "after", "ratio"), verdict(self.report))

    def save(self, folder: str | Path, tokenizer: object = None, *, overwrite: bool = False) -> Path:
        """Write a folder that `optin.load` and transformers can read. See `optin.storage.saving.save`."""
        from .storage.saving import (
            save,  # the only arrow up: data know nothing of files, and users expect `save` here
        )

        return save(self, folder, tokenizer, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, tokenizer: object = None, *, private: bool | None = None) -> str:
        """Save the network and upload it to the Hugging Face hub, with its card and report; gives its address.

        Args:
            repo_id: "user/name"; made if it is not there.
            private: of a new repository.

        Raises:
            OptinError: as for `save`.
            huggingface_hub.errors.HfHubHTTPError: what the hub refuses; log in with `hf auth login`.
        """
        from .storage.saving import push

        return push(self, repo_id, tokenizer, private=private)


def plan_figures(plan: Plan) -> Figures:
    """The figures of a plan."""
    return {
        "macs": {"dense": plan.dense.macs, "pruned": plan.pruned.macs},
        "parameters": {"dense": plan.dense.parameters, "pruned": plan.pruned.parameters},
        "length": plan.length,
        **({} if plan.width is None else {"width": plan.width}),
        "budget": plan.provenance.get("budget"),
        **{name: found for name in ("compared", "loss") if (found := plan.provenance.get(name))},
        "groups": {name: {"kept": kept, "of": plan.sizes[name]} for name, kept in plan.kept.items()},
        **({"tokens": list(plan.tokens)} if plan.tokens else {}),
        **({} if plan.latency is None else {"latency": dataclasses.asdict(plan.latency)}),
    }


def verdict(report: Mapping[str, Json]) -> list[tuple[str, str, str, str]]:
    """Lines of (figure, before, after, ratio): quality first."""
    quality = report.get("quality") or {}
    dense, pruned = quality.get("dense") or {}, quality.get("pruned") or {}
    lines = [(name, shown(dense.get(name)), shown(value), "") for name, value in pruned.items()]
    for name, title, unit in (
        ("macs", "MACs per example", 1),
        ("parameters", "parameters", 1),
        ("bytes", "weights, MB", 1e6),
        ("cache", "cache of a token, bytes", 1),
    ):
        if report.get(name) is not None:
            before, after = (report[name][key] / unit for key in ("dense", "pruned"))
            lines.append((title, shown(before), shown(after), _share(after, before)))
    for speed in report.get("speed") or ():
        title = f"ms, batch {speed['batch']} of length {speed['length']}"
        lines.append((title, shown(speed["dense_ms"]), shown(speed["pruned_ms"]), _share(1, speed["speedup"])))
    for rates in report.get("generation") or ():
        for kind in ("prefill", "decode"):
            before, after = rates["dense"][kind], rates["pruned"][kind]
            title = f"tokens per second, {kind}, batch {rates['batch']}, prompt of {rates['length']}"
            lines.append((title, shown(before), shown(after), _share(after, before)))
    return lines


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else ""


def shown(value: float | None) -> str:
    """A figure for people."""
    if value is None:
        return ""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"
