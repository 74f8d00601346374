"""Ablations: every recipe of recipes/ablations beside the default, on MiniLM and sentences of Rotten Tomatoes.

    python benchmarks/ablations.py
    python benchmarks/ablations.py --seeds 0

Each recipe differs from the default in one option: a part of the trajectory, lambda, the temperature, the token
rows, which embeddings are compared, the calibration set. KL of the outputs to the dense ones on 1,000 held-out
sentences: of the default job with its refit, and of masks ranked by the trajectory of each unit alone, as the paper
does it. What is done is kept, so a run can be continued. Prints the tables, and stores them in
docs/results/ablations.md, the figures in docs/results/ablations.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments import BUDGETS, networks
from measuring import Stored
from rich.console import Console
from rich.progress import track as progress
from text import SEEDS, Setting
from text_tables import mean_and_spread, table

from optin.recipe import Recipe

RECIPES = Path(__file__).parent.parent / "recipes" / "ablations"
KINDS: dict[str, dict[str, Any]] = {
    "refitted": {},
    "masks": {"criterion": "sketch", "refit__enabled": False},
}


def recipes() -> dict[str, Recipe]:
    """By name, the default first."""
    return {"default": Recipe()} | {path.stem: Recipe.load(path) for path in sorted(RECIPES.glob("*.yaml"))}


def measure(setting: Setting, recipe: Recipe) -> dict[str, float]:
    """KL at every budget."""
    batches = setting.calibration(recipe)
    return {str(budget): setting.measure(small)["kl"] for budget, small in networks(setting, recipe, batches).items()}


def render(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    head = ["", *(f"{kind}, {budget} % MACs" for kind in KINDS for budget in BUDGETS)]
    rows = [
        [f"**{name}**" if name == "default" else name, *(cell(results, name, k, b) for k in KINDS for b in BUDGETS)]
        for name in recipes()
        if any(key.startswith(f"{name}, ") for key in results)
    ]
    return "\n".join(
        [
            "KL of the outputs to the dense ones, mean over the seeds ± standard deviation.",
            "",
            *table(head, rows),
            "",
        ]
    )


def cell(results: dict[str, Any], name: str, kind: str, budget: int) -> str:
    """Mean and spread over the seeds."""
    values = [found[str(budget)] for seed in SEEDS if (found := results.get(f"{name}, {kind}, {seed}"))]
    return mean_and_spread(values, 4) if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    setting, results = Setting(), Stored("ablations")
    jobs = {
        f"{name}, {kind}, {seed}": recipe.override(seed=seed, **changes)
        for seed in arguments.seeds
        for name, recipe in recipes().items()
        for kind, changes in KINDS.items()
    }
    for key, recipe in progress(jobs.items(), description="ablations", console=Console(stderr=True)):
        if key not in results:
            results[key] = measure(setting, recipe)
    results.show(render(results))


if __name__ == "__main__":
    main()
