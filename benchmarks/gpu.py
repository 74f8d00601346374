"""What the default job costs on a GPU, and how much faster its result is there.

    scripts/gpu                                  the contract on the GPU, then this: 8 minutes at most
    python benchmarks/gpu.py [NAME ...]          some of the shapes
    python benchmarks/gpu.py --seconds 300       no shape is begun that would not be done by then

Networks of true shapes and random weights, random inputs without padding. Where there is no GPU the same runs on the
processor, on tiny shapes. What is measured is stored stage by stage; a shape that fails or takes too long leaves what
it had, and its error. Prints a table of every machine, and stores it in docs/results/gpu.md, its figures in
docs/results/gpu.json.
"""

from __future__ import annotations

import argparse
import gc
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any

import torch
from measuring import Stored
from text_tables import bar_table, table
from torch import nn

import optin
from optin.app.benchmark import side_by_side
from optin.app.generating import generation
from optin.choosing.latency import now
from optin.describing import describe
from optin.errors import first_line
from optin.running.modules import inference_mode_of

Inputs = list[dict[str, torch.Tensor]]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = DEVICE.type == "cpu"
BUDGET = "80%" if TINY else "50%"
BATCHES = (1, 128)
LIMIT = 480.0  # seconds of all shapes together
STAGES = ("describe", "score", "search", "apply")
CPU = "a processor"
SHARE = 0.85  # of the ideal, at the larger batch
BARS = {"BERT-base": (5.0, None), "Llama 8B, bfloat16": (240.0, 60.0)}  # seconds of the job and GB at most
# name: kind, its sizes, examples, tokens or pixels, precision, seconds that have to be left for it; in this order
SHAPES: dict[str, tuple[str, dict[str, int], int, int, str, float]] = {
    "BERT-base": ("bert", {}, 256, 128, "float32", 30),
    "Llama 1B, bfloat16": (
        "llama",
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "vocab_size": 128256},
        128, 1024, "bfloat16", 60,
    ),
    "Llama 8B, bfloat16": (
        "llama",
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14336, "vocab_size": 128256},
        128, 1024, "bfloat16", 150,
    ),
    "ViT-B/16": ("vit", {}, 256, 224, "float32", 30),
    "BERT-base, bfloat16": ("bert", {}, 256, 128, "bfloat16", 30),
    "ViT-B/16, bfloat16": ("vit", {}, 256, 224, "bfloat16", 30),
    "ResNet-50": ("resnet", {}, 256, 224, "float32", 40),
}  # fmt: skip
WORDS = 500 if TINY else 30000
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def network(kind: str, sizes: dict[str, int], side: int, precision: torch.dtype) -> nn.Module:
    """With random weights, made on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(precision)
    try:
        with DEVICE:
            return _network(kind, sizes, side).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def _network(kind: str, sizes: dict[str, int], side: int) -> nn.Module:
    import transformers

    if kind == "resnet":
        import timm

        made: nn.Module = timm.create_model("resnet18" if TINY else "resnet50", num_classes=10 if TINY else 1000)
        return made
    sizes = SMALL | ({"num_key_value_heads": 2} if kind == "llama" else {}) if TINY else sizes
    if kind == "vit":
        config = transformers.ViTConfig(**sizes, image_size=side, num_labels=10 if TINY else 1000)
        return transformers.ViTForImageClassification(config)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))


def inputs(kind: str, examples: int, side: int, precision: torch.dtype, batch: int) -> Inputs:
    """Random ones, on the device."""
    generator = torch.Generator().manual_seed(0)
    counts = [min(batch, examples - start) for start in range(0, examples, batch)]
    if kind in ("vit", "resnet"):
        name = "x" if kind == "resnet" else "pixel_values"
        made = (torch.randn(count, 3, side, side, generator=generator) for count in counts)
        return [{name: images.to(DEVICE, precision)} for images in made]
    return [{"input_ids": torch.randint(5, WORDS, (count, side), generator=generator).to(DEVICE)} for count in counts]


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


class OutOfTime(Exception):
    """A shape took longer than there was time."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End what takes longer."""

    def end(*_: object) -> None:
        raise OutOfTime(f"ended after {seconds:.0f} s, when the time was up")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(name: str, found: dict[str, Any], keep: Callable[[], None]) -> None:
    """The job on one shape, stage by stage, and both networks side by side.

    Args:
        found: takes the figures.
        keep: called whenever there are more of them.
    """
    kind, sizes, examples, side, dtype, _ = SHAPES[name]
    examples, side = (16, 32) if TINY else (examples, side)
    precision, batch = getattr(torch, dtype), 8 if kind == "llama" else 32
    model = network(kind, sizes, side, precision)
    batches = inputs(kind, examples, side, precision, batch)
    found |= {"shape": [examples, side], "weights": sum(p.numel() for p in model.parameters()), "peaks": {}}
    passed(model, batches[:1])
    _, found["forward"], _ = timed(lambda: passed(model, batches))
    found["memory"] = torch.cuda.memory_allocated() / 2**20 if DEVICE.type == "cuda" else 0.0

    def stage(name: str, work: Callable[[], Any]) -> Any:
        made, found[name], found["peaks"][name] = timed(work)
        keep()
        return made

    stage("describe", lambda: describe(model))
    scores = stage("score", lambda: optin.score(model, batches, track=optin.silent))
    plan = stage("search", lambda: optin.plan(model, scores, BUDGET, track=optin.silent))
    small = stage("apply", lambda: optin.apply(model, plan, batches, scores=scores, track=optin.silent)).model
    macs = [plan.dense.macs, plan.pruned.macs]
    del scores, batches
    if kind == "llama":
        found["generation"] = generation(model, small, lambda count: inputs(kind, count, side, precision, count)[0])
        keep()
        head: Any = model.lm_head
        macs = [each - (side - 1) * head.weight.numel() for each in macs]  # of all tokens but the last
    for count in BATCHES:
        few: dict[str, Any] = dict(inputs(kind, count, side, precision, count)[0])
        few |= {"logits_to_keep": 1} if kind == "llama" else {}  # all those of 128 texts take 32 GiB
        dense, pruned = zip(*side_by_side((model, small), few, 3 if kind == "llama" else 15), strict=True)
        found.setdefault("speed", {})[str(count)] = {
            "dense_ms": statistics.median(dense),
            "pruned_ms": statistics.median(pruned),
            "ideal": macs[0] / macs[1],
        }
        keep()


