"""optin: give it a trained network and a budget, get back a smaller, faster one of almost the same quality."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        ArchitectureError,
        BudgetError,
        CheckpointError,
        DependencyError,
        InputError,
        NumericalError,
        OptinError,
    )
    from .exchanging import exchange
    from .inspection import describe, inspect
    from .pipeline import apply, prune, score, sweep
    from .planning import plan
    from .recipe import PRESETS, Recipe
    from .result import Result
    from .running.batches import Batches
    from .space.budget import Budget
    from .space.plans import Plan
    from .space.scores import Scores
    from .space.units import UnitSpace
    from .storage.exporting import export
    from .storage.loading import load
    from .storage.runtimes import open_exported
    from .storage.scores import load_scores, save_scores
    from .support.progress import rich_track, silent
    from .tasks import batches_of

__version__ = "0.2.0.dev0"

__all__ = [
    "PRESETS",
    "ArchitectureError",
    "Batches",
    "Budget",
    "BudgetError",
    "CheckpointError",
    "DependencyError",
    "InputError",
    "NumericalError",
    "OptinError",
    "Plan",
    "Recipe",
    "Result",
    "Scores",
    "UnitSpace",
    "apply",
    "batches_of",
    "describe",
    "exchange",
    "export",
    "inspect",
    "load",
    "load_scores",
    "open_exported",
    "plan",
    "prune",
    "rich_track",
    "save_scores",
    "score",
    "silent",
    "sweep",
]

_NAMES = {
    "running.batches": ("Batches",),
    "space.budget": ("Budget",),
    "storage.loading": ("load",),
    "storage.scores": ("load_scores", "save_scores"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "storage.exporting": ("export",),
    "result": ("Result",),
    "inspection": ("describe", "inspect"),
    "exchanging": ("exchange",),
    "pipeline": ("apply", "prune", "score", "sweep"),
    "planning": ("plan",),
    "space.plans": ("Plan",),
    "tasks": ("batches_of",),
    "support.progress": ("rich_track", "silent"),
    "recipe": ("PRESETS", "Recipe"),
    "storage.runtimes": ("open_exported",),
    "space.scores": ("Scores",),
    "space.units": ("UnitSpace",),
}
_PLACES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first asked for: the command line must answer before torch is there."""
    if name in _PLACES:
        value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
