"""What the default job costs on a GPU, and how much faster its result is there.

    scripts/gpu                                  the contract on the GPU, then this
    python benchmarks/gpu.py [NAME ...]          some of the shapes

Networks of true shapes and random weights, random inputs without padding. Where there is no GPU the same runs on the
processor, on tiny shapes. Prints a table, and stores it in docs/results/gpu.md, its figures in docs/results/gpu.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import Stored
from text_tables import bar_table, table
from torch import nn

import optin
from optin.app.benchmark import side_by_side
from optin.choosing.latency import now
from optin.describing import describe
from optin.running.modules import inference_mode_of

Inputs = list[dict[str, torch.Tensor]]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = DEVICE.type == "cpu"
BUDGET = "80%" if TINY else "50%"
BATCHES = (1, 128)
SECONDS, SHARE = 5.0, 0.85  # of BERT-base's job; of the ideal, at the larger batch
# name: kind, its sizes, examples, tokens or pixels, precision
SHAPES: dict[str, tuple[str, dict[str, int], int, int, str]] = {
    "BERT-base": ("bert", {}, 256, 128, "float32"),
    "BERT-base, bfloat16": ("bert", {}, 256, 128, "bfloat16"),
    "ViT-B/16": ("vit", {}, 256, 224, "float32"),
    "ViT-B/16, bfloat16": ("vit", {}, 256, 224, "bfloat16"),
    "ResNet-50": ("resnet", {}, 256, 224, "float32"),
    "Llama 1B, bfloat16": (
        "llama",
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "vocab_size": 128256},
        128, 1024, "bfloat16",
    ),
    "Llama 8B, bfloat16": (
        "llama",
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14336, "vocab_size": 128256},
        128, 1024, "bfloat16",
    ),
}  # fmt: skip
SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def network(kind: str, sizes: dict[str, int], side: int) -> nn.Module:
    """With random weights, on the device."""
    import transformers

    torch.manual_seed(0)
    if kind == "resnet":
        import timm

        made: nn.Module = timm.create_model("resnet18" if TINY else "resnet50", num_classes=10 if TINY else 1000)
        return made.eval()
    sizes = SMALL | ({"num_key_value_heads": 2} if kind == "llama" else {}) if TINY else sizes
    if kind == "vit":
        config = transformers.ViTConfig(**sizes, image_size=side, num_labels=10 if TINY else 1000)
        return transformers.ViTForImageClassification(config).eval()
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()


def inputs(kind: str, examples: int, side: int, precision: torch.dtype, batch: int) -> Inputs:
    """Random ones, on the device."""
    generator = torch.Generator().manual_seed(0)
    counts = [min(batch, examples - start) for start in range(0, examples, batch)]
    if kind in ("vit", "resnet"):
        name = "x" if kind == "resnet" else "pixel_values"
        made = (torch.randn(count, 3, side, side, generator=generator) for count in counts)
        return [{name: images.to(DEVICE, precision)} for images in made]
    return [{"input_ids": torch.randint(5, 30000, (count, side), generator=generator).to(DEVICE)} for count in counts]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What some work gives, its seconds, and the most memory on the device meanwhile, in MiB (0 on the processor)."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = now(DEVICE)
    found = work()
    seconds = (now(DEVICE) - start) / 1e12
    return found, seconds, torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else 0.0


@torch.inference_mode()
def passed(model: nn.Module, batches: Inputs) -> None:
    """One dense pass."""
    with inference_mode_of(model):
        for batch in batches:
            model(**batch)


def measured(name: str) -> dict[str, Any]:
    """The job on one shape, stage by stage, and both networks side by side."""
    kind, sizes, examples, side, dtype = SHAPES[name]
    examples, side = (16, 32) if TINY else (examples, side)
    precision, batch = getattr(torch, dtype), 8 if kind == "llama" else 32
    model = network(kind, sizes, side).to(DEVICE, precision)
    batches = inputs(kind, examples, side, precision, batch)
    found: dict[str, Any] = {"shape": [examples, side], "weights": sum(p.numel() for p in model.parameters())}
    passed(model, batches[:1])
    _, found["forward"], _ = timed(lambda: passed(model, batches))
    found["memory"] = torch.cuda.memory_allocated() / 2**20 if DEVICE.type == "cuda" else 0.0
    peaks = {}
    try:
        _, found["describe"], peaks["describe"] = timed(lambda: describe(model))
    except optin.ArchitectureError as error:
        return found | {"refused": str(error).splitlines()[0]}
    scores, found["score"], peaks["score"] = timed(lambda: optin.score(model, batches))
    plan, found["search"], peaks["search"] = timed(lambda: optin.plan(model, scores, BUDGET))
    result, found["apply"], peaks["apply"] = timed(lambda: optin.apply(model, plan, batches, scores=scores))
    found["peaks"] = peaks
    found["speed"] = {}
    for count in BATCHES:
        few = inputs(kind, count, side, precision, count)
        dense, pruned = zip(*side_by_side((model, result.model), few[0]), strict=True)
        found["speed"][str(count)] = {
            "dense_ms": statistics.median(dense),
            "pruned_ms": statistics.median(pruned),
            "ideal": plan.dense.macs / plan.pruned.macs,
        }
    return found


def seconds(found: dict[str, Any]) -> float:
    """Of the whole job."""
    return float(sum(found[stage] for stage in ("describe", "score", "search", "apply")))


def row(name: str, found: dict[str, Any]) -> list[str]:
    """Of the table."""
    start = [name, f"{found['shape'][0]} x {found['shape'][1]}", f"{found['forward']:.2f}"]
    if "refused" in found:
        return [*start, *["-"] * (len(HEAD) - len(start))]
    speed = [
        f"{of['dense_ms']:.2f} to {of['pruned_ms']:.2f} ms, {of['dense_ms'] / of['pruned_ms']:.2f}x "
        f"of {of['ideal']:.2f}x"
        for of in found["speed"].values()
    ]
    stages = [f"{found[stage]:.2f}" for stage in ("describe", "score", "search", "apply")]
    peak = max(found["peaks"].values()) - found["memory"]
    return [
        *start,
        *stages,
        f"{seconds(found):.1f}",
        f"{seconds(found) / found['forward']:.1f}",
        f"{peak:,.0f}",
        *speed,
    ]


HEAD = [
    "network", "examples x tokens or pixels", "dense pass, s", "describe, s", "score, s", "search, s", "refit, s",
    "job, s", "job, passes", "peak above model, MB", *(f"batch {count}" for count in BATCHES),
]  # fmt: skip


def render(machine: str, results: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [f"The default job at {BUDGET} of the MACs on {machine}; random weights, inputs without padding.", ""]
    if TINY:
        lines[0] += " No GPU was to be had: shapes are tiny, and the figures say only that it runs."
    lines += [*table(HEAD, (row(name, found) for name, found in results.items())), ""]
    lines += [f"* {name}: {found['refused']}" for name, found in results.items() if "refused" in found]
    bars = []
    if (base := results.get("BERT-base")) and not TINY:
        bars.append(
            (f"BERT-base, 256 x 128, under {SECONDS:.0f} s", f"{seconds(base):.1f} s", seconds(base) < SECONDS)
        )
    for name, found in results.items():
        if "speed" in found and not TINY:
            of = found["speed"][str(BATCHES[-1])]
            share = of["dense_ms"] / of["pruned_ms"] / of["ideal"]
            text = f"{name}: at least {SHARE} of the ideal at batch {BATCHES[-1]}"
            bars.append((text, f"{share:.2f}", share >= SHARE))
    return "\n".join([*lines, "", *bar_table(bars)]) if bars else "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of: {'; '.join(SHAPES)}")
    names = parser.parse_args().names or list(SHAPES)
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "a processor"
    results, start = Stored("gpu"), time.perf_counter()
    figures = results.get(machine, {})
    for name in names:
        figures[name] = measured(name)
        results[machine] = figures
        print(f"{time.perf_counter() - start:.0f} s: {name}", file=sys.stderr, flush=True)
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    results.show(render(machine, figures))


if __name__ == "__main__":
    main()