def seconds(found: Mapping[str, Any]) -> float | None:
    """Of the whole job; None of one that was not done."""
    return float(sum(found[stage] for stage in STAGES)) if all(stage in found for stage in STAGES) else None


def gigabytes(mebibytes: float) -> float:
    """Of memory."""
    return mebibytes * 2**20 / 1e9


def share_of_ideal(found: Mapping[str, Any]) -> float | None:
    """Of the speed-up that the MACs promise, at the larger batch."""
    of = found.get("speed", {}).get(str(BATCHES[-1]))
    return None if of is None else float(of["dense_ms"] / of["pruned_ms"] / of["ideal"])


def row(name: str, found: Mapping[str, Any]) -> list[str]:
    """Of the table."""
    cells = [name, found.get("date", "earlier")]
    cells.append(f"{found['shape'][0]} x {found['shape'][1]}" if "shape" in found else "-")
    cells.append(f"{found['forward']:.2f}" if "forward" in found else "-")
    for stage in STAGES:
        cells.append(f"{found[stage]:.2f} s, {gigabytes(found['peaks'][stage]):.1f} GB" if stage in found else "-")
    whole = seconds(found)
    cells += ["-", "-"] if whole is None else [f"{whole:.1f}", f"{whole / found['forward']:.1f}"]
    for batch in BATCHES:
        of = found.get("speed", {}).get(str(batch))
        cells.append(
            "-"
            if of is None
            else f"{of['dense_ms']:.2f} to {of['pruned_ms']:.2f} ms, {of['dense_ms'] / of['pruned_ms']:.2f}x of "
            f"{of['ideal']:.2f}x"
        )
    return cells


