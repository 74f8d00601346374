"""What a run gives back, as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from .recipe import Recipe
from .space.plans import Plan
from .support.untyped import Figures


@dataclass(frozen=True)
class Result:
    """A pruned network and how it came about.

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

    def save(self, folder: str | Path, tokenizer: object = None, *, overwrite: bool = False) -> Path:
        """Write a folder that `optin.load` and transformers can read. See `optin.storage.saving.save`."""
        from .storage.saving import (
            save,  # the only arrow up: data know nothing of files, and users expect `save` here
        )

        return save(self, folder, tokenizer, overwrite=overwrite)


def summary(plan: Plan) -> Figures:
    """The figures of a plan."""
    return {
        "macs": {"dense": plan.dense.macs, "pruned": plan.pruned.macs},
        "parameters": {"dense": plan.dense.parameters, "pruned": plan.pruned.parameters},
        "length": plan.length,
        **({} if plan.width is None else {"width": plan.width}),
        "budget": plan.provenance.get("budget"),
        **({"compared": said} if (said := plan.provenance.get("compared")) else {}),
        "groups": {name: {"kept": kept, "of": plan.sizes[name]} for name, kept in plan.kept.items()},
        **({"tokens": list(plan.tokens)} if plan.tokens else {}),
        **({} if plan.latency is None else {"latency": dataclasses.asdict(plan.latency)}),
    }
