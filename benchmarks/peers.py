"""Side by side: optin, the paper's recipe, Kwon et al., the package torch-pruning, uniform width, chance, merging.

    python benchmarks/peers.py                                  everything
    python benchmarks/peers.py resnet56 --seeds 0
    python benchmarks/peers.py minilm --rows optin kwon

Networks, calibration and test data of the other benchmarks: MiniLM on sentences, DINOv2 ViT-S/14 and ResNet-56 on
Fashion-MNIST. Every row and seed runs in a process of its own, all budgets in turn, so that its peak memory is its
own. Peers that need labels get those of the calibration set; optin gets none. Needs `pip install torch-pruning`.
Rows that are done are kept, so a run can be continued. Prints the tables, and stores them in docs/results/peers.md,
that of MiniLM in the README too, the figures in docs/results/peers.json, and a picture of quality against MACs for
each network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from allocations import Chooser
from measuring import RESULTS, Stored, peak
from peer_networks import NETWORKS, OURS, Network, network
from rich.console import Console
from rich.progress import track as progress
from text_tables import bar_table, mean_and_spread, table
from torch_pruning_peer import macs, pruned

import optin
from optin.app.benchmark import compare_speed
from optin.app.pictures import styled
from optin.recipe import Recipe

BUDGETS = (80, 70, 60, 50, 40)
SPEED, TOKENS = 50, 32  # budget at which throughput is measured, and on how many tokens a text
FEW: dict[str, Any] = {"calibration__examples": 8, "trajectory__draws": 2}  # for `exact`, one forward per unit
LABELLED = 256  # examples whose gradients torch-pruning takes
UNIFORM, RANDOM, MERGING = "uniform width", "random", "constant merging"
TORCH_PRUNING = "torch-pruning, "
MAGNITUDE, TAYLOR = f"{TORCH_PRUNING}magnitude", f"{TORCH_PRUNING}taylor"
PEERS = ("paper", "kwon", MAGNITUDE, TAYLOR, UNIFORM, RANDOM)
FIXED = {MAGNITUDE, UNIFORM, MERGING}  # rows that draw nothing: run on the first seed alone
METRICS = ("accuracy", "kl")
README = RESULTS.parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks/peers.py -->", "<!-- end -->"  # between them the README holds the first table


def rows(name: str) -> list[str]:
    """The rows of one network."""
    return [*OURS[name], *PEERS, *([MERGING] if name == "dinov2" else [])]


def networks(setting: Network, row: str, seed: int) -> Iterator[tuple[int, torch.nn.Module]]:
    """The network of one row at every budget that it reaches."""
    if row.startswith(TORCH_PRUNING):
        kind = row.removeprefix(TORCH_PRUNING)
        draw = Recipe(seed=seed).override(calibration__examples=LABELLED)
        yield from pruned(setting.model, kind, setting.labelled(draw), BUDGETS)
        return
    recipe = recipe_of(setting, row).override(seed=seed)
    batches = setting.labelled(recipe) if recipe.criterion == "fisher" else setting.calibration(recipe)
    scores = optin.score(setting.model, batches, recipe=recipe)
    for budget in BUDGETS:
        try:
            if row == UNIFORM:
                plan = Chooser(setting.model, scores).uniform(scores.curves, budget)
            else:
                plan = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
        except optin.errors.BudgetError:
            continue
        yield budget, optin.apply(setting.model, plan, batches, recipe=recipe).model


def recipe_of(setting: Network, row: str) -> Recipe:
    """The recipe of a row that optin computes."""
    masks_only = Recipe().override(refit__enabled=False)
    return {
        **setting.ours,
        "paper": optin.PRESETS["paper"].override(**FEW),
        "kwon": optin.PRESETS["kwon"],
        UNIFORM: masks_only.override(criterion="magnitude"),
        RANDOM: masks_only.override(criterion="random"),
        MERGING: masks_only.override(criterion="random", tokens__merge="constant"),
    }[row]


def job(name: str, row: str, seed: int) -> None:
    """One row of one network and seed; prints JSON."""
    setting = network(name)
    example = {key: value[:1] for key, value in setting.calibration(Recipe())[0].items()}
    dense = macs(setting.model, example)
    found: dict[str, Any] = {**setting.quality, "points": []}
    before, start = peak(), time.perf_counter()
    for budget, small in networks(setting, row, seed):
        if not found["points"]:
            found |= {"seconds": time.perf_counter() - start, "peak": (peak() - before) / 2**20}
        figures = setting.measure(small)
        share = macs(small, example) / dense
        found["points"].append({"budget": budget, "macs": share, **{metric: figures[metric] for metric in METRICS}})
        if budget == SPEED:
            (speed,) = compare_speed(setting.model, small, rounds=5, lengths=[length_of(example)])
            found["speedup"] = speed.speedup
    print(json.dumps(found))


def length_of(example: dict[str, torch.Tensor]) -> int:
    """What throughput is measured on: the images' side in pixels, or some tokens."""
    first = next(iter(example.values()))
    return first.shape[-1] if first.is_floating_point() else TOKENS


