"""What the default job costs as networks and calibration sets grow: time, memory, profile.

    python benchmarks/scaling.py                        all of: base, examples, widths, dtype, profile
    python benchmarks/scaling.py base                   BERT-base, 256 x 128 tokens: the bars
    python benchmarks/scaling.py examples widths

Networks of random weights and inputs without padding; every job runs in a process of its own. `dtype` repeats one
job in bfloat16, where the processor multiplies it itself. Prints the tables, and stores them in
docs/results/scaling.md, the figures in docs/results/scaling.json.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import pstats
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import Stored, forward_seconds, peak
from rich.console import Console
from rich.progress import track as progress
from text_tables import bar_table, table
from torch import nn

import optin
from optin.describing import describe
from optin.recipe import Recipe
from optin.running.batches import Batches
from optin.scoring.criteria import Scoring
from optin.scoring.exact import exact_parts

TOKENS = 128
BUDGET = "50%"
# layers, width, heads
SHAPES = {
    "bert 6x384": (6, 384, 12),
    "bert 12x384": (12, 384, 12),
    "bert 6x768": (6, 768, 12),
    "bert base": (12, 768, 12),
    "bert large": (24, 1024, 16),
    "vit large": (24, 1024, 16),
}
SMALL, BASE = "bert 6x384", "bert base"
EXAMPLES = (32, 128, 512, 2048, 4096)
PASSES, MEGABYTES, FACTOR = 15, 3072, 500
UNITS = 48  # that `exact` is timed on
SHARE = 0.02  # of the time, from which a function is in the profile


def network(shape: str) -> nn.Module:
    """With random weights."""
    import transformers

    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
    if shape.startswith("vit"):
        return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_labels=1000)).eval()
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()


def inputs(shape: str, examples: int, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    """Random ones, 32 a batch."""
    generator = torch.Generator().manual_seed(0)
    sizes = [min(32, examples - start) for start in range(0, examples, 32)]
    if shape.startswith("vit"):
        return [{"pixel_values": torch.randn(size, 3, 224, 224, generator=generator, dtype=dtype)} for size in sizes]
    return [{"input_ids": torch.randint(5, 30000, (size, TOKENS), generator=generator)} for size in sizes]


def job(shape: str, examples: int, dtype: str, exact: bool) -> None:
    """The default job on one shape; prints JSON."""
    kind = getattr(torch, dtype)
    model, batches = network(shape).to(kind), inputs(shape, examples, kind)
    forward_seconds(model, batches[:1])
    before, forward = peak(), forward_seconds(model, batches)
    start = time.perf_counter()
    scores = optin.score(model, batches)
    scored = time.perf_counter()
    plan = optin.plan(model, scores, BUDGET)
    searched = time.perf_counter()
    optin.apply(model, plan, batches, scores=scores)
    end, highest = time.perf_counter(), peak()
    found: dict[str, Any] = {
        "forward": forward,
        "score": scored - start,
        "search": searched - scored,
        "apply": end - searched,
        "peak": (highest - before) / 2**20,
    }
    if exact:
        found["exact_over_sketch"] = exact_seconds(model, batches) / sketch_seconds(model, batches)
    print(json.dumps(found))


def exact_seconds(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Of all units, from some of every group on one batch, in proportion."""
    space, recipe = describe(model), Recipe(criterion="exact")
    each = max(1, UNITS // len(space))
    chosen = {group.name: list(range(min(each, group.size))) for group in space}
    few = Batches.of(batches[:1], torch.device("cpu"))
    start = time.perf_counter()
    exact_parts(Scoring(model, space, few, recipe), chosen)
    seconds = time.perf_counter() - start
    share = sum(map(len, chosen.values())) / sum(group.size for group in space)
    return seconds / share * len(batches)


def sketch_seconds(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Of all units on all batches."""
    start = time.perf_counter()
    optin.score(model, batches, recipe=Recipe(criterion="sketch"))
    return time.perf_counter() - start


def measured(shape: str, examples: int, dtype: str = "float32", exact: bool = False) -> dict[str, Any]:
    """`job` in a fresh process."""
    command = [sys.executable, __file__, "--job", shape, str(examples), dtype, *(["exact"] if exact else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def widths(results: Stored) -> None:
    """All shapes on 64 examples."""
    for shape in progress(SHAPES, description="widths", console=Console(stderr=True)):
        results[f"{shape}, 64"] = measured(shape, 64)


def examples(results: Stored) -> None:
    """One shape, the calibration set growing."""
    for count in progress(EXAMPLES, description="examples", console=Console(stderr=True)):
        results[f"{SMALL}, {count}"] = measured(SMALL, count)


def base(results: Stored) -> None:
    """BERT-base on 256 examples, and `exact` against the sketch there."""
    results[f"{BASE}, 256"] = measured(BASE, 256, exact=True)


def dtype(results: Stored) -> None:
    """One shape in bfloat16."""
    results[f"{SMALL}, 256"] = measured(SMALL, 256)
    known = torch.cpu.get_capabilities()
    if any(known.get(name) for name in ("amx_bf16", "avx512_bf16")):
        results[f"{SMALL}, 256, bfloat16"] = measured(SMALL, 256, "bfloat16")


def profile(results: Stored) -> None:
    """Where the time of the default job goes, on BERT-base and 64 examples: shares of functions, callees included."""
    model, batches = network(BASE), inputs(BASE, 64, torch.float32)
    profiler = cProfile.Profile()
    profiler.enable()
    optin.prune(model, batches, BUDGET)
    profiler.disable()
    figures: Any = pstats.Stats(profiler)
    home, shares = Path(optin.__file__).parent, {}
    for (file, _, name), (*_, cumulative, _) in figures.stats.items():
        if home in Path(file).parents and not name.startswith("<"):
            shares[f"{Path(file).relative_to(home).with_suffix('')}.{name}"] = cumulative / figures.total_tt
    results["profile"] = {name: share for name, share in shares.items() if share >= SHARE}


PARTS = {"base": base, "examples": examples, "widths": widths, "dtype": dtype, "profile": profile}


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    results = dict(results)
    shares = results.pop("profile", {})
    rows = [
        [
            name,
            f"{found['forward']:.1f}",
            *(f"{found[key] / found['forward']:.1f}" for key in ("score", "apply")),
            f"{passes(found):.1f}",
            f"{found['search']:.2f}",
            f"{found['peak']:.0f}",
        ]
        for name, found in results.items()
    ]
    head = [
        "network, examples",
        "dense pass, s",
        "score, passes",
        "refit, passes",
        "job, passes",
        "search, s",
        "peak, MB",
    ]
    lines = [
        f"The default job at {BUDGET}, {TOKENS} tokens an example (ViT: 224 pixels).",
        "",
        *table(head, rows),
        "",
    ]
    bars = []
    if found := results.get(f"{BASE}, 256"):
        bars += [
            (f"BERT-base, 256 x 128: at most {PASSES} passes", f"{passes(found):.1f}", passes(found) <= PASSES),
            (f"and {MEGABYTES:,} MB above the model", f"{found['peak']:,.0f}", found["peak"] <= MEGABYTES),
            (
                f"`exact` there over {FACTOR} times the sketch",
                f"{found['exact_over_sketch']:.0f}",
                found["exact_over_sketch"] > FACTOR,
            ),
        ]
    counts = [count for count in EXAMPLES if f"{SMALL}, {count}" in results]
    if len(counts) > 1:
        power = growth([(count, seconds(results[f"{SMALL}, {count}"])) for count in counts[-2:]])
        bars.append(("time grows no faster than the examples", f"power {power:.2f}", power <= 1.05))
    wide = [
        (SHAPES[shape][1], seconds(results[f"{shape}, 64"]))
        for shape in (SMALL, "bert 6x768")
        if f"{shape}, 64" in results
    ]
    if len(wide) == 2:
        bars.append(("and no faster than the width cubed", f"power {growth(wide):.2f}", growth(wide) <= 3))
    lines += [*bar_table(bars), ""]
    if shares:
        ordered = sorted(shares.items(), key=lambda entry: -entry[1])
        lines += [
            "Where the time goes, BERT-base and 64 examples: shares of the seconds by function, callees included.",
            "",
            *table(["function", "share"], ([f"`{name}`", f"{100 * share:.0f} %"] for name, share in ordered)),
            "",
        ]
    return "\n".join(lines)


def seconds(found: dict[str, Any]) -> float:
    """Of the whole job."""
    return float(found["score"] + found["search"] + found["apply"])


def passes(found: dict[str, Any]) -> float:
    """The job in dense forward passes over its calibration set."""
    return seconds(found) / float(found["forward"])


def growth(points: list[tuple[int, float]]) -> float:
    """The power of the size that the time grows with between two points."""
    (small, before), (large, after) = points
    return math.log(after / before) / math.log(large / small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        shape, count, kind, *exact = arguments.job
        job(shape, int(count), kind, bool(exact))
        return
    results = Stored("scaling")
    for name in arguments.parts or PARTS:
        PARTS[name](results)
    results.show(render(results))


if __name__ == "__main__":
    main()
