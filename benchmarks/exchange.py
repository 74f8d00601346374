"""What the exchange of units by the measured loss gains: MiniLM on film reviews and DINOv2 on Fashion-MNIST.

    python benchmarks/exchange.py                        everything
    python benchmarks/exchange.py MiniLM --seeds 0       one network, one seed

Both networks are made first (benchmarks/finetune_text.py, benchmarks/dinov2.py, cached). One scoring serves both rows
of a budget: the plan as it is found, and the same after the exchange. Quality is measured on 1,000 held-out sentences
and 2,000 test images. Points are stored as they are measured, so a run can be continued. Prints the table, and stores
it in docs/results/exchange.md, the figures in docs/results/exchange.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import dinov2
import image_tables
import text
from measuring import Stored, forward_seconds
from rich.console import Console
from rich.progress import track as progress
from text_tables import mean_and_spread, table

import optin

NETWORKS = ("MiniLM", "DINOv2")
BUDGETS = (70, 50, 35)
SEEDS = (0, 1, 2)
ROWS = {"plan": "as found", "exchanged": "exchanged"}


def setting_of(network: str, data: str) -> tuple[Any, optin.Recipe]:
    """The dense network with its data, and the recipe that suits it."""
    if network == "MiniLM":
        return text.Setting(), optin.Recipe()
    return image_tables.Setting.of_fashion(dinov2.classifier(data), data), optin.PRESETS["beta"]


def measured(setting: Any, recipe: optin.Recipe, seed: int, budgets: list[int]) -> Any:
    """At every budget the plan as it is found, and after the exchange."""
    recipe = recipe.override(seed=seed)
    batches = setting.calibration(recipe)
    dense = forward_seconds(setting.model, batches)
    scores = optin.score(setting.model, batches, recipe=recipe)
    for budget in budgets:
        plan = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
        start = time.perf_counter()
        better = optin.exchange(setting.model, plan, batches, scores=scores, recipe=recipe)
        passes = (time.perf_counter() - start) / dense
        point = {"passes": passes, "seen": better.provenance["exchange"]}
        for name, chosen in zip(ROWS, (plan, better), strict=True):
            small = optin.apply(setting.model, chosen, batches, recipe=recipe, scores=scores).model
            point[name] = {"macs": chosen.pruned.macs, **setting.measure(small)}
        yield budget, point


def render(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = []
    for network in results:
        for budget in BUDGETS:
            points = [of[str(budget)] for of in results[network].values() if str(budget) in of]
            if not points:
                continue
            for name, said in ROWS.items():
                kl, accuracy = ([point[name][figure] for point in points] for figure in ("kl", "accuracy"))
                cost = statistics.mean(point["passes"] for point in points)
                exchanged = name == "exchanged"
                rows.append(
                    [
                        network,
                        f"{budget} %",
                        said,
                        mean_and_spread(kl, 4),
                        mean_and_spread([100 * value for value in accuracy], 1),
                        f"{cost:.0f}" if exchanged else "",
                        " / ".join(f"{p['seen']['before']:.4f} to {p['seen']['loss']:.4f}" for p in points)
                        if exchanged
                        else "",
                    ]
                )
    head = ["network", "MACs", "allocation", "KL to dense", "accuracy, %", "dense passes", "loss that it saw"]
    lines = [
        "# Units exchanged by the measured loss",
        "",
        "`python benchmarks/exchange.py`: the default job of MiniLM and the preset `beta` of DINOv2; KL and accuracy "
        "on held-out data, ± standard deviation over seeds; what the exchange took beyond that, in forwards of the "
        "calibration set; the loss on the quarter of the calibration inputs that it measures, before and after.",
        "",
        *table(head, rows),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"some of: {', '.join(NETWORKS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--data", default=dinov2.DATA, help="folder of the IDX files of Fashion-MNIST")
    given = parser.parse_args()
    results = Stored("exchange")
    wanted = [(network, seed) for network in given.networks or NETWORKS for seed in given.seeds]
    for network, seed in progress(wanted, "exchange", console=Console(stderr=True)):
        known = results.get(network, {}).get(str(seed), {})
        if missing := [budget for budget in BUDGETS if str(budget) not in known]:
            for budget, point in measured(*setting_of(network, given.data), seed, missing):
                known = {**known, str(budget): point}
                results[network] = {**results.get(network, {}), str(seed): known}
    results.show(render(results))


if __name__ == "__main__":
    main()