HEAD = [
    "network", "measured", "examples x tokens or pixels", "dense pass, s", "describe", "score", "search", "refit",
    "job, s", "job, passes", *(f"batch {count}" for count in BATCHES),
]  # fmt: skip


def rates(results: Mapping[str, Any]) -> list[str]:
    """Tokens per second with the cache, in Markdown."""
    rows = [
        [name, f"{of['batch']} x {of['length']}"]
        + [f"{of['dense'][kind]:,.0f} to {of['pruned'][kind]:,.0f}" for kind in ("prefill", "decode")]
        for name, found in results.items()
        for of in found.get("generation", [])
    ]
    head = ["tokens a second, dense to pruned", "prompt", "prefill", "decode"]
    return [*table(head, rows), ""] if rows else []


def bars(results: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """What was asked for and what was measured."""
    found = []
    for name, (most, memory) in BARS.items():
        whole = seconds(results.get(name, {}))
        if whole is not None:
            found.append((f"{name}: job under {most:.0f} s", f"{whole:.1f} s", whole < most))
            if memory is not None:
                peak = gigabytes(max(results[name]["peaks"].values()))
                found.append((f"{name}: job within {memory:.0f} GB", f"{peak:.1f} GB", peak < memory))
    for name, of in results.items():
        if (share := share_of_ideal(of)) is not None:
            text = f"{name}: at least {SHARE} of the ideal at batch {BATCHES[-1]}"
            found.append((text, f"{share:.2f}", share >= SHARE))
    return found


def render(results: Mapping[str, Any]) -> str:
    """The tables of every machine in Markdown."""
    lines = ["# On a GPU", ""]
    for machine, figures in sorted(results.items(), key=lambda item: item[0] == CPU):
        if machine == CPU:
            lines += [f"On {CPU}: no GPU was to be had. Shapes are tiny, and the figures say only that it runs.", ""]
        else:
            text = f"The default job at 50% of the MACs on {machine}; random weights, inputs without padding. "
            text += "Seconds and the most memory on the device, network and inputs included, of every stage."
            lines += [text, ""]
        lines += [*table(HEAD, (row(name, found) for name, found in figures.items())), "", *rates(figures)]
        errors = {name: found.get("error") or found.get("refused") for name, found in figures.items()}
        lines += [f"* {name}: {error.split('. ')[0]}." for name, error in errors.items() if error]
        lines += [""] if any(errors.values()) else []
        if machine != CPU and (checks := bars(figures)):
            lines += [*bar_table(checks), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of: {'; '.join(SHAPES)}")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="of all shapes together")
    given = parser.parse_args()
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else CPU
    results, start = Stored("gpu"), time.perf_counter()
    figures = dict(results.get(machine, {}))

    def keep() -> None:
        results[machine] = figures

    for name in given.names or SHAPES:
        left = given.seconds - (time.perf_counter() - start)
        found: dict[str, Any] = {"date": f"{date.today()}"}
        if left < SHAPES[name][-1] and not TINY:
            # What was measured in another run is worth more.
            figures.setdefault(name, found | {"error": f"left out: {left:.0f} s were left"})
        else:
            figures[name] = found
            try:
                with at_most(left):
                    measure(name, found, keep)
            except Exception as error:  # one shape must not end the others
                found["error"] = f"{type(error).__name__}: {first_line(error)}"
        keep()
        print(f"{time.perf_counter() - start:.0f} s: {name}", file=sys.stderr, flush=True)
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    results.show(render(results))


if __name__ == "__main__":
    main()
