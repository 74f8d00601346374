"""What a report expects of other budgets, and what they gave: MiniLM, DINOv2 and ResNet-56.

    python benchmarks/outlook.py               all of them
    python benchmarks/outlook.py minilm        one of them

One network is refitted and measured at half of the MACs; from that and the scores the KL at other budgets is
estimated, as in every report; then networks are refitted and measured there. The exponent of the estimate was chosen
by the first two. Prints the table, and stores it in docs/results/outlook.md, the figures in outlook.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import text
from dinov2 import DATA, classifier
from image_tables import Measured, Setting
from measuring import Stored
from rich.console import Console
from rich.progress import track as progress
from text_tables import bar_table, table
from train_cnn import trained

import optin
from optin.accounting import costs
from optin.choosing.outlook import outlook

BASE, MOST = 50, 0.3  # percent of the MACs; error of an estimate
NETWORKS: dict[str, tuple[str, tuple[int, ...], Callable[[str], Measured]]] = {
    "minilm": ("default", (70, 60, 40), lambda data: text.Setting()),
    "dinov2": ("beta", (85, 75, 65), lambda data: Setting.of_fashion(classifier(data), data)),
    "resnet56": ("beta", (75, 60, 40), lambda data: Setting.of_fashion(trained("resnet56", data), data)),
}


def measured(name: str, data: str) -> list[dict[str, float]]:
    """A row per budget: its share of the MACs, the KL that was expected, and the KL that it gave."""
    preset, budgets, make = NETWORKS[name]
    setting, recipe = make(data), optin.PRESETS[preset]
    batches = setting.calibration(recipe)
    scores = optin.score(setting.model, batches, recipe=recipe)

    def refitted(budget: int) -> tuple[optin.Plan, float]:
        plan = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
        small = optin.apply(setting.model, plan, batches, recipe=recipe, scores=scores).model
        return plan, setting.measure(small)["kl"]

    plan, divergence = refitted(BASE)
    macs, parameters = costs(setting.model, plan.description, plan.length, plan.width, scores)
    expected = outlook(plan.description, scores, macs, parameters, recipe, plan, divergence)
    rows = []
    for budget in budgets:
        near = min(expected, key=lambda one: abs(one["macs"] - budget / 100))
        rows.append({"budget": budget, "expected": near["kl"], "measured": refitted(budget)[1]})
    return rows


def render(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [(name, row, row["expected"] / row["measured"] - 1) for name, rows in results.items() for row in rows]
    worst = max((abs(error) for _, _, error in lines), default=0.0)
    cells = [
        [name, f"{row['budget']} %", f"{row['expected']:.4f}", f"{row['measured']:.4f}", f"{100 * error:+.0f} %"]
        for name, row, error in lines
    ]
    bars = [(f"errors of at most {MOST:.0%}", f"{worst:.0%}", worst <= MOST)]
    return (
        "\n".join(
            [
                f"KL to the dense network, expected from the one network that was measured at {BASE} % of the MACs.",
                "",
                *table(["network", "MACs", "expected", "measured", "error"], cells),
                "",
                *bar_table(bars),
            ]
        ).strip()
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(NETWORKS)}")
    parser.add_argument("--data", default=DATA, help="folder of the IDX files of Fashion-MNIST")
    arguments = parser.parse_args()
    results = Stored("outlook")
    for name in progress(arguments.networks or NETWORKS, description="outlook", console=Console(stderr=True)):
        results[name] = measured(name, arguments.data)
    results.show(render(results))


if __name__ == "__main__":
    main()
