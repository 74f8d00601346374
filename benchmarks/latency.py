"""Budgets of latency: predicted and measured time of one forward, and what rounding sizes gains.

    python benchmarks/latency.py                    all networks
    python benchmarks/latency.py bert-6x384

Networks of random weights, ranked by magnitude: time does not depend on which units stay. Block times are measured
anew three times, not taken from earlier runs, and the networks planned with them timed in turn with the dense one:
the table has medians, and all three errors, since a shared machine may be slower while one of the two is measured.
Rounding is compared at 60 % of the MACs, again in turn. The process restarts itself with an allocator that keeps what
is freed (glibc), as servers are run: how long the system takes to hand out memory changes from minute to minute.
Prints the tables, and stores them in docs/results/latency.md, the figures in docs/results/latency.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from measuring import Stored
from rich.console import Console
from rich.progress import track as progress
from text_tables import bar_table, table
from torch import nn

import optin
from optin.app.benchmark import side_by_side
from optin.describing.inputs import example_inputs
from optin.recipe import Recipe

BATCHES = (1, 32)
BUDGETS = (80, 60, 40)
ROUNDINGS = (1, 8, 16, 32, 64)
ROUNDS = 9
REPEATS = 3
WITHIN = 10.0  # percent
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}  # freed memory stays with the process
LENGTHS = {"bert-6x384": 128, "deit-small": 224, "resnet-50": 224}


def network(name: str) -> nn.Module:
    """With random weights."""
    import torchvision
    import transformers

    torch.manual_seed(0)
    if name == "resnet-50":
        return torchvision.models.resnet50().eval()
    widths = {"hidden_size": 384, "intermediate_size": 1536}
    if name == "deit-small":
        config = transformers.DeiTConfig(**widths, num_attention_heads=6, num_labels=1000)
        return transformers.DeiTForImageClassification(config).eval()
    config = transformers.BertConfig(**widths, num_hidden_layers=6, num_attention_heads=12)
    return transformers.BertForSequenceClassification(config).eval()


def in_turn(models: list[nn.Module], inputs: dict[str, torch.Tensor]) -> list[float]:
    """Median milliseconds of each, all timed once a round."""
    return [statistics.median(times) for times in zip(*side_by_side(models, inputs, ROUNDS), strict=True)]


def predictions(
    model: nn.Module, scores: optin.Scores, inputs: dict[str, torch.Tensor], recipe: Recipe
) -> dict[int, dict[str, Any]]:
    """By budget, from one measurement of the block times: times of the dense and the pruned network."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPTIN_CACHE"] = folder
        start = time.perf_counter()
        optin.plan(model, scores, "90% latency", recipe=recipe)
        fitting = time.perf_counter() - start
        plans = {budget: optin.plan(model, scores, f"{budget}% latency", recipe=recipe) for budget in BUDGETS}
        del os.environ["OPTIN_CACHE"]
    found = {}
    for budget, plan in plans.items():
        dense, pruned = in_turn([model, optin.apply(model, plan).model], inputs)
        assert plan.latency is not None
        found[budget] = {
            "fitting": fitting,
            "dense": [plan.latency.dense_ms, dense],
            "pruned": [plan.latency.predicted_ms, pruned],
            "macs": plan.pruned.macs / plan.dense.macs,
        }
    return found


def measure(name: str) -> dict[str, Any]:
    """Predicted and measured times of one network at every batch and budget, and of every rounding."""
    model, length = network(name), LENGTHS[name]
    recipe = Recipe(criterion="magnitude", length=length)
    scores = optin.score(model, [example_inputs(model, length, 2)], recipe=recipe)
    found: dict[str, Any] = {"rows": [], "rounding": []}
    for batch in progress(BATCHES, description=name, console=Console(stderr=True)):
        inputs, timed = example_inputs(model, length, batch), recipe.override(latency_batch=batch)
        repeats = [predictions(model, scores, inputs, timed) for _ in range(REPEATS)]
        for budget in BUDGETS:
            found["rows"].append({"batch": batch, "budget": budget, "repeats": [one[budget] for one in repeats]})
        cut = [
            optin.apply(model, optin.plan(model, scores, "60%", recipe=recipe.override(round_to=multiple))).model
            for multiple in ROUNDINGS
        ]
        times = dict(zip(ROUNDINGS, in_turn(cut, inputs), strict=True))
        found["rounding"].append({"batch": batch, "times": times})
    return found


def errors(row: dict[str, Any]) -> list[float]:
    """Predicted above measured time, in percent, each time."""
    return [100 * (predicted / measured - 1) for predicted, measured in (one["pruned"] for one in row["repeats"])]


def medians(row: dict[str, Any], key: str) -> list[float]:
    """Of the predicted and of the measured time."""
    return [statistics.median(times) for times in zip(*(one[key] for one in row["repeats"]), strict=True)]


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    rows = [
        [
            name,
            str(row["batch"]),
            f"{row['budget']} %",
            ", ".join(f"{ms:.1f}" for ms in medians(row, "dense")),
            *(f"{ms:.1f}" for ms in medians(row, "pruned")),
            f"{statistics.median(errors(row)):+.1f} % ({', '.join(f'{value:+.1f}' for value in errors(row))})",
            f"{100 * statistics.median(one['macs'] for one in row['repeats']):.1f} %",
            f"{statistics.median(one['fitting'] for one in row['repeats']):.0f}",
        ]
        for name, found in results.items()
        for row in found["rows"]
    ]
    head = [
        "network",
        "batch",
        "latency",
        "dense, ms (fitted, measured)",
        "predicted, ms",
        "measured, ms",
        "predicted above measured",
        "MACs left",
        "block times, s",
    ]
    rounding = [
        [
            name,
            str(found["batch"]),
            *(f"{times[str(m)]:.1f} ({times[str(1)] / times[str(m)]:.2f})" for m in ROUNDINGS),
        ]
        for name, by_batch in results.items()
        for found in by_batch["rounding"]
        for times in [{str(multiple): value for multiple, value in found["times"].items()}]
    ]
    by_row = [errors(row) for found in results.values() for row in found["rows"]]
    worst = max(map(statistics.median, by_row), key=abs)
    alone = max((value for each in by_row for value in each), key=abs)
    told = f"{worst:+.1f} % (one alone {alone:+.1f} %)"
    bars = bar_table([(f"predicted within {WITHIN:g} % of measured, by the medians", told, abs(worst) <= WITHIN)])
    return "\n".join(
        [
            f"One forward on {torch.get_num_threads()} threads, float32: bert-6x384 at 128 tokens, the others at 224 "
            f"pixels; freed memory stays with the process. Medians over {REPEATS} measurements of block times and "
            "the networks planned by each; in brackets, each.",
            "",
            *table(head, rows),
            "",
            "At 60 % of the MACs with the sizes of neurons and channels rounded to multiples of: ms, and in brackets "
            "how many times faster than unrounded.",
            "",
            *table(["network", "batch", *map(str, ROUNDINGS)], rounding),
            "",
            *bars,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(LENGTHS)}")
    arguments = parser.parse_args()
    if not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})
    results = Stored("latency")
    for name in arguments.networks or LENGTHS:
        results[name] = measure(name)
    results.show(render(results))


if __name__ == "__main__":
    main()