def measured(name: str, row: str, seed: int) -> dict[str, Any]:
    """`job` in a fresh process."""
    command = [sys.executable, __file__, "--job", name, row, str(seed)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown, and whether ours is at or above every peer."""
    lines: list[str] = []
    bars = []
    for name, tests in NETWORKS.items():
        found = {row: by_seed for row in rows(name) if (by_seed := results.get(f"{name}: {row}"))}
        if not found:
            continue
        dense = next(iter(next(iter(found.values())).values()))["dense_accuracy"]
        seeds = max(len(by_seed) for by_seed in found.values())
        lines += [
            f"## {name}",
            "",
            f"Dense accuracy {100 * dense:.1f} % on {tests}. Accuracy in % ± standard deviation (seeds: {seeds}; "
            "one for what draws nothing), then KL of the outputs to the dense ones. Seconds and memory are those of "
            f"the first budget, scoring and all, in one process; throughput is at {SPEED} %, as a multiple of the "
            "dense network's. Both are of the seeds that were timed; an empty cell was not reached.",
            "",
            *table(
                ["", *(f"{budget} % MACs" for budget in BUDGETS), "s", "peak, MB", "throughput"],
                (
                    [row, *(cell(by_seed, budget) for budget in BUDGETS), *costs_of(by_seed)]
                    for row, by_seed in found.items()
                ),
            ),
            "",
            *(
                [f"Not run yet: {'; '.join(missing)}.", ""]
                if (missing := [r for r in rows(name) if r not in found])
                else []
            ),
            f"![{name}](peers-{name}.svg)",
            "",
        ]
        picture(name, found, dense)
        bars += [] if missing else list(comparisons(name, found))
    return "\n".join([*lines, *(bar_table(bars) if bars else [])]).strip() + "\n"


def column(by_seed: dict[str, Any], budget: int, key: str) -> list[float]:
    """One figure at one budget, of every seed."""
    return [point[key] for found in by_seed.values() for point in found["points"] if point["budget"] == budget]


def cell(by_seed: dict[str, Any], budget: int) -> str:
    """Accuracy and KL."""
    accuracy, kl = (column(by_seed, budget, metric) for metric in METRICS)
    if not accuracy:
        return ""
    return f"{mean_and_spread([100 * value for value in accuracy], 1)}, {statistics.mean(kl):.4f}"


def costs_of(by_seed: dict[str, Any]) -> list[str]:
    """Seconds, peak memory and throughput."""
    figures = (("seconds", ".0f"), ("peak", ".0f"), ("speedup", ".2f"))
    means = ([found[key] for found in by_seed.values() if key in found] for key, _ in figures)
    return [
        f"{statistics.mean(values):{form}}" if values else ""
        for values, (_, form) in zip(means, figures, strict=True)
    ]


def comparisons(name: str, found: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """At every budget: the best of ours against the best peer, by KL."""
    for budget in BUDGETS:
        by_row = {row: statistics.mean(kl) for row, seeds in found.items() if (kl := column(seeds, budget, "kl"))}
        ours = {row: kl for row, kl in by_row.items() if row.startswith("optin")}
        peers = {row: kl for row, kl in by_row.items() if row not in ours}
        if ours and peers:
            best, other = min(ours, key=ours.__getitem__), min(peers, key=peers.__getitem__)
            measured = f"{best} {ours[best]:.4f}, {other} {peers[other]:.4f}"
            yield f"{name} at {budget} %: KL below every peer's", measured, ours[best] <= peers[other]


def picture(name: str, found: dict[str, Any], dense: float) -> None:
    """Accuracy and KL against the MACs that were left; bars are standard deviations over seeds."""
    pyplot = styled()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for row, by_seed in found.items():
        budgets = [budget for budget in BUDGETS if column(by_seed, budget, "macs")]
        left = [100 * statistics.mean(column(by_seed, budget, "macs")) for budget in budgets]
        for axis, metric in zip(axes, METRICS, strict=True):
            by_budget = [column(by_seed, budget, metric) for budget in budgets]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0 for values in by_budget]
            width = 2.5 if row.startswith("optin") else 1
            means = [statistics.mean(values) for values in by_budget]
            axis.errorbar(left, means, spreads, linewidth=width, elinewidth=1, capsize=2, label=row)
    axes[0].axhline(dense, color="grey", linestyle="--", linewidth=1, marker="")
    axes[1].set_yscale("log")
    for axis, title in zip(axes, ("accuracy", "KL to the dense outputs"), strict=True):
        axis.set_xlabel("MACs, % of the dense network's")
        axis.set_title(title)
    axes[1].legend()
    figure.savefig(RESULTS / f"peers-{name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(NETWORKS)}")
    parser.add_argument("--rows", nargs="+", help="some of the rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        name, row, seed = arguments.job
        job(name, row, int(seed))
        return
    results = Stored("peers")
    jobs = [
        (name, row, seed)
        for seed in arguments.seeds
        for name in arguments.networks or NETWORKS
        for row in rows(name)
        if arguments.rows is None or row in arguments.rows
        if seed == arguments.seeds[0] or row not in FIXED
        if str(seed) not in results.get(f"{name}: {row}", {})
    ]
    for name, row, seed in progress(jobs, description="peers", console=Console(stderr=True)):
        key = f"{name}: {row}"
        figures = measured(name, row, seed)
        results.reload()
        results[key] = {**results.get(key, {}), str(seed): figures}
    tables = render(results)
    results.show(tables)
    head, _, rest = README.read_text().partition(BEGIN)
    table = tables.partition("## minilm\n")[2].partition("## dinov2")[0].strip()
    README.write_text(
        f"{head}{BEGIN}\n{table.replace('](peers-', '](docs/results/peers-')}\n{END}{rest.partition(END)[2]}"
    )


if __name__ == "__main__":
    main()
