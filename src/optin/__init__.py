"""optin: give it a trained network and a budget, get back a smaller, faster one of almost the same quality."""

from .batches import Batches
from .budget import Budget
from .checkpoint import load, load_scores, save_scores
from .errors import (
    ArchitectureError,
    BudgetError,
    CheckpointError,
    DependencyError,
    InputError,
    NumericalError,
    OptinError,
)
from .exporting import export
from .pipeline import Result, apply, inspect, plan, prune, score, sweep
from .plans import Plan
from .progress import rich_track
from .recipe import PRESETS, Recipe
from .runtimes import open_exported
from .scores import Scores

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
    "apply",
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
    "sweep",
]
