"""The true shapes of the paper's vision networks, with random weights: what the job costs and what it saves.

    python benchmarks/shapes.py                  all shapes
    python benchmarks/shapes.py deit-tiny        one of them

Each network is pruned in a process of its own, on random images of 224 pixels. Accuracy means nothing here: MACs,
parameters, throughput, time and memory do not depend on the weights. Prints the table, and stores it in
docs/results/shapes.md, the figures in docs/results/shapes.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from measuring import Stored, forward_seconds, peak
from rich.console import Console
from rich.progress import track as progress
from text_tables import table

import optin
from optin.app.benchmark import compare_speed

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit-tiny": ("DeiT", {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}),
    "deit-small": ("DeiT", {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}),
    "deit-base": ("DeiT", {}),
    "vit-base": ("ViT", {}),
    "swin-tiny": ("Swin", {}),
}
BUDGETS = ("65%", "50%")
EXAMPLES = 32


def job(shape: str, preset: str) -> None:
    """Score, search, shrink and refit one network; prints JSON."""
    import transformers

    prefix, changes = SHAPES[shape]
    torch.manual_seed(0)
    cls = getattr(transformers, f"{prefix}ForImageClassification")
    model = cls(cls.config_class(num_labels=1000, **changes)).eval()
    batches = [{"pixel_values": torch.randn(16, 3, 224, 224)} for _ in range(EXAMPLES // 16)]
    recipe = optin.PRESETS[preset].override(trajectory__draws=EXAMPLES // 2, tokens__examples=16)
    forward_seconds(model, batches[:1])
    before, forward, start = peak(), forward_seconds(model, batches), time.perf_counter()
    scores = optin.score(model, batches, recipe=recipe)
    results = []
    for budget in BUDGETS:
        plan = optin.plan(model, scores, budget, recipe=recipe)
        first = budget == BUDGETS[0]  # the whole job is timed; what a refit costs is much the same at any budget
        result = optin.apply(model, plan, batches if first else None, recipe=recipe)
        if first:
            seconds, highest = time.perf_counter() - start, peak() - before
        (speed,) = compare_speed(model, result.model, batch=8, rounds=3)
        sizes = {name: result.report[name] for name in ("macs", "parameters")}
        results.append({"budget": plan.provenance["budget"], **sizes, "speed": speed.to_dict()})
    print(json.dumps({"forward": forward, "job": seconds, "peak": highest / 2**20, "budgets": results}))


def render(found: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = [
        [
            name,
            at["budget"],
            *(
                f"{at[kind]['dense'] / 10**6:,.1f} to {at[kind]['pruned'] / 10**6:,.1f}"
                for kind in ("macs", "parameters")
            ),
            f"{at['speed']['speedup']:.2f} ({at['speed']['share_of_ideal']:.2f})",
            f"{row['job'] / row['forward']:.1f}",
            f"{row['job']:.0f}",
            f"{row['peak']:.0f}",
        ]
        for name, row in found.items()
        for at in row["budgets"]
    ]
    head = [
        "network",
        "budget",
        "MMACs",
        "M parameters",
        "speed-up (of the ideal)",
        "job in passes",
        "job, s",
        "peak, MB",
    ]
    text = f"The job at {BUDGETS[0]} on {EXAMPLES} images, its peak memory above the model; throughput at batch 8."
    return "\n".join([text, "", *table(head, rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help=f"some of: {', '.join(SHAPES)}")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(*arguments.job)
        return
    found = Stored("shapes")
    jobs = [
        (s, p)
        for s in arguments.shapes or SHAPES
        for p in ("beta", "tau")
        if not (s.startswith("swin") and p == "tau")
    ]
    for shape, preset in progress(jobs, description="shapes", console=Console(stderr=True)):
        command = [sys.executable, __file__, "--job", shape, preset]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[f"{shape} {preset}"] = json.loads(output.splitlines()[-1])
    found.show(render(found))


if __name__ == "__main__":
    main()
