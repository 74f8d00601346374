"""Budgets of latency: predicted and measured time of one forward, and what rounding sizes gains.

    python benchmarks/latency.py                    all networks
    python benchmarks/latency.py bert-6x384

Networks of random weights, ranked by magnitude: time does not depend on which units stay. Block times are measured
anew, not taken from earlier runs. Every pruned network is timed in turn with the dense one. Rounding is compared at
60 % of the MACs, again in turn. The process restarts itself with an allocator that keeps what is freed (glibc), as
servers are run: how long the system takes to hand out memory changes from minute to minute. Prints the tables, and
stores them in docs/results/latency.md, the figures in docs/results/latency.json.
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
from optin.arch.inputs import example_inputs
from optin.latency import forward_ms
from optin.recipe import Recipe

BATCHES = (1, 32)
BUDGETS = (80, 60, 40)
ROUNDINGS = (1, 8, 16, 32, 64)
ROUNDS = 9
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
    with torch.inference_mode():
        for model in models:
            model(**inputs)
        rounds = [[forward_ms(model, inputs) for model in models] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def measure(name: str) -> dict[str, Any]:
    """Predicted and measured times of one network at every batch and budget, and of every rounding."""
    model, length = network(name), LENGTHS[name]
    recipe = Recipe(criterion="magnitude", length=length)
    scores = optin.score(model, [example_inputs(model, length, 2)], recipe=recipe)
    found: dict[str, Any] = {"rows": [], "rounding": []}
    for batch in progress(BATCHES, description=name, console=Console(stderr=True)):
        inputs, timed = example_inputs(model, length, batch), recipe.override(latency_batch=batch)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["OPTIN_CACHE"] = folder
            start = time.perf_counter()
            optin.plan(model, scores, "90% latency", recipe=timed)
            fitting = time.perf_counter() - start
            plans = {budget: optin.plan(model, scores, f"{budget}% latency", recipe=timed) for budget in BUDGETS}
            del os.environ["OPTIN_CACHE"]
        for budget, plan in plans.items():
            dense, pruned = in_turn([model, optin.apply(model, plan).model], inputs)
            assert plan.latency is not None
            found["rows"].append(
                {
                    "batch": batch,
                    "budget": budget,
                    "fitting": fitting,
                    "dense": [plan.latency.dense_ms, dense],
                    "pruned": [plan.latency.predicted_ms, pruned],
                    "macs": plan.pruned.macs / plan.dense.macs,
                }
            )
        cut = [
            optin.apply(model, optin.plan(model, scores, "60%", recipe=recipe.override(round_to=multiple))).model
            for multiple in ROUNDINGS
        ]
        times = dict(zip(ROUNDINGS, in_turn(cut, inputs), strict=True))
        found["rounding"].append({"batch": batch, "times": times})
    return found


def error(row: dict[str, Any]) -> float:
    """Predicted above measured time, in percent."""
    predicted, measured = row["pruned"]
    return 100 * (predicted / measured - 1)


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    rows = [
        [
            name,
            str(row["batch"]),
            f"{row['budget']} %",
            f"{row['dense'][0]:.1f}, {row['dense'][1]:.1f}",
            f"{row['pruned'][0]:.1f}",
            f"{row['pruned'][1]:.1f}",
            f"{error(row):+.1f} %",
            f"{100 * row['macs']:.1f} %",
            f"{row['fitting']:.0f}",
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
    worst = max((error(row) for found in results.values() for row in found["rows"]), key=abs)
    bars = bar_table([(f"predicted within {WITHIN:g} % of measured", f"{worst:+.1f} %", abs(worst) <= WITHIN)])
    return "\n".join(
        [
            f"One forward on {torch.get_num_threads()} threads, float32: bert-6x384 at 128 tokens, the others at 224 "
            "pixels; freed memory stays with the process.",
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
